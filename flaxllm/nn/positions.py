"""Where a token stands: its number in the sequence, and the vectors and rotations made of that number."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def token_positions(length: int, valid: Bool[Array, "batch length"] | None = None) -> Int[Array, "#batch length"]:
    """Each token's position among the valid ones, from 0: padding on either side moves nothing."""
    if valid is None:
        return jnp.arange(length)[None]
    return jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
