"""Speculative decoding: a small model guesses some tokens ahead, and the model that writes checks them in one reading.

What is written is distributed as without the guesses (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2). A
guess `x`, drawn from the draft's `q`, is accepted with the probability `min(1, p(x) / q(x))`; in place of the first one that
is not, a token is drawn from the positive part of `p - q`, and after the last one, if all are accepted, one from `p`. Here `p`
and `q` are what the settings of sampling make of both models' logits, each at its own place in the text.

Guesses, and the token after all of them, are drawn as `generate` draws that token: with a draft that is the model itself, one
seed writes one text either way.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from flaxllm.decoding.engine import State, read_last
from flaxllm.decoding.processors import History
from flaxllm.decoding.reading import check_writes, extend, has_encoder
from flaxllm.decoding.sampling import UNUSED, Sampling, choose, process
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.nn import Cache, Context

_CORRECTING, _ACCEPTING = UNUSED, UNUSED - 1  # draws of their own: no text has so many tokens


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class Checked(struct.PyTreeNode):
    """What a round has written, the first `count` tokens of each row, and the model's own log probabilities of them. Of the
    guesses, the first `accepted` were."""

    tokens: Int[Array, "rows token"]
    logprobs: Float[Array, "rows token"]
    count: Int[Array, "rows"]
    accepted: Int[Array, "rows"]


def check_draft(model: Model, draft: Model, num_guesses: int) -> None:
    """Raise InputError if `draft` cannot guess what `model` writes."""
    check_writes(draft)
    if has_encoder(draft) != has_encoder(model):
        raise InputError(
            f"a {draft.family} model cannot be the draft of a {model.family} model, as only one of them has an encoder: take "
            "a draft that reads what the model reads"
        )
    if _vocabularies(draft) != _vocabularies(model):
        raise InputError(
            f"the draft has a vocabulary of {draft.config.vocab_size} tokens and the model one of {model.config.vocab_size}: "
            "take a draft that was made with the model's tokenizer"
        )
    if num_guesses < 1:
        raise InputError(f"num_draft_tokens={num_guesses}: expected 1 or more, or no draft")


def _vocabularies(model: Model) -> tuple[int, int | None]:
    return model.config.vocab_size, getattr(model.config, "source_vocab_size", None)


def rounds(
    model: Model,
    params: dict,
    state: State,
    draft_model: Model,
    draft_params: dict,
    draft_state: State,
    sampling: Sampling,
    ends: tuple[int, ...],
    num_new: int,
    num_guesses: int,
    ctx: Context,
) -> Iterator[Checked]:
    """Write on, for as long as asked: a round adds 1 to `num_guesses + 1` tokens to each row, and none to those that have
    `num_new`. The states are fresh ones that have read the same prompts, with a slack of `num_guesses`."""
    cache, draft_cache, history = state.cache, draft_state.cache, state.history
    plain = ctx.replace(taps=None)  # which are the model's
    while True:
        draft_cache, history, q = guess(draft_model, draft_params, draft_cache, history, sampling, ends, num_guesses, plain)
        cache, history, checked = check(model, params, cache, history, q, sampling, ends, num_new, ctx)
        yield checked


@partial(jax.jit, static_argnames=("model", "ends", "count"), donate_argnames=("cache", "history"))
def guess(
    model: Model,
    params: dict,
    cache: Cache,
    history: History,
    sampling: Sampling,
    ends: tuple[int, ...],
    count: int,
    ctx: Context,
) -> tuple[Cache, History, Float[Array, "rows count vocab"]]:
    """The draft writes `count` tokens more and reads them: the history with them, and what each was drawn from."""

    def guess_one(rows: tuple[Cache, History], _: None) -> tuple[tuple[Cache, History], Array]:
        cache, history = rows
        hidden, cache = read_last(model, params, cache, history, ctx)
        logits = process(model.unembed(params, hidden, ctx=ctx), sampling, history, ends)
        history = history.followed_by(choose(logits, sampling, history))
        return (cache, history), _probabilities(logits, sampling)

    cache = cache.replace(length=history.length - 1)  # what was guessed in vain is taken back
    (cache, history), q = jax.lax.scan(guess_one, (cache, history), length=count)
    return read_last(model, params, cache, history, ctx)[1], history, jnp.einsum("cbv->bcv", q)


@partial(jax.jit, static_argnames=("model", "ends"), donate_argnames=("cache", "history"))
def check(
    model: Model,
    params: dict,
    cache: Cache,
    history: History,
    q: Float[Array, "rows count vocab"],
    sampling: Sampling,
    ends: tuple[int, ...],
    num_new: Int[Array, ""] | int,
    ctx: Context,
) -> tuple[Cache, History, Checked]:
    """Read the guesses at the end of the history, drawn from `q`, and keep what is accepted of them and a token more."""
    count = q.shape[1]
    begin = history.length - count
    places = begin[:, None] + jnp.arange(count + 1)  # in the text: those of the guesses and the one after them
    tokens = jnp.take_along_axis(history.tokens, places - 1, axis=1)
    hidden, cache, _ = extend(model, params, cache.replace(length=begin - 1), tokens, ctx=ctx)
    logits = model.unembed(params, hidden, ctx=ctx).astype(jnp.float32)
    process_at = jax.vmap(lambda logits, place: process(logits, sampling, history.replace(length=place), ends), 1, 1)
    p = _probabilities(process_at(logits, places), sampling)

    of_guess_p, of_guess_q = (jnp.take_along_axis(x[:, :count], tokens[:, 1:, None], axis=2)[..., 0] for x in (p, q))
    chances = _uniform(sampling, places[:, :count] - history.prompt_length[:, None])
    accepted = jnp.cumprod(chances * of_guess_q < of_guess_p, axis=1).sum(axis=1)

    q = jnp.pad(q, ((0, 0), (0, 1), (0, 0)))  # where all are accepted, there is nothing to correct
    here_p, here_q = (jnp.take_along_axis(x, accepted[:, None, None], axis=1)[:, 0] for x in (p, q))
    rest = jnp.maximum(here_p - here_q, 0)
    rest = jnp.where(rest.any(axis=1, keepdims=True), rest, here_p)  # nothing is left where p and q differ by rounding only
    keys = jnp.where((accepted == count)[:, None], sampling.key, _apart(sampling, _CORRECTING))
    written = history.replace(length=begin + accepted)
    written = written.followed_by(choose(jnp.log(rest), sampling.replace(key=keys), written))
    written = written.replace(length=jnp.minimum(written.length, history.prompt_length + num_new))

    tokens = jnp.take_along_axis(written.tokens, places, axis=1)
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=2)[..., 0]
    return cache, written, Checked(tokens, logprobs, written.length - begin, accepted)


def _probabilities(logits: Float[Array, "rows *place vocab"], sampling: Sampling) -> Float[Array, "rows *place vocab"]:
    """What `choose` draws from."""
    greedy = (sampling.temperature == 0).reshape(-1, *[1] * (logits.ndim - 1))
    return jnp.where(greedy, jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1]), jax.nn.softmax(logits))


def _uniform(sampling: Sampling, written: Int[Array, "rows count"]) -> Float[Array, "rows count"]:
    """A number from 0 to 1 for each row and for each number of tokens that it has written."""
    keys = jax.random.wrap_key_data(_apart(sampling, _ACCEPTING), impl="threefry2x32")
    draw = jax.vmap(lambda key, written: jax.random.uniform(jax.random.fold_in(key, written)), (None, 0))
    return jax.vmap(draw)(keys, written)


def _apart(sampling: Sampling, number: int) -> Array:
    """Keys with draws that are independent of those of the sampling's own."""
    keys = jax.random.wrap_key_data(sampling.key, impl="threefry2x32")
    return jax.random.key_data(jax.vmap(lambda key: jax.random.fold_in(key, number))(keys))


