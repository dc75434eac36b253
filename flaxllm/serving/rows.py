"""The rows of a server on the device: a fixed number of texts being written, of which each step writes a token more.

A prompt is read by itself, in pieces of few lengths so that few programs are compiled, all but its last token: that is read
by the step that writes the first new one. An encoder-decoder reads its source at once, filled up to one of few lengths. Then
the row is put among the others as a whole, so nothing of its former text is left. A row at rest computes as the others do,
and its length stays.
"""

from functools import partial
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from flaxllm import nn
from flaxllm.decoding import engine, sampling
from flaxllm.decoding.engine import Choice, State
from flaxllm.decoding.processors import History
from flaxllm.decoding.reading import empty_cache, has_encoder, with_source
from flaxllm.decoding.sampling import UNUSED, Sampling
from flaxllm.models import Model
from flaxllm.nn import Context

WIDTHS = (512, 64, 16)  # tokens that are read at a time
LEAST = WIDTHS[-1]
SOURCE_WIDTHS = (16, 64, 256)  # and as many as a source may have
MAX_BIASES = 512
NUM_TOP = 20
PLAIN = ("temperature",)
FULL = ("logit_bias", "presence_penalty", "frequency_penalty", "temperature", "top_p")
_SCORED_AT_A_TIME = 128  # tokens whose logits are in memory at once


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class Rows(struct.PyTreeNode):
    """Texts being written, and how the tokens of each are chosen."""

    state: State
    settings: Sampling


def empty_rows(model: Model, params: dict, count: int, slots: int, ctx: Context) -> Rows:
    """Rows that have read nothing, for texts of up to `slots` tokens, and for sources of as many."""
    dtype = ctx.compute_dtype or params["embedding"]["tokens"].dtype
    cache = empty_cache(model, count, slots, dtype)
    if has_encoder(model):
        sources = jnp.zeros((count, slots), jnp.int32)
        shapes = jax.eval_shape(partial(with_source, model), params, cache, sources, sources > 0)
        cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    history = History(jnp.zeros((count, slots), jnp.int32), jnp.ones(count, jnp.int32), jnp.ones(count, jnp.int32))
    state = State(cache, jnp.zeros((count, model.config.d_model), dtype), history)
    settings = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), row_settings(temperature=0))
    return Rows(state, settings.replace(used=FULL))


def row_settings(seed: int = 0, **options: object) -> Sampling:
    """The settings of one row, of which all rows have the same shapes.

    Raises:
      InputError: as `sampling`.
    """
    settings = sampling(1, seeds=seed, **options)
    pad = ((0, 0), (0, MAX_BIASES - settings.bias_tokens.shape[1]))
    return settings.replace(
        bias_tokens=np.pad(settings.bias_tokens, pad, constant_values=UNUSED), bias_values=np.pad(settings.bias_values, pad)
    )


def with_prompt(state: State, prompt: Int[np.ndarray, "prompt"], read: int, settings: Sampling) -> Rows:
    """A single row that is to write after a prompt, of which it holds the first `read` tokens."""
    tokens = np.zeros(state.history.tokens.shape, np.int32)
    tokens[0, : len(prompt)] = prompt
    length = np.array([len(prompt)], np.int32)
    cache = state.cache.replace(length=np.array([read], np.int32))
    return Rows(state.replace(cache=cache, history=History(tokens, length, length)), settings.replace(used=FULL))


def read_piece(
    model: Model, params: dict, one: Rows, prompt: Int[np.ndarray, "prompt"], begin: int, ctx: Context
) -> tuple[Rows, int]:
    """A single row that has read some more of its prompt, from `begin` on, and where it goes on. Its state is used up."""
    slots = one.state.history.tokens.shape[1]
    left = len(prompt) - begin
    width = next((width for width in WIDTHS if width <= left), min(LEAST, slots))
    count = min(left, width)
    tokens = np.zeros((1, width), np.int32)
    tokens[0, :count] = prompt[begin : begin + count]
    state = engine.read(model, params, one.state, tokens, np.array([count], np.int32), begin == 0, ctx)
    return one.replace(state=state), begin + count


