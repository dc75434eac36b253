import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.frozen_tokenizers import load
from decoding.tiny import character_tokenizer
from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.objectives import span_corruption
from flaxllm.objectives.span_corruption import lengths, noise_spans, sentinel_ids, span_counts, take_out
from objectives.rows import batch_of, documents_of

T5 = load("t5")  # <extra_id_0> is 599, and </s> is 1
MODEL = build("t5", dict(vocab_size=600, num_layers=1))


@pytest.mark.parametrize(("max_len", "expected"), [(512, (568, 114)), (114, (126, 26)), (3, (2, 3)), (4, (3, 3))])
def test_lengths_are_those_of_the_released_code(max_len, expected):
    """568 and 114 are T5's own numbers; of 126 tokens 19 are taken out in 6 spans."""
    assert lengths(max_len, 0.15, 3.0) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(3, 200), st.floats(0.05, 0.9), st.floats(1.0, 6.0))
def test_every_text_up_to_the_longest_fits(max_len, density, mean):
    longest, target_len = lengths(max_len, density, mean)
    for length in range(2, longest + 2):
        noise, spans = span_counts(length, density, mean)
        assert 1 <= spans <= min(noise, length - noise)
        assert (length - noise + spans + 1 <= max_len) == (length <= longest)
        assert length > longest or noise + spans + 1 <= target_len


def test_a_text_is_taken_apart_as_in_the_paper():
    """Figure 2 of Raffel et al. 2020: Thank you [for inviting] me to your party [last] week; here the text ends with a span."""
    text = np.array([10, 11, 12, 13, 14, 15, 16, 17, 18, 19], np.int32)
    source, target = take_out(text, np.array([2, 2, 4, 2]), np.array([599, 598, 597]))
    assert source.tolist() == [10, 11, 599, 14, 15, 16, 17, 598]
    assert target.tolist() == [599, 12, 13, 598, 18, 19]


def test_an_example_can_be_put_together_again():
    objective = span_corruption(MODEL, T5, 64)
    for seed, length in enumerate([2, 3, 7, 20, 41, 68, 69, 70]):
        piece = np.arange(10, 10 + length, dtype=np.int32)
        example = objective.example(piece, np.random.default_rng(seed))
        source, target = example["tokens"].tolist(), example["decoder_targets"].tolist()
        assert source.pop() == target.pop() == 1
        assert example["decoder_tokens"].tolist() == [0, *target]
        noise, spans = span_counts(length, 0.15, 3.0)
        marks = [token for token in source if token > 500]
        assert marks == [token for token in target if token > 500] == list(range(599, 599 - spans, -1))
        assert len(target) == noise + spans and len(source) == length - noise + spans
        out = dict(zip(marks, np.split(np.array(target), [target.index(mark) for mark in marks])[1:]))
        assert [t for token in source for t in (out[token][1:] if token in out else [token])] == piece.tolist()
        assert source[0] == 10 and source[-1] == marks[-1]  # as in the released code


def test_spans_are_cut_every_way_alike():
    """20 tokens, of which 6 in 2 spans: 5 ways for these, 13 for those that stay."""
    rng = np.random.default_rng(0)
    draws = np.array([noise_spans(20, 0.3, 3.0, rng) for _ in range(4000)])
    assert (draws.sum(1) == 20).all() and (draws[:, [1, 3]].sum(1) == 6).all()
    for column, ways in ((1, 5), (0, 13)):
        counts = np.bincount(draws[:, column])[1:]
        assert len(counts) == ways
        expected = 4000 / ways
        assert ((counts - expected) ** 2 / expected).sum() < ways - 1 + 4 * np.sqrt(2 * (ways - 1))
    means = noise_spans(568, 0.15, 3.0, rng).reshape(-1, 2)
    assert len(means) == 28 and means[:, 1].sum() == 85


def test_a_full_text_fills_a_row_and_short_ones_share_it():
    objective = span_corruption(MODEL, T5, 64)
    items = objective.items(documents_of([[*range(100, 170), 1], [7, 8, 9, 1], [1], [20] * 12]))
    assert [len(items[i]) for i in range(len(items))] == [70, 3, 12]
    batch = batch_of(objective, items, 3, pack=True)
    assert (batch["segments"] > 0).sum(-1).tolist() == [64, 4 + 12, 0]
    assert batch["segments"].max(-1).tolist() == batch["decoder_segments"].max(-1).tolist() == [1, 2, 0]
    assert batch["decoder_weights"].sum(-1).tolist() == [10 + 3 + 1, 3 + 4, 0]


def test_sentinels_are_named_or_the_last_ids_of_the_model():
    assert sentinel_ids(T5, 600, 3).tolist() == [599, 598, 597]
    characters = character_tokenizer()
    assert sentinel_ids(characters, 53, 3).tolist() == [52, 51, 50]
    with pytest.raises(InputError, match="needs 4 sentinels.*use T5's, or a model.vocab_size of 54 or more"):
        sentinel_ids(characters, 53, 4)
    with pytest.raises(InputError, match="needs 101 sentinels, and the tokenizer has 100: lower data.max_len"):
        sentinel_ids(T5, 10_000, 101)


def test_what_cannot_be_corrupted_is_refused():
    with pytest.raises(InputError, match="objective.noise_density is 0.0"):
        span_corruption(MODEL, T5, 64, noise_density=0.0)
    with pytest.raises(InputError, match="objective.mean_span_len is 0.5: expected 1 or more"):
        span_corruption(MODEL, T5, 64, mean_span_len=0.5)
    with pytest.raises(InputError, match="data.max_len is 2, and the shortest source of span corruption has 3: raise it"):
        span_corruption(MODEL, T5, 2)
    with pytest.raises(InputError, match="ends its texts with token 2, and the tokenizer with 1: set model.eos_token to 1"):
        span_corruption(build("t5", dict(vocab_size=600, eos_token=2)), T5, 64)
    with pytest.raises(InputError, match="the tokenizer has no end-of-text token"):
        span_corruption(MODEL, dataclasses.replace(T5, eos=None), 64)
