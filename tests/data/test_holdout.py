"""The split: what is held out, by which rule, and what a fingerprint tells apart."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxllm.data import Documents, byte_level, char_level, split, split_rows, train_bpe, whole
from flaxllm.errors import InputError

TEXTS = ["The first one, naïve.", "", "語", "", "the second\n", "and the end", ""]
some_texts = st.lists(st.text("ab é語", max_size=12), min_size=1, max_size=8)


def tokens_of(side: Documents) -> list[list[int]]:
    return [side.tokens[start:stop].tolist() for start, stop in side.spans]


def whole_documents(corpus) -> list[list[int]]:
    return [corpus.tokens[start:stop].tolist() for start, stop in zip(corpus.offsets[:-1], corpus.offsets[1:])]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text("abé\n", min_size=3, max_size=300))
def test_the_tail_of_one_document_of_characters_is_nanogpts(corpus_in_memory, text):
    letters = char_level([text])
    both = split(corpus_in_memory([text], letters), "tail", 0.1)
    ids = [sorted(set(text)).index(char) for char in text]
    n = len(ids)
    assert tokens_of(both.train) == [ids[: int(n * 0.9)]]
    assert tokens_of(both.eval) == [[*ids[int(n * 0.9) :], letters.end_of_text]]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(texts=some_texts, fraction=st.floats(0, 1, exclude_max=True))
def test_the_tail_is_the_end_of_the_text_to_the_character(corpus_in_memory, texts, fraction):
    letters = char_level(["ab é語"])
    corpus = corpus_in_memory(texts, letters)
    try:
        both = split(corpus, "tail", fraction)
    except InputError as error:
        assert "nothing to predict" in str(error)
        return
    kept = int(sum(map(len, texts)) * (1 - fraction))
    head, tail = (
        "".join(letters.decode(ids) for ids in tokens_of(side)).replace("<|endoftext|>", "")
        for side in (both.train, both.eval)
    )
    assert (head, tail) == ("".join(texts)[:kept], "".join(texts)[kept:])
    assert (both.train.num_bytes, both.eval.num_bytes) == (len(head.encode()), len(tail.encode()))
    pieces = [*tokens_of(both.train), *tokens_of(both.eval)]
    assert [*chain.from_iterable(pieces)] == corpus.tokens.tolist()
    assert len(pieces) - len(texts) in (0, 1)
    assert all(pieces)


@pytest.mark.parametrize("make", [byte_level, lambda: train_bpe(["naïve 語語語 naïve"], 265)])
def test_bytes_are_counted_right_where_the_cut_goes_through_a_character(corpus_in_memory, make):
    tokenizer = make()
    corpus = corpus_in_memory(["ab", "語é" * 20, "c"], tokenizer)
    inside = 0
    for fraction in np.linspace(0.05, 0.9, 60):
        both = split(corpus, "tail", float(fraction))
        assert both.train.num_bytes + both.eval.num_bytes == 103
        if tokenizer.vocab_size == 257:
            ids = np.concatenate(tokens_of(both.eval))
            assert both.eval.num_bytes == (ids != 256).sum()
            inside += "\ufffd" in tokenizer.decode(ids)
    assert inside > 10 or tokenizer.vocab_size != 257


def test_documents_are_held_out_whole(corpus_in_memory):
    corpus = corpus_in_memory([f"é number {i}" for i in range(60)], byte_level())
    both = split(corpus, "documents", 0.3)
    train, held_out = tokens_of(both.train), tokens_of(both.eval)
    assert sorted([*train, *held_out]) == sorted(whole_documents(corpus))
    assert 5 < len(held_out) < 35
    for side, documents in ((both.train, train), (both.eval, held_out)):
        assert documents == [document for document in whole_documents(corpus) if document in documents]
        assert side.num_bytes == sum(len(document) - 1 for document in documents)


def test_documents_added_at_the_end_move_none_of_the_others(corpus_in_memory):
    few = corpus_in_memory([f"number {i}" for i in range(50)], byte_level())
    more = corpus_in_memory([f"number {i}" for i in range(90)], byte_level())
    before, after = (tokens_of(split(corpus, "documents", 0.3).eval) for corpus in (few, more))
    assert after[: len(before)] == before and len(before) < len(after)


def test_documents_are_held_out_at_random_by_the_fraction_and_the_seed(corpus_in_memory):
    corpus = corpus_in_memory(["ab"] * 20_000, byte_level())
    held_out = {}
    for seed in (0, 1, 2):
        spans = split(corpus, "documents", 0.25, seed).eval.spans
        held_out[seed] = np.isin(corpus.offsets[:-1], spans[:, 0])
        assert abs(held_out[seed].mean() - 0.25) < 4 * (0.25 * 0.75 / 20_000) ** 0.5
        runs = (held_out[seed][1:] & held_out[seed][:-1]).mean()
        assert abs(runs - 0.25**2) < 4 * (0.25**2 / 20_000) ** 0.5
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert abs((held_out[a] & held_out[b]).mean() - 0.25**2) < 4 * (0.25**2 / 20_000) ** 0.5


@pytest.mark.parametrize("holdout", ["tail", "documents"])
def test_with_nothing_held_out_all_is_for_training(corpus_in_memory, holdout):
    corpus = corpus_in_memory(TEXTS, byte_level())
    both = split(corpus, holdout, 0)
    assert tokens_of(both.train) == whole_documents(corpus) and tokens_of(both.eval) == []
    assert (both.train.num_bytes, both.eval.num_bytes) == (sum(len(text.encode()) for text in TEXTS), 0)


def test_the_fingerprint_tells_texts_tokenizers_and_splits_apart(corpus_in_memory):
    corpus = corpus_in_memory(TEXTS, byte_level())
    letters = char_level(TEXTS)
    splits = [
        split(corpus),
        split(corpus_in_memory([*TEXTS, "more"], byte_level())),
        split(corpus_in_memory(["".join(TEXTS)], byte_level())),
        split(corpus_in_memory(TEXTS, letters)),
        split(corpus, "tail", 0.2),
        split(corpus, "documents", 0.2),
        split(corpus, "documents", 0.2, seed=1),
        split(corpus, "documents", 0.3),
    ]
    assert len({made.fingerprint for made in splits}) == len(splits)


def test_the_fingerprint_tells_apart_tokenizers_that_give_the_same_ids(corpus_in_memory):
    made = [split(corpus_in_memory([text], char_level([text]))) for text in ("abcabcabc", "xyzxyzxyz")]
    assert tokens_of(made[0].train) == tokens_of(made[1].train)
    assert made[0].fingerprint != made[1].fingerprint


def test_the_fingerprint_is_the_same_for_what_is_the_same(corpus_in_memory):
    made = [split(corpus_in_memory(TEXTS, byte_level()), "tail", 0.2, seed) for seed in (0, 1)]
    assert made[0].fingerprint == made[1].fingerprint
    corpus = corpus_in_memory(TEXTS, byte_level())
    assert split(corpus, "tail", 0).fingerprint == split(corpus, "tail", 0.0).fingerprint


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 7.0, float("nan")])
def test_a_fraction_that_cannot_be_is_refused(corpus_in_memory, fraction):
    with pytest.raises(InputError, match=rf"eval_fraction is {fraction}, it must lie in \[0, 1\)"):
        split(corpus_in_memory(TEXTS, byte_level()), "tail", fraction)


def test_an_unknown_rule_is_refused_and_the_nearest_named(corpus_in_memory):
    with pytest.raises(InputError, match="there is no holdout 'document': did you mean 'documents'?"):
        split(corpus_in_memory(TEXTS, byte_level()), "document")


NOTHING = [
    (["a long text"], "documents", 0.1, "evaluation"),
    (["a long text"], "documents", 0.999999, "training"),
    (["", "", "abcdefgh"], "tail", 0.9, "training"),
    (["abc", ""], "tail", 1e-20, "evaluation"),
]


@pytest.mark.parametrize(("texts", "holdout", "fraction", "side"), NOTHING)
def test_a_side_without_a_token_to_predict_is_refused(corpus_in_memory, texts, holdout, fraction, side):
    corpus = corpus_in_memory(texts, byte_level())
    with pytest.raises(InputError) as caught:
        split(corpus, holdout, fraction)
    assert str(caught.value) == (
        f"holding out {fraction} of {len(texts)} documents by {holdout!r} leaves {side} nothing to predict: "
        "change eval_fraction or holdout, or use more text"
    )


def test_one_character_and_its_end_are_enough_to_judge_by(corpus_in_memory):
    both = split(corpus_in_memory(["abcdefghij"], byte_level()), "tail", 0.01)
    assert tokens_of(both.eval) == [[ord("j"), 256]]


def test_records_are_held_out_by_the_same_rules():
    train, held_out = split_rows(20, "tail", 0.25)
    assert train.tolist() == list(range(15)) and held_out.tolist() == list(range(15, 20))
    train, held_out = split_rows(1000, "documents", 0.2, seed=3)
    assert sorted([*train, *held_out]) == list(range(1000)) and 150 < len(held_out) < 250
    longer, _ = split_rows(1500, "documents", 0.2, seed=3)
    assert longer[: len(train)].tolist() == train.tolist()
    for arguments, message in (((9, "head", 0.1), "no holdout 'head'"), ((9, "tail", 1.0), "eval_fraction is 1.0")):
        with pytest.raises(InputError, match=message):
            split_rows(*arguments)


def test_a_corpus_can_be_taken_whole(corpus_in_memory):
    corpus = corpus_in_memory(["one", "twenty", "3"], byte_level())
    documents = whole(corpus)
    assert documents.spans.tolist() == [[corpus.offsets[i], corpus.offsets[i + 1]] for i in range(3)]
    assert documents.num_bytes == 10
