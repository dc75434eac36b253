"""The batch of a parity case in numpy: tokens and targets, and where documents and padding lie in its rows."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from parity.case import Case

Span = tuple[int, int, int]  # row, start and stop of a document


class Side(NamedTuple):
    """The rows that one stack of layers reads: those of the encoder or of the decoder."""

    length: int
    spans: list[Span]

    def mask(self, batch: int) -> np.ndarray:
        """True at the documents."""
        return self._fill(batch, lambda number, size: np.ones(size, bool)).astype(bool)

    def segments(self, batch: int) -> np.ndarray:
        """The documents of each row, numbered from 1."""
        return self._fill(batch, lambda number, size: np.full(size, number))

    def positions(self, batch: int) -> np.ndarray:
        """Each token's position in its document."""
        return self._fill(batch, lambda number, size: np.arange(size))

    def _fill(self, batch: int, of) -> np.ndarray:
        filled, seen = np.zeros((batch, self.length), np.int32), [0] * batch
        for row, start, stop in self.spans:
            seen[row] += 1
            filled[row, start:stop] = of(seen[row], stop - start)
        return filled


def source_side(case: Case) -> Side:
    return _side(case, case.length, case.documents, shorter_by=3)


def target_side(case: Case) -> Side:
    """Where the hidden states lie: the decoder's rows where it is given tokens, and else the only rows there are."""
    if case.target_length is None:
        return source_side(case)
    return _side(case, case.target_length, case.target_documents, shorter_by=2)


def _side(case: Case, length: int, documents: tuple[tuple[int, ...], ...], shorter_by: int) -> Side:
    if documents:
        bounds = [np.cumsum([0, *sizes]).tolist() for sizes in documents]
        return Side(length, [(row, *span) for row, ends in enumerate(bounds) for span in zip(ends, ends[1:])])
    sizes = [max(1, length - shorter_by * row) if case.padding else length for row in range(case.batch)]
    if case.padding == "left":
        return Side(length, [(row, length - size, length) for row, size in enumerate(sizes)])
    return Side(length, [(row, 0, size) for row, size in enumerate(sizes)])


def make_inputs(case: Case, vocab_size: int, special: Collection[int], pad: int, end: int | None) -> dict[str, np.ndarray]:
    """The arguments of our `apply` by name. A mask, positions and segments are given only where the case needs them.

    Tokens are none of the `special` ones, except that a document ends with `end`, and the decoder's begins with the start
    of the case's config, where there are such.
    """
    rng = np.random.default_rng(case.seed)
    ordinary = np.array([token for token in range(vocab_size) if token not in special])
    sides = {"": source_side(case)}
    if case.target_length is not None:
        sides["decoder_"] = target_side(case)
    inputs = {}
    for prefix, side in sides.items():
        mask = side.mask(case.batch)
        tokens = np.where(mask, rng.choice(ordinary, mask.shape), pad)
        begin = case.config.get("decoder_start_token_id") if prefix else None
        for row, start, stop in side.spans:
            tokens[row, stop - 1] = tokens[row, stop - 1] if end is None else end
            tokens[row, start] = tokens[row, start] if begin is None else begin
        inputs[f"{prefix}tokens"] = tokens.astype(np.int32)
        if case.documents:
            inputs[f"{prefix}segments"], inputs[f"{prefix}positions"] = side.segments(case.batch), side.positions(case.batch)
        elif case.padding:
            inputs[f"{prefix}valid"] = mask
    if case.token_types:
        inputs["token_types"] = rng.integers(0, 2, inputs["tokens"].shape).astype(np.int32)
    return inputs


def make_targets(case: Case, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random targets, and ragged weights that are 0 at padding and at some tokens."""
    rng = np.random.default_rng(case.seed + 1)
    mask = target_side(case).mask(case.batch)
    weights = mask * rng.random(mask.shape) * (rng.random(mask.shape) > 0.2)
    return rng.integers(0, vocab_size, mask.shape).astype(np.int32), weights.astype(np.float32)


def kept_positions(side: Side, batch: int, most: int) -> np.ndarray:
    """Rows and columns `[2, kept]` of at most `most` tokens of documents, evenly spread and the last among them."""
    places = np.argwhere(side.mask(batch)).T
    count = places.shape[1]
    return places if count <= most else places[:, np.linspace(0, count - 1, most).astype(int)]
