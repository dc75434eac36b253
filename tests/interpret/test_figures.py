"""Stills: as dark as the numbers are, with any words."""

import io
import warnings

import numpy as np
import pytest
from matplotlib.image import imread

from flaxllm.interpret import figures
from flaxllm.interpret.texts import Piece

DARKEST = np.array([0x15, 0x50, 0x8F]) / 255
BAD_FORMULA = "$\\frac{$"
WORDS = [Piece(text) for text in ("$a", "_$", "猫が", "مرحبا", " the\n", BAD_FORMULA, "a" * 60, "👩‍👧")]


def dark(png: bytes) -> int:
    """How many pixels have the darkest shade."""
    return int((np.abs(imread(io.BytesIO(png))[..., :3] - DARKEST) < 0.01).all(-1).sum())


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_every_weight_is_a_square_of_its_shade():
    size = len(WORDS)

    def still(*diagonals: int) -> int:
        weights = np.zeros((2, 3, size, size), np.float32)
        for diagonal in diagonals:
            weights[1, 2] += np.eye(size, k=diagonal, dtype=np.float32)
        return dark(figures.attention_png(BAD_FORMULA, {"encoder": weights}, {"encoder": (WORDS, WORDS)}))

    none, one, two = still(), still(0), still(0, 1)
    assert (two - none) / (one - none) == pytest.approx((2 * size - 1) / size, rel=0.05)


def test_many_words_are_left_out_and_every_part_is_drawn():
    size = figures._FEW + 1
    weights = {"encoder": np.zeros((1, 1, size, size), np.float32), "cross": np.ones((1, 1, 3, size), np.float32)}
    words = {"encoder": ([Piece(BAD_FORMULA)] * size,) * 2, "cross": ([Piece(BAD_FORMULA)] * 3, [Piece(BAD_FORMULA)] * size)}
    both, encoder = (
        figures.attention_png(BAD_FORMULA, {name: weights[name] for name in names}, words) for names in (weights, ["encoder"])
    )
    assert imread(io.BytesIO(both)).shape[0] > imread(io.BytesIO(encoder)).shape[0]
    assert dark(both) > dark(encoder)


@pytest.mark.parametrize("count", [len(WORDS), figures._FEW_ACROSS + 1])
def test_a_lens_is_as_dark_as_its_probabilities(count):
    words = (WORDS * count)[:count]

    def still(probabilities: np.ndarray) -> int:
        is_actual = np.zeros(probabilities.shape, bool)
        is_actual[1, 0] = True
        return dark(figures.lens_png(BAD_FORMULA, words, ["embedding", "output"], [words, words], probabilities, is_actual))

    half, whole = np.zeros((2, count)), np.ones((2, count))
    half[1] = 1
    none = still(np.zeros((2, count)))
    assert (still(whole) - none) / (still(half) - none) == pytest.approx(2, rel=0.1)
