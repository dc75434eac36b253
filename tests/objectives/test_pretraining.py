import dataclasses
from contextlib import closing

import jax
import numpy as np
import pytest

from data.frozen_tokenizers import load
from flaxllm.data import train_stream
from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.objectives import pretraining
from flaxllm.objectives.pretraining import two_texts
from objectives.rows import assert_same, batch_of, compiled, documents_of, negative_log_likelihood, parameters

BERT = load("bert")
CLS, SEP = 2, 3
SIZES = dict(vocab_size=510, max_len=24, num_layers=1, num_heads=2, head_dim=4, d_model=8, d_mlp=16)
MODEL = build("bert", SIZES, "pretraining")
PARAMS = parameters(MODEL)
OBJECTIVE = pretraining(MODEL, BERT, 24)
DOCUMENTS = [np.arange(10, 55), np.arange(60, 63), np.arange(100, 121), np.arange(200, 204)]
ITEMS = OBJECTIVE.items(documents_of(DOCUMENTS))


def test_every_piece_comes_with_one_of_another_document():
    first = [range(10, 31), range(31, 52), range(52, 55), range(60, 63), range(100, 121), range(200, 204)]
    assert len(ITEMS) == 6 and [item[0].tolist() for item in (ITEMS[i] for i in range(6))] == [list(r) for r in first]
    many = OBJECTIVE.items(documents_of([*DOCUMENTS, *[np.arange(300 + 3 * i, 303 + 3 * i) for i in range(60)]]))
    chosen = [many[i][1].tolist() for i in range(len(many))]
    for index in range(6):
        own = next(document for document in DOCUMENTS if first[index][0] in document)
        assert ITEMS[index][1][0] not in own
        assert ITEMS[index][1].tolist() == ITEMS[index][1].tolist()
    assert len({tuple(piece) for piece in chosen}) > 30
    for index, piece in enumerate(chosen):
        assert many[index][0].tolist() != piece


def test_of_one_document_another_piece_is_taken():
    items = OBJECTIVE.items(documents_of([np.arange(10, 100)]))
    others = [items[i][1][0] for i in range(len(items))]
    assert len(items) == 5 and all(items[i][0][0] != others[i] for i in range(5)) and len(set(others)) > 1
    with pytest.raises(InputError, match="pretraining on pairs needs 2 pieces of text or more, got 1"):
        OBJECTIVE.items(documents_of([np.arange(10, 30)]))


def test_half_of_the_second_texts_are_from_elsewhere_and_a_tenth_are_short():
    piece, other, rng = np.arange(100, 140), np.arange(200, 240), np.random.default_rng(0)
    draws = [two_texts(piece, other, 0.1, rng) for _ in range(4000)]
    random = np.array([is_random for *_, is_random in draws])
    lengths = np.array([len(first) + len(second) for first, second, _ in draws])
    assert abs(random.sum() - 2000) < 4 * np.sqrt(1000)
    short = 400 * 38 / 39  # one length in 39 is that of the piece
    assert abs((lengths < 40).sum() - short) < 4 * np.sqrt(short * 0.9)
    assert lengths.min() == 2 and lengths.max() == 40
    for first, second, is_random in draws:
        assert first[0] == 100 and len(second)
        np.testing.assert_array_equal(np.diff(np.concatenate([first, second])) == 1, np.arange(1, len(first) + len(second)) != len(first) * is_random)
        assert (second[0] > 200) if is_random else (second[0] == first[-1] + 1)
    places = np.array([len(first) for first, *_ in draws])[lengths == 40]
    assert places.min() == 1 and places.max() == 39 and abs(places.mean() - 20) < 4 * 11.3 / np.sqrt(len(places))
    starts = np.array([second[0] for _, second, is_random in draws if is_random and len(second) == 20])
    assert starts.min() < 205 and starts.max() > 215


def test_what_a_short_text_from_elsewhere_can_give():
    rng = np.random.default_rng(0)
    draws = [two_texts(np.arange(100, 140), np.arange(200, 203), 0.0, rng) for _ in range(200)]
    assert {tuple(second) for _, second, is_random in draws if is_random} == {(201,), (202,), (201, 202)}


