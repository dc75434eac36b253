import dataclasses

import jax
import numpy as np
import pytest

from data.frozen_tokenizers import load
from decoding.tiny import character_tokenizer
from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.objectives import masked_lm
from flaxllm.objectives.masking import hide, make_masking, word_starts
from objectives.rows import assert_same, batch_of, compiled, documents_of, negative_log_likelihood, parameters

BERT, ROBERTA, T5 = load("bert"), load("roberta"), load("t5")
UNK, CLS, SEP, MASK = 1, 2, 3, 4
MODEL = build("bert", dict(vocab_size=510, max_len=32, num_layers=1, num_heads=2, head_dim=4, d_model=8, d_mlp=16), "masked-lm")
PARAMS = parameters(MODEL)
OBJECTIVE = masked_lm(MODEL, BERT, 32)
RNG = np.random.default_rng(0)
ITEMS = OBJECTIVE.items(documents_of([RNG.integers(5, 500, size) for size in (4, 9, 30, 9, 22)]))


def test_an_example_is_a_piece_between_its_special_tokens():
    piece = np.arange(10, 19, dtype=np.int32)
    example = OBJECTIVE.example(piece, np.random.default_rng(0))
    places = example["masked_places"]
    assert len(places) == 2  # 15% of 11 tokens
    assert example["masked_tokens"].tolist() == piece[places - 1].tolist()
    assert example["masked_weights"].tolist() == [1.0, 1.0]
    whole = example["tokens"].copy()
    whole[places] = example["masked_tokens"]
    assert whole.tolist() == [CLS, *piece, SEP]
    assert [len(item) for item in ITEMS] == [4, 9, 30, 9, 22]
    longer = OBJECTIVE.items(documents_of([[7] * 62]))
    assert [len(item) for item in longer] == [30, 30, 2]


@pytest.mark.parametrize(("length", "count"), [(2, 1), (8, 2), (11, 2), (15, 3), (18, 3), (28, 4), (30, 5)])
def test_as_many_are_hidden_as_the_released_code_hides(length, count):
    """Of the row with [CLS] and [SEP]: 0.6, 1.5 (to even), 1.95, 2.55, 3.0, 4.5 (to even) and 4.8 tokens."""
    example = OBJECTIVE.example(np.arange(20, 20 + length, dtype=np.int32), np.random.default_rng(0))
    assert len(example["masked_places"]) == count


def test_one_token_at_least_is_hidden():
    rarely = masked_lm(MODEL, BERT, 32, mask_rate=0.01)
    assert len(rarely.example(np.array([20, 21], np.int32), np.random.default_rng(0))["masked_places"]) == 1


def test_eighty_percent_are_masked_ten_replaced_and_ten_kept():
    masking, row = make_masking(BERT, 0.15, False), np.array([CLS, *range(100, 162), SEP], np.int32)
    rng, draws = np.random.default_rng(0), 2000
    examples = [hide(row, masking, rng) for _ in range(draws)]
    now = np.concatenate([e["tokens"][e["masked_places"]] for e in examples])
    before = np.concatenate([e["masked_tokens"] for e in examples])
    places = np.concatenate([e["masked_places"] for e in examples])
    assert len(now) == draws * 10  # round(0.15 * 64)
    deviation = np.sqrt(len(now) * 0.1 * 0.9)
    assert abs((now == MASK).sum() - len(now) * (0.8 + 0.1 / 500)) < 4 * deviation
    assert abs((now == before).sum() - len(now) * (0.1 + 0.1 / 500)) < 4 * deviation
    drawn = now[(now != MASK) & (now != before)]
    assert drawn.min() < 5 and drawn.max() > 494  # of the whole vocabulary, special tokens too
    assert abs((drawn < 250).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(drawn))
    counts = np.bincount(places, minlength=64)
    assert counts[0] == counts[63] == 0
    expected = len(now) / 62
    assert ((counts[1:63] - expected) ** 2 / expected).sum() < 62 + 4 * np.sqrt(2 * 62)


def test_special_tokens_are_never_hidden():
    piece = np.array([UNK, 50, UNK, MASK, 60, UNK] * 5, np.int32)
    for seed in range(50):
        example = OBJECTIVE.example(piece, np.random.default_rng(seed))
        assert set(example["masked_tokens"]) <= {50, 60}
    assert len(OBJECTIVE.example(np.full(9, UNK, np.int32), np.random.default_rng(0))["masked_tokens"]) == 0


@pytest.mark.parametrize("tokenizer", [BERT, ROBERTA], ids=["wordpiece", "byte-level"])
def test_words_are_hidden_whole_or_not_at_all(tokenizer):
    objective = masked_lm(build("bert", dict(vocab_size=510)), tokenizer, 64, mask_rate=0.3, whole_words=True)
    text = " tokenizations of wonderful houses are understanding the tokenizers of the outstanding"
    word = tokenizer(text).word_ids[0]  # as the library tells them
    sizes = np.bincount(word[word >= 0])
    assert sizes.max() > 3
    piece, split, hidden = tokenizer.encode(text), set(), 0
    for seed in range(200):
        places = objective.example(piece, np.random.default_rng(seed))["masked_places"]
        words, counts = np.unique(word[places], return_counts=True)
        assert (counts == sizes[words]).all()
        assert len(places) <= round(0.3 * (len(piece) + 2))
        split |= {int(size) for size in counts}
        hidden += len(places)
    assert split == set(sizes.tolist())  # words of every size
    assert hidden / 200 > 0.3 * (len(piece) + 2) - 2.5


