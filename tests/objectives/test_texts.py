import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.frozen_tokenizers import load
from flaxllm.errors import InputError
from flaxllm.objectives.texts import texts_of
from objectives.rows import documents_of

BERT, T5 = load("bert"), load("t5")


def pieces(texts, tokenizer, length) -> list[list[int]]:
    made = texts_of(documents_of(texts), tokenizer, length)
    return [made[i].tolist() for i in range(len(made))]


def test_documents_are_cut_without_their_ends():
    texts = [[5, 6, 7, 8, 9, 10, 1], [11, 12, 1], [13, 1], [1], [], [14, 15, 16, 17, 18]]
    assert pieces(texts, T5, 4) == [[5, 6, 7, 8], [9, 10], [11, 12], [14, 15, 16, 17]]
    assert pieces(texts, BERT, 4) == [[5, 6, 7, 8], [9, 10, 1], [11, 12, 1], [13, 1], [14, 15, 16, 17]]
    assert texts_of(documents_of(texts), T5, 4)[0].dtype == np.int32


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(5, 99), max_size=30), min_size=1, max_size=8), st.integers(2, 12), st.booleans())
def test_every_token_is_in_one_piece_but_for_rests_of_one(texts, length, ended):
    if not any(texts):
        return
    cut = [text[i : i + length] for text in texts for i in range(0, len(text), length)]
    assert pieces([text + [1] * ended for text in texts], T5, length) == [part for part in cut if len(part) > 1]


def test_a_length_without_room_is_refused():
    with pytest.raises(InputError, match="data.max_len leaves room for 1 tokens of text, and an example needs 2: raise it"):
        pieces([[5, 6]], BERT, 1)