def test_an_example_is_two_texts_between_special_tokens():
    seen = set()
    for seed in range(20):
        example = OBJECTIVE.example((np.arange(100, 121, dtype=np.int32), np.arange(200, 221, dtype=np.int32)), np.random.default_rng(seed))
        whole = example["tokens"].copy()
        whole[example["masked_places"]] = example["masked_tokens"]
        ends = np.flatnonzero(whole == SEP)
        assert whole[0] == CLS and len(ends) == 2 and ends[1] == len(whole) - 1
        assert example["token_types"].tolist() == [0] * (ends[0] + 1) + [1] * (ends[1] - ends[0])
        assert example["is_random"] == (whole[ends[0] + 1] > 200) and example["weights"] == 1.0
        assert len(example["masked_places"]) == max(1, round(0.15 * len(whole)))
        assert not {0, ends[0], ends[1]} & set(example["masked_places"])
        seen.add(int(example["is_random"]))
    assert seen == {0, 1}


def test_static_examples_are_the_same_in_each_epoch():
    static = pretraining(MODEL, BERT, 24, dynamic=False)

    def example(objective, seed):
        return {key: value.tolist() for key, value in objective.example(ITEMS[1], np.random.default_rng(seed)).items()}

    assert example(static, 0) == example(static, 1)
    assert example(OBJECTIVE, 0) != example(OBJECTIVE, 1)


def test_the_losses_are_the_formula_and_padded_rows_count_for_nothing():
    batch = batch_of(OBJECTIVE, ITEMS, 8, pack=False)

    @jax.jit
    def both_logits(params, tokens, token_types, valid):
        output = MODEL.apply(params, tokens, token_types, valid=valid)
        return MODEL.unembed(params, output.hidden), output.logits

    everywhere, of_pairs = map(np.asarray, both_logits(PARAMS, batch["tokens"], batch["token_types"], batch["segments"] > 0))
    logits = np.take_along_axis(everywhere, batch["masked_places"][..., None], 1)
    masked = batch["masked_segments"] > 0
    real = np.arange(8) < 6
    run = compiled(OBJECTIVE, gradient=False)
    found = run(PARAMS, batch)
    expected = (negative_log_likelihood(logits, batch["masked_tokens"]) * masked).sum()
    assert found[0]["masked_lm"] == (pytest.approx(expected, rel=1e-5), masked.sum())
    expected = (negative_log_likelihood(of_pairs, batch["is_random"]) * real).sum()
    assert found[0]["next_sentence"] == (pytest.approx(expected, rel=1e-5), 6.0)
    right = (of_pairs.argmax(-1) == batch["is_random"]) & real
    assert found[0]["next_sentence_accuracy"] == (right.sum(), 6.0)
    weights = {name: float(value) for name, value in OBJECTIVE.weights(batch).items()}
    assert weights == {"masked_lm": masked.sum(), "next_sentence": 6.0}
    order = np.array([3, 7, 1, 0, 6, 5, 2, 4])
    assert_same(run(PARAMS, {key: value[order] for key, value in batch.items()}), found)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"needs a tokenizer with \[CLS\] and \[SEP\]"):
        pretraining(MODEL, load("t5"), 24)
    with pytest.raises(InputError, match=r"objective.short_rate is 1.5: it must lie in \[0, 1\]"):
        pretraining(MODEL, BERT, 24, short_rate=1.5)
    with pytest.raises(InputError, match="objective.mask_rate is 0.0"):
        pretraining(MODEL, BERT, 24, mask_rate=0.0)
    with pytest.raises(InputError, match="pretraining needs a model with the head 'pretraining', and this one has 'masked-lm'"):
        pretraining(dataclasses.replace(MODEL, head="masked-lm"), BERT, 24)
    with pytest.raises(InputError, match="needs 2 token types, and this model has 1"):
        pretraining(build("bert", SIZES | dict(num_token_types=1), "pretraining"), BERT, 24)


def test_a_batch_cut_to_its_longest_example_has_the_same_loss():
    short = OBJECTIVE.items(documents_of([np.arange(10 * i, 10 * i + 7 + i % 3) for i in range(1, 40)]))
    options = dict(batch_size=8, seed=0, shards=1, rows=(0, 8), pack=False)
    batches = []
    for multiple in (None, 2):
        with closing(train_stream(short, OBJECTIVE.example, OBJECTIVE.empty_row, pad_to_multiple_of=multiple, **options)) as stream:
            batches.append(next(stream))
    whole, cut = batches
    assert cut["tokens"].shape[1] < whole["tokens"].shape[1] and cut["masked_tokens"].shape[1] < whole["masked_tokens"].shape[1]
    run = compiled(OBJECTIVE)
    assert_same(run(PARAMS, cut), run(PARAMS, whole))
