"""Documents cut to the length that a model takes."""

from collections.abc import Sequence

import numpy as np

from flaxllm.data.holdout import Documents
from flaxllm.errors import InputError


class Pieces(Sequence[np.ndarray]):
    """int32 arrays of 2 to `piece_len` tokens, each of one document, cut when they are asked for.

    Consecutive pieces of a document share one token, so that predicting, within each piece, every token but the first
    predicts every token of a document but its first exactly once. A document of one token gives no piece.
    """

    def __init__(self, documents: Documents, piece_len: int):
        if piece_len < 2:
            raise InputError(f"piece_len is {piece_len}, but a token and the next one make 2: raise max_len")
        self._tokens = documents.tokens
        self._spans = documents.spans
        self._piece_len = piece_len
        predicted = np.maximum(np.diff(documents.spans)[:, 0] - 1, 0)
        self._first_piece = np.concatenate([[0], np.cumsum(-(-predicted // (piece_len - 1)))])

    def __len__(self) -> int:
        return int(self._first_piece[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"piece {index} of {len(self)}")
        document = int(np.searchsorted(self._first_piece, index, side="right")) - 1
        start, stop = self._spans[document]
        start += (index - self._first_piece[document]) * (self._piece_len - 1)
        return self._tokens[start : min(start + self._piece_len, stop)].astype(np.int32)