def write(
    rounds: Iterator[Checked],
    num_new: int,
    num_guesses: int,
    take: Callable[[np.ndarray, np.ndarray], object],
    done: Bool[np.ndarray, "rows"],
) -> float:
    """Hand out up to `num_new` tokens of each row: `take` gets the next one of all rows, and their log probabilities, and says
    in `done` which rows have ended. A row that is ahead waits for the others, so that the order is always the same.

    Returns the share of the guesses that were accepted, among those that were checked: all up to the first that was not.
    """
    tokens, logprobs = np.zeros((len(done), num_new), np.int32), np.zeros((len(done), num_new), np.float32)
    written, checked, accepted = np.zeros(len(done), int), 0, 0
    under_way: list[Checked] = []
    for place in range(num_new):
        while (~done & (written <= place)).any():
            # A round that is needed whatever comes of this one begins before the host looks at it.
            another = (~done & (written + num_guesses + 1 < num_new)).any()
            while len(under_way) <= another:
                under_way.append(next(rounds))
            block = jax.device_get(under_way.pop(0))
            rows, columns = np.nonzero(np.arange(num_guesses + 1) < block.count[:, None])
            tokens[rows, written[rows] + columns] = block.tokens[rows, columns]
            logprobs[rows, written[rows] + columns] = block.logprobs[rows, columns]
            checked += np.minimum(block.count, num_guesses)[~done].sum()
            accepted += np.minimum(block.count, block.accepted)[~done].sum()
            written += block.count
        take(tokens[:, place], logprobs[:, place])
        if done.all():
            break
    return float(accepted / checked)
