"""Pieces: every token of a document but its first is predicted exactly once, and none from another document."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxllm.data import Documents, Pieces
from flaxllm.errors import InputError


def documents_of(sizes: list[int], gap: int = 0) -> Documents:
    """Documents whose tokens are their own places, with tokens that belong to none between them."""
    stops = np.cumsum([size + gap for size in sizes], dtype=np.int64)
    spans = np.stack([stops - sizes, stops], axis=1).astype(np.int64)
    return Documents(np.arange(sum(sizes) + gap * len(sizes), dtype=np.uint32), spans, 0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 40), max_size=12), st.integers(2, 15), st.integers(0, 2))
def test_pieces_predict_every_token_but_the_first_exactly_once(sizes, piece_len, gap):
    documents = documents_of(sizes, gap)
    pieces = Pieces(documents, piece_len)
    found = [pieces[i] for i in range(len(pieces))]
    expected = [token for start, stop in documents.spans.tolist() for token in range(start + 1, stop)]
    assert [token for piece in found for token in piece[1:].tolist()] == expected
    for piece in found:
        assert piece.dtype == np.int32 and 2 <= len(piece) <= piece_len
        np.testing.assert_array_equal(piece, np.arange(piece[0], piece[0] + len(piece)))
        assert any(start <= piece[0] and piece[-1] < stop for start, stop in documents.spans)


def test_pieces_are_as_long_as_they_can_be():
    pieces = Pieces(documents_of([10, 1, 0, 4, 2]), 4)
    assert [pieces[i].tolist() for i in range(len(pieces))] == [
        [0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [11, 12, 13, 14], [15, 16]
    ]  # fmt: skip


def test_an_index_outside_is_an_index_error():
    pieces = Pieces(documents_of([10, 4]), 4)
    for index in (-1, len(pieces), 10**6):
        with pytest.raises(IndexError, match=f"piece {index} of 4"):
            pieces[index]


def test_documents_without_a_token_to_predict_have_no_piece():
    assert len(Pieces(documents_of([1, 0, 1]), 8)) == len(Pieces(documents_of([]), 8)) == 0


@pytest.mark.parametrize("piece_len", [1, 0, -3])
def test_a_length_without_room_for_a_prediction_is_refused(piece_len):
    with pytest.raises(InputError, match=f"piece_len is {piece_len}, but a token and the next one make 2: raise"):
        Pieces(documents_of([5]), piece_len)
