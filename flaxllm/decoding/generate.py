"""Sampling a continuation."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.nn import Context, Key


def generate(
    model: Model,
    params: dict,
    tokens: Int[Array, "batch prompt"],
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    key: Key | None = None,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Int[Array, "batch new"]:
    """Sample `max_new_tokens` tokens after each prompt, each from `softmax(logits / temperature)`; 0 takes the best.

    The model sees the last `max_len` tokens. Every token costs a whole forward pass: made for samples while training.

    Raises:
      InputError: an empty prompt, no tokens asked for, a negative temperature, or sampling without a key.
    """
    if tokens.shape[1] == 0:
        raise InputError("generate needs a prompt of at least one token: give it the end-of-text token to start afresh")
    if max_new_tokens < 1:
        raise InputError(f"generate was asked for {max_new_tokens} new tokens: ask for 1 or more")
    if temperature < 0.0 or (temperature > 0.0 and key is None):
        raise InputError(f"generate at temperature {temperature} needs a key (and a temperature of 0 or more)")
    key = jax.random.PRNGKey(0) if key is None else key
    return _generate(model, params, tokens, jnp.float32(temperature), key, ctx, max_new_tokens)


@partial(jax.jit, static_argnames="max_new_tokens")
def _generate(
    model: Model, params: dict, tokens: Array, temperature: Array, key: Key, ctx: Context, max_new_tokens: int
) -> Array:
    width = min(model.config.max_len, tokens.shape[1] + max_new_tokens)
    tokens = tokens[:, -width:]
    start = tokens.shape[1]
    window = jnp.pad(tokens, ((0, 0), (0, width - start)))

    def step(carry: tuple, index: Array) -> tuple:
        window, filled = carry
        hidden = model.apply(params, window, ctx=ctx).hidden
        last = jax.lax.dynamic_index_in_dim(hidden, filled - 1, axis=1, keepdims=False)
        logits = model.unembed(params, last, ctx=ctx)
        sampled = jax.random.categorical(jax.random.fold_in(key, index), logits / jnp.maximum(temperature, 1e-6))
        token = jnp.where(temperature == 0.0, logits.argmax(-1), sampled).astype(window.dtype)
        full = filled == width
        window = jnp.where(full, jnp.roll(window, -1, axis=1), window)
        filled = jnp.where(full, width, filled + 1)
        window = jax.lax.dynamic_update_index_in_dim(window, token, filled - 1, axis=1)
        return (window, filled), token

    _, new = jax.lax.scan(step, (window, jnp.int32(start)), jnp.arange(max_new_tokens))
    return new.T
