"""Sinusoidal position vectors (Vaswani et al. 2017, section 3.5)."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_BASE = 10_000.0
_COARSE_BITS = 8


def sinusoids(
    positions: Int[Array, "*shape"], width: int, interleaved: bool = True
) -> Float[Array, "*shape width"]:
    """`sin(p / 10000^(2i / width))` and the cosine of the same, for `i` from 0 to `width / 2 - 1`, in float32.

    Each sine stands before its cosine where `interleaved` (the paper), and all sines before all cosines where not (the
    files of Marian). `width` is even. The error is below 2e-6 up to position 4096, and below 3e-5 up to 65536.
    """
    # An angle of hundreds of radians keeps only four decimals in float32. So whole turns are taken off first: the
    # product with the leading bits of a frequency is exact, and what the other bits add is small.
    turns = _BASE ** (-np.arange(0, width, 2) / width) / (2.0 * math.pi)
    mantissa, exponent = np.frexp(turns)
    coarse = np.ldexp(np.round(np.ldexp(mantissa, _COARSE_BITS)), exponent - _COARSE_BITS)
    position = positions[..., None].astype(jnp.float32)
    whole = position * coarse.astype(np.float32)
    angle = 2.0 * math.pi * (whole - jnp.floor(whole) + position * (turns - coarse).astype(np.float32))
    sines, cosines = jnp.sin(angle), jnp.cos(angle)
    if interleaved:
        return jnp.stack([sines, cosines], -1).reshape(*positions.shape, width)
    return jnp.concatenate([sines, cosines], -1)
