"""Vectors read as the tokens whose embeddings lie nearest."""

from functools import partial
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.nn import Context


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class Neighbours(NamedTuple):
    """The nearest `tokens`, the nearest first, and the cosines of their embeddings' angles to the vector."""

    tokens: Int[Array, "*batch k"]
    similarities: Float[Array, "*batch k"]


def nearest_tokens(model: Model, params: dict, vectors: Float[Array | np.ndarray, "*batch embed"], k: int = 10) -> Neighbours:
    """The `k` tokens whose embeddings have the largest cosine similarity to each vector: to a token's own embedding, say, or
    to a value of the residual stream.

    Raises:
      InputError: vectors of another width than the model's, or a `k` beyond the vocabulary.
    """
    config = model.config
    if vectors.shape[-1] != config.d_model:
        raise InputError(f"nearest_tokens got vectors of width {vectors.shape[-1]}: expected {config.d_model}, the model's own")
    if not 1 <= k <= config.vocab_size:
        raise InputError(f"nearest_tokens got k={k}: expected 1 to {config.vocab_size}, the size of the vocabulary")
    return Neighbours(*_nearest(params["embedding"]["tokens"], jnp.asarray(vectors), config.vocab_size, k))


@partial(jax.jit, static_argnames=("size", "k"))
def _nearest(
    table: nn.Weight, vectors: Float[Array, "*batch embed"], size: int, k: int
) -> tuple[Int[Array, "*batch k"], Float[Array, "*batch k"]]:
    rows = nn.embed(table, jnp.arange(size)[None], Context())[0]
    cosines = jnp.einsum("...d,vd->...v", _unit(vectors), _unit(rows))
    similarities, tokens = jax.lax.top_k(cosines, k)
    return tokens, similarities


def _unit(x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
    """Of length 1; 0 stays 0."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(length == 0.0, 1.0, length)
