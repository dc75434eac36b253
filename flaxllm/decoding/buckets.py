"""Rows of any lengths through programs that are compiled once for a number of rows and a length."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from flaxllm import nn
from flaxllm.decoding.engine import bucket

TOKENS_AT_A_TIME = {"cpu": 2**10}  # there, what the layers make of so many stays in a core's cache
_ELSEWHERE = 2**16

Row = Mapping[str, np.ndarray]  # by name: its tokens, and what else there is for each of them
Inputs = dict[str, Array | np.ndarray]  # the same of several rows `[row, token]`, with valid


def in_buckets(
    run: Callable[[Inputs], Any], rows: Sequence[Row], max_len: int | None = None, batch_size: int | None = None
) -> list[Any]:
    """What `run` makes of each row, in the order of the rows, each of a token or more: a tree of numpy arrays.

    Rows of about one length go together: filled up to `bucket` of it, or to `max_len` where that is less. `run` gets at most
    `batch_size` of them, or all, and empty rows up to a power of two, so that few programs are compiled. It gives a tree of
    arrays with a row for each; what they say of padding, which is on the right, is left in them.
    """
    widths = np.array([bucket(len(row["tokens"])) for row in rows], int)
    widths = widths if max_len is None else np.minimum(widths, max_len)
    batch_size, results = batch_size or len(rows), [None] * len(rows)
    for width in np.unique(widths).tolist():
        numbers = np.flatnonzero(widths == width)
        for part in np.split(numbers, range(batch_size, len(numbers), batch_size)):
            outputs = jax.device_get(run(_filled_up([rows[number] for number in part], width)))
            for place, number in enumerate(part):
                results[number] = jax.tree.map(lambda x: x[place], outputs)
    return results


def in_parts(function: Callable[[Any], Any], inputs: Mapping[str, Any]) -> Any:
    """`function` of such inputs, a number of rows at a time that the device is quick with (see `nn.map_parts`)."""
    tokens = TOKENS_AT_A_TIME.get(jax.default_backend(), _ELSEWHERE)
    return nn.map_parts(function, inputs, max(1, tokens // inputs["tokens"].shape[1]))


def _filled_up(rows: list[Row], width: int) -> Inputs:
    count = 1 << (len(rows) - 1).bit_length()
    inputs = {name: np.zeros((count, width), np.int32) for name in rows[0]} | {"valid": np.zeros((count, width), bool)}
    inputs["valid"][:, 0] = True  # no row has none
    for place, row in enumerate(rows):
        for name, values in row.items():
            inputs[name][place, : len(values)] = values
        inputs["valid"][place, : len(row["tokens"])] = True
    return inputs
