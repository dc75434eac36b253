"""What the tests of the families share: parameters that show, closeness, and rows that hold documents."""

import jax
import numpy as np
from hypothesis import strategies as st

from flaxllm import nn
from flaxllm.models import Model

Span = tuple[int, int, int]  # a document's row, start and stop


def loud(model: Model, seed: int = 0) -> dict:
    """Parameters with no value at its usual start, so that each shows in what is computed."""
    params = nn.flatten(model.init(jax.random.PRNGKey(seed)))
    keys = jax.random.split(jax.random.PRNGKey(seed + 1), len(params))
    return nn.unflatten({
        path: value + 0.2 * jax.random.normal(key, value.shape) for (path, value), key in zip(params.items(), keys)
    })


def assert_near(actual, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def three(numbers: st.SearchStrategy) -> st.SearchStrategy:
    """A number for each of three rows."""
    return st.lists(numbers, min_size=3, max_size=3)


def padded(sizes: list[int], length: int, left: bool) -> tuple[list[Span], np.ndarray]:
    """A document of each size in a row of its own, and where rows are valid."""
    spans = [(row, length - size, length) if left else (row, 0, size) for row, size in enumerate(sizes)]
    valid = np.zeros((len(sizes), length), bool)
    for row, start, stop in spans:
        valid[row, start:stop] = True
    return spans, valid


def packed(cuts: list[set[int]], length: int) -> tuple[list[Span], np.ndarray, np.ndarray]:
    """The documents of rows that are cut there, with their segments and positions."""
    spans = []
    segments, positions = (np.zeros((len(cuts), length), np.int32) for _ in range(2))
    for row, ends in enumerate(cuts):
        for number, (start, stop) in enumerate(zip([0, *sorted(ends)], [*sorted(ends), length]), 1):
            spans.append((row, start, stop))
            segments[row, start:stop], positions[row, start:stop] = number, np.arange(stop - start)
    return spans, segments, positions
