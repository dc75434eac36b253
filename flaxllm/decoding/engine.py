"""The compiled steps of decoding: read some tokens of the prompts, choose each row's next one, read it and choose again.

Each is compiled once for a number of rows, of slots and of tokens read at a time; prompts are cut and filled up to few such
numbers. What varies from row to row (lengths, temperatures, seeds) is data.
"""

import math
from functools import partial
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from flaxllm.decoding.reading import empty_cache, extend, most_positions, with_source
from flaxllm.decoding.sampling import History, Sampling, choose, process
from flaxllm.models import Model
from flaxllm.nn import Cache, Context

CHUNK = 512  # so many tokens of a prompt are read at a time
LEAST = 16


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class State(struct.PyTreeNode):
    """Rows being written. `hidden` is what the model made of each row's last token."""

    cache: Cache
    hidden: Float[Array, "rows width"]
    history: History


@no_type_check
class Choice(struct.PyTreeNode):
    """The next token of each row and its log probability before any processing; `top` are the likeliest ones and theirs."""

    token: Int[Array, "rows"]
    logprob: Float[Array, "rows"]
    top: tuple[Int[Array, "rows k"], Float[Array, "rows k"]] | None = None


def bucket(length: int) -> int:
    """The number of tokens that so many are filled up to: no more than a quarter above it, beyond the least."""
    step = max(LEAST, 2 ** ((length - 1).bit_length() - 3))
    return math.ceil(length / step) * step


def start(
    model: Model,
    params: dict,
    prompts: list[np.ndarray],
    num_new: int,
    sources: tuple[np.ndarray, np.ndarray] | None = None,
    slack: int = 0,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> State:
    """Rows whose prompts (of one token at least) have been read, with room for `num_new` more tokens in each.

    An encoder-decoder also gets `sources`: tokens and which of them are valid, both `[rows, source]`.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    slots = bucket(int(lengths.max()) + num_new + slack)
    dtype = ctx.compute_dtype or params["embedding"]["tokens"].dtype
    cache = empty_cache(model, len(prompts), slots, dtype, slack)
    if sources is not None:
        cache = read_source(model, params, cache, *sources, ctx)
    tokens = np.zeros((len(prompts), slots), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    history = History(jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32), jnp.asarray(lengths, jnp.int32))
    state = State(cache, jnp.zeros((len(prompts), model.config.d_model), dtype), history)
    for begin in range(0, int(lengths.max()), CHUNK):
        width = min(bucket(int(lengths.max()) - begin), CHUNK, most_positions(model) or CHUNK)
        chunk = np.zeros((len(prompts), width), np.int32)
        chunk[:, : min(width, slots - begin)] = tokens[:, begin : begin + width]
        counts = np.clip(lengths - begin, 0, width).astype(np.int32)
        state = read(model, params, state, chunk, counts, begin == 0, ctx)
    return state


@partial(jax.jit, static_argnames="model", donate_argnames="cache")
def read_source(
    model: Model, params: dict, cache: Cache, source: Int[Array, "rows source"], valid: Bool[Array, "rows source"], ctx: Context
) -> Cache:
    return with_source(model, params, cache, source, valid, ctx)


@partial(jax.jit, static_argnames=("model", "first"), donate_argnames="state")
def read(
    model: Model,
    params: dict,
    state: State,
    tokens: Int[Array, "rows length"],
    counts: Int[Array, "rows"],
    first: bool,
    ctx: Context,
) -> State:
    """Read the first `counts` of these tokens in each row, which the history holds already."""
    hidden, cache, _ = extend(model, params, state.cache, tokens, counts, first, ctx)
    last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
    return state.replace(cache=cache, hidden=jnp.where((counts > 0)[:, None], last, state.hidden))


@partial(jax.jit, static_argnames=("model", "ends", "num_top"), donate_argnames="state")
def write(
    model: Model, params: dict, state: State, sampling: Sampling, ends: tuple[int, ...], num_top: int, ctx: Context
) -> tuple[State, Choice]:
    """Choose each row's next token and write it down; it is yet to be read."""
    return _write(model, params, state, sampling, ends, num_top, ctx)


@partial(jax.jit, static_argnames=("model", "ends", "num_top"), donate_argnames="state")
def step(
    model: Model, params: dict, state: State, sampling: Sampling, ends: tuple[int, ...], num_top: int, ctx: Context
) -> tuple[State, Choice]:
    """Read each row's last token, choose the next one and write it down."""
    hidden, cache = read_last(model, params, state.cache, state.history, ctx)
    state = state.replace(cache=cache, hidden=hidden)
    return _write(model, params, state, sampling, ends, num_top, ctx)


def read_last(
    model: Model, params: dict, cache: Cache, history: History, ctx: Context
) -> tuple[Float[Array, "rows width"], Cache]:
    """Read each row's last token."""
    last = jnp.take_along_axis(history.tokens, history.length[:, None] - 1, axis=1)
    hidden, cache, _ = extend(model, params, cache, last, ctx=ctx)
    return hidden[:, 0], cache


def _write(
    model: Model, params: dict, state: State, sampling: Sampling, ends: tuple[int, ...], num_top: int, ctx: Context
) -> tuple[State, Choice]:
    logits = model.unembed(params, state.hidden, ctx=ctx).astype(jnp.float32)
    token = choose(process(logits, sampling, state.history, ends), sampling, state.history)
    choice = Choice(token, *_logprobs(logits, token, num_top))
    return state.replace(history=state.history.followed_by(token)), choice


def _logprobs(logits: Array, token: Array, num_top: int) -> tuple[Array, tuple[Array, Array] | None]:
    total = jax.nn.logsumexp(logits, -1)
    logprob = jnp.take_along_axis(logits, token[:, None], -1)[:, 0] - total
    if not num_top:
        return logprob, None
    values, tokens = jax.lax.top_k(logits, num_top)
    return logprob, (tokens, values - total[:, None])


def repeated(state: State, times: int) -> State:
    """Each row `times` times in succession. What is remembered of a source is not repeated: these rows share it."""
    cache = state.cache
    apart = state.replace(cache=cache.replace(memory=None, memory_valid=None))
    repeated = jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), apart)
    return repeated.replace(cache=repeated.cache.replace(memory=cache.memory, memory_valid=cache.memory_valid))