def test_a_text_that_begins_inside_a_word_begins_a_word_of_its_own():
    """Here two such texts with special tokens around them, one of four tokens being hidden."""
    for tokenizer, inside in ((BERT, "##e"), (ROBERTA, "e")):
        token, first, last = tokenizer.backend.token_to_id(inside), tokenizer.cls, tokenizer.sep
        row, masking = np.array([first, token, last, token], np.int32), make_masking(tokenizer, 0.3, True)
        assert {tuple(hide(row, masking, np.random.default_rng(seed))["masked_places"]) for seed in range(20)} == {(1,), (3,)}


def test_sentencepiece_says_where_words_begin():
    starts = word_starts(T5)
    tokens = T5(" tokenizations of the house").tokens[0][:-1]
    word = T5(" tokenizations of the house").word_ids[0][:-1]
    assert starts[tokens].tolist() == [True, *(np.diff(word) > 0).tolist()]


def test_any_white_space_begins_a_word_of_bytes():
    tokens = ROBERTA.encode("a b\nc\td")
    assert word_starts(ROBERTA)[tokens].tolist() == [False, True, True, False, True, False]


def test_what_is_hidden_is_drawn_anew_unless_static():
    static = masked_lm(MODEL, BERT, 32, dynamic=False)

    def hidden(objective, seed):
        return objective.example(ITEMS[2], np.random.default_rng(seed))["tokens"].tolist()

    assert hidden(OBJECTIVE, 0) == hidden(OBJECTIVE, 0) != hidden(OBJECTIVE, 1)
    assert hidden(static, 0) == hidden(static, 1)
    assert static.example(ITEMS[1], RNG)["masked_places"].tolist() != static.example(ITEMS[3], RNG)["masked_places"].tolist()


def test_the_loss_is_the_formula_of_each_example_alone_however_they_are_packed():
    alone, packed = batch_of(OBJECTIVE, ITEMS, 6, pack=False), batch_of(OBJECTIVE, ITEMS, 6, pack=True)
    assert packed["segments"].max() > 1 and not alone["segments"][5].any()

    @jax.jit
    def logits_of(params, tokens, valid):
        return MODEL.unembed(params, MODEL.apply(params, tokens, valid=valid).hidden)

    everywhere = np.asarray(logits_of(PARAMS, alone["tokens"], alone["segments"] > 0))
    logits = np.take_along_axis(everywhere, alone["masked_places"][..., None], 1)
    weights, targets = alone["masked_segments"] > 0, alone["masked_tokens"]
    run = compiled(OBJECTIVE)
    found = run(PARAMS, alone)
    assert found[0]["loss"] == (pytest.approx((negative_log_likelihood(logits, targets) * weights).sum(), rel=1e-5), 14.0)
    assert found[0]["accuracy"] == (((logits.argmax(-1) == targets) & weights).sum(), 14.0)
    assert float(OBJECTIVE.weights(alone)["loss"]) == 14.0
    assert_same(run(PARAMS, packed), found)
    assert_same(run(PARAMS, {key: value[[4, 2, 5, 0, 3, 1]] for key, value in alone.items()}), found)


def test_rows_have_places_for_what_is_hidden_of_a_full_example():
    for length in (2, 3, 8, 60, 128, 512):
        row = masked_lm(MODEL, None, length).empty_row
        assert {key: len(value) for key, value in row.items()} == {
            "tokens": length, **dict.fromkeys(("masked_tokens", "masked_places", "masked_weights"), -(-max(1, round(0.15 * length)) // 8) * 8)
        }  # fmt: skip
    assert len(masked_lm(MODEL, None, 512).empty_row["masked_tokens"]) == 80


def test_what_cannot_be_masked_is_refused():
    with pytest.raises(InputError, match="the tokenizer has no mask token"):
        masked_lm(MODEL, T5, 32)
    with pytest.raises(InputError, match="does not tell where words begin.*set objective.whole_words to False"):
        masked_lm(MODEL, dataclasses.replace(character_tokenizer(), mask=0), 32, whole_words=True)
    with pytest.raises(InputError, match="objective.mask_rate is 1.0: it must lie between 0 and 1"):
        masked_lm(MODEL, BERT, 32, mask_rate=1.0)
    with pytest.raises(InputError, match="masked-lm needs a model with the head 'masked-lm'"):
        masked_lm(dataclasses.replace(MODEL, head="question-answering"), BERT, 32)
    with pytest.raises(InputError, match="leaves room for 1 tokens"):
        masked_lm(MODEL, BERT, 3).items(documents_of([[7, 8, 9]]))


