"""How well a model predicts a text."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives.cross_entropy import chunks_needed, cross_entropy
from flaxllm.objectives.objective import Term

_LOGIT_BYTES = 2**28


def perplexity(
    model: Model,
    params: dict,
    tokens: Int[Array | np.ndarray, "length"],
    max_len: int = 512,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> float:
    """`exp` of the mean negative log likelihood of each token given those before it, in pieces of `max_len` predictions.

    A piece begins where the one before ended, and sees nothing of it; a last one that would be shorter is left out, unless
    it is the only one.

    Raises:
      InputError: a model that predicts no next token, or fewer than two tokens.
    """
    if model.head != "causal-lm":
        raise InputError(f"perplexity needs a model with the head 'causal-lm', and this one has {model.head or 'base'!r}")
    if len(tokens) < 2:
        raise InputError(f"perplexity needs two tokens or more, got {len(tokens)}: use a longer text")
    length = min(max_len, len(tokens) - 1)
    sums = [_loss(model, params, tokens[i : i + length + 1][None], ctx) for i in range(0, len(tokens) - length, length)]
    return math.exp(sum(float(term.sum) for term in sums) / sum(float(term.weight) for term in sums))


@partial(jax.jit, static_argnames="model")
def _loss(model: Model, params: dict, tokens: Int[Array, "1 length"], ctx: Context) -> Term:
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    hidden = model.apply(params, inputs, ctx=ctx).hidden
    chunks = chunks_needed(*inputs.shape, model.config.vocab_size, _LOGIT_BYTES)
    weights = jnp.ones(targets.shape)
    return cross_entropy(lambda h: model.unembed(params, h, ctx=ctx), hidden, targets, weights, chunks=chunks)["cross_entropy"]
