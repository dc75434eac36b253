"""Rotary positions (Su et al. 2021, section 3.2.2): queries and keys turn by angles that grow with their positions, so
that their products depend on how far apart they stand."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

SCALINGS = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class RotaryScaling:
    """How a model that was trained on `original_len` positions is made to reach `factor` times as far.

    "linear" turns every pair of dimensions `factor` times slower (Chen et al. 2023). The others do so for pairs that turn
    less than `slow_turns` times within `original_len`, and leave those that turn more than `fast_turns` times; what is
    between goes over from one to the other, by its turns in "llama3" (Grattafiori et al. 2024, section 3.4.2, and the
    released code) and by its number in "yarn" (Peng et al. 2023, section 3.2).
    """

    kind: str
    factor: float
    original_len: int = 8192
    slow_turns: float = 1.0
    fast_turns: float = 4.0


class Rotation(NamedTuple):
    """The angle of each pair of dimensions at each position, as its cosine and sine."""

    cos: Float32[Array, "#batch length pairs"]
    sin: Float32[Array, "#batch length pairs"]


def rotary_frequencies(head_dim: int, base: float, scaling: RotaryScaling | None = None) -> Float32[np.ndarray, "pairs"]:
    """The radians by which pair `i` turns from one position to the next: `base^(-2i / head_dim)` (Su et al. 2021, eq. 15).

    `head_dim` is even.
    """
    # In float32, operation by operation as in the published code: at position 512 the last bit of a frequency is already
    # an angle of 3e-5, and models were trained with these.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    periods = np.power(float(base), exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1.0) / periods
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    if scaling.kind == "llama3":
        kept = _kept_by_turns(frequencies, scaling)
        return (1 - kept) * frequencies / np.float32(scaling.factor) + kept * frequencies
    kept = _kept_by_number(head_dim, base, scaling)
    return np.float32(1.0) / (np.float32(scaling.factor) * periods) * (1 - kept) + frequencies * kept


def rotary_magnitude(scaling: RotaryScaling | None) -> float:
    """What "yarn" multiplies queries and keys by, so that attention stays sharp (Peng et al. 2023, eq. 22)."""
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling and scaling.kind == "yarn" and scaling.factor > 1.0 else 1.0


def rotation(
    positions: Int[Array, "#batch length"], frequencies: Float32[np.ndarray, "pairs"], magnitude: float = 1.0
) -> Rotation:
    """The rotation to each position; made once, it serves the queries and keys of every layer."""
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return Rotation(jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude)


def rotate(x: Float[Array, "batch length heads head_dim"], by: Rotation) -> Float[Array, "batch length heads head_dim"]:
    """Turn each pair of dimensions; the products are in float32 at least, as the rotation is.

    A pair is a dimension of the first half of a head and the one at the same place in the second half, as in the published
    checkpoints; the paper pairs neighbours.
    """
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = by.cos[:, :, None, :], by.sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


def _kept_by_turns(frequencies: np.ndarray, scaling: RotaryScaling) -> np.ndarray:
    """How far each frequency keeps its value, 0 to 1."""
    wavelengths = np.float32(2 * math.pi) / frequencies
    turns = np.float32(scaling.original_len) / wavelengths
    share = (turns - np.float32(scaling.slow_turns)) / np.float32(scaling.fast_turns - scaling.slow_turns)
    return np.clip(share, np.float32(0), np.float32(1))


def _kept_by_number(head_dim: int, base: float, scaling: RotaryScaling) -> np.ndarray:
    def number(turns: float) -> float:
        return head_dim * math.log(scaling.original_len / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(number(scaling.fast_turns)), 0)
    last = min(math.ceil(number(scaling.slow_turns)), head_dim - 1)
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - first) / np.float32(last - first or 0.001)
    return 1 - np.clip(ramp, np.float32(0), np.float32(1))