def read_source(model: Model, params: dict, one: Rows, source: Int[np.ndarray, "source"], ctx: Context) -> tuple[Rows, int]:
    """A single row whose decoder will look at a source, and as how many tokens that was read. Its state is used up."""
    slots = one.state.history.tokens.shape[1]
    width = min([width for width in SOURCE_WIDTHS if len(source) <= width], default=slots)
    tokens = np.zeros((1, min(width, slots)), np.int32)
    tokens[0, : len(source)] = source
    valid = np.arange(tokens.shape[1])[None] < len(source)
    return one.replace(state=_with_source(model, params, one.state, tokens, valid, ctx)), tokens.shape[1]


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def _with_source(
    model: Model, params: dict, state: State, source: Int[Array, "1 source"], valid: Bool[Array, "1 source"], ctx: Context
) -> State:
    cache = with_source(model, params, state.cache, source, valid, ctx)
    # The places beyond are those of another source, which are not valid.
    filled = jax.tree.map(lambda old, new: jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0,) * old.ndim),
                          state.cache.memory, cache.memory)  # fmt: skip
    beyond = state.cache.memory_valid.shape[1] - source.shape[1]
    return state.replace(cache=cache.replace(memory=filled, memory_valid=jnp.pad(valid, ((0, 0), (0, beyond)))))


@partial(jax.jit, donate_argnames="rows")
def put(rows: Rows, one: Rows, row: Int[Array | np.ndarray, ""]) -> Rows:
    """The rows with a single one in place of row number `row`."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y.astype(x.dtype), row, 0), rows, one)


@jax.jit
def take(state: State, row: Int[Array | np.ndarray, ""]) -> State:
    """One of the rows by itself."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1), state)


@partial(jax.jit, static_argnames=("model", "num_top"), donate_argnames="state")
def step(
    model: Model,
    params: dict,
    state: State,
    settings: Sampling,
    active: Bool[Array | np.ndarray, "rows"],
    num_top: int,
    ctx: Context,
) -> tuple[State, Choice]:
    """A token more for each active row."""
    read, written = state.cache.length, state.history.length
    state, choice = engine.step(model, params, state, settings, (), num_top, ctx)
    cache = state.cache.replace(length=jnp.where(active, state.cache.length, read))
    history = state.history.replace(length=jnp.where(active, state.history.length, written))
    return state.replace(cache=cache, history=history), choice


def score(
    model: Model, params: dict, tokens: Int[np.ndarray, "length"], num_top: int, ctx: Context
) -> tuple[Float[np.ndarray, "scored"], Int[np.ndarray, "scored k"], Float[np.ndarray, "scored k"]]:
    """The log probability of each token of a text but its first, and the likeliest tokens in its place and theirs."""
    width = max(LEAST, 1 << (len(tokens) - 1).bit_length())
    width = min(width, model.config.max_len) if model.family == "gpt" else width
    padded = np.zeros(width, np.int32)
    padded[: len(tokens)] = tokens
    scored = _score(model, params, padded, num_top, ctx)
    return tuple(np.asarray(x)[: len(tokens) - 1] for x in scored)


@partial(jax.jit, static_argnames=("model", "num_top"))
def _score(
    model: Model, params: dict, tokens: Int[Array | np.ndarray, "length"], num_top: int, ctx: Context
) -> tuple[Float[Array, "length"], Int[Array, "length k"], Float[Array, "length k"]]:
    hidden = model.apply(params, tokens[None], ctx=ctx).hidden[0]

    def score_part(part: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        hidden, token = part
        logprobs = jax.nn.log_softmax(model.unembed(params, hidden, ctx=ctx).astype(jnp.float32))
        values, likeliest = jax.lax.top_k(logprobs, num_top)
        return jnp.take_along_axis(logprobs, token[:, None], 1)[:, 0], likeliest, values

    return nn.map_parts(score_part, (hidden, jnp.roll(tokens, -1)), _SCORED_AT_A_TIME)
