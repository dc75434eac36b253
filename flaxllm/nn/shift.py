"""What a decoder reads while it learns to write a text: the text itself, one place late (Vaswani et al. 2017, section 3.1)."""

import jax.numpy as jnp
from jaxtyping import Array, Int


def shift_right(
    tokens: Int[Array, "batch length"], positions: Int[Array, "#batch length"], start: int
) -> Int[Array, "batch length"]:
    """Each token one place later in its text; a text, whose first token has position 0, begins with `start`."""
    return jnp.where(positions == 0, start, jnp.roll(tokens, 1, axis=1))
