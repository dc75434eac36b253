"""Beam search: at every token, go on with the few texts that are likeliest so far (Sutskever et al. 2014, sec. 3.2).

Which texts count as finished, their scores and when to stop are as transformers has them (`generation/utils.py`,
`_beam_search`). All of it happens on the device, and lengths, penalties and rules are data there.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from flaxllm.data.tokenizers import Tokenizer
from flaxllm.decoding import engine
from flaxllm.decoding.generated import Generated
from flaxllm.decoding.prepare import prepare
from flaxllm.decoding.prompts import Prompts, as_rows, begin, end_tokens, filler
from flaxllm.decoding.reading import check_writes
from flaxllm.decoding.sampling import PROCESSORS, TRUNCATING, Sampling, process, sampling
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.nn import Context

OPTIONS = tuple(name for name in PROCESSORS if name not in ("temperature", *TRUNCATING))
NONE = -1e9  # the score of a text that there is not


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class Rules(struct.PyTreeNode):
    """`first_suffice`: the first texts that finish are taken. `hopes`: a beam is given up only if it could not win by being
    `num_new` tokens long; else what it would be worth if it ended now decides."""

    num_new: Int[Array, ""]
    length_penalty: Float[Array, ""]
    first_suffice: Bool[Array, ""]
    hopes: Bool[Array, ""]


@no_type_check
class Texts(struct.PyTreeNode):
    """Texts of each prompt, with it, the best first. `length` is 0 where there is none."""

    score: Float[Array, "prompts texts"]
    length: Int[Array, "prompts texts"]
    tokens: Int[Array, "prompts texts width"]
    logprobs: Float[Array, "prompts texts width"]

    def best(self, count: int) -> "Texts":
        places = jax.lax.top_k(self.score, count)[1]
        return jax.tree.map(lambda x: _pick(x, places), self)


@no_type_check
class Beams(struct.PyTreeNode):
    """`state` has a row for each beam, those of a prompt in succession, the best first. `score` is the sum of the processed
    log probabilities, and `logprobs` are the model's own. `open`: a beam may still do better than what is finished."""

    state: engine.State
    score: Float[Array, "prompts beams"]
    logprobs: Float[Array, "rows width"]
    finished: Texts
    open: Bool[Array, "prompts"]


def beam_search(
    model: Model,
    params: dict,
    tokens: Prompts,
    max_new_tokens: int = 64,
    *,
    valid: Bool[Array | np.ndarray, "batch prompt"] | None = None,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    n: int = 1,
    stop_tokens: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    ctx: Context = Context(),  # noqa: B008 (frozen)
    **options: object,
) -> Generated:
    """The `n` best texts of each prompt that `num_beams` beams find, best first, and their `scores`.

    A text's score is the sum of its tokens' log probabilities, after the processors in `options` (of those of `sampling`, by
    name: `repetition_penalty`, `no_repeat_ngram_size`, `min_new_tokens`, `logit_bias`, ...; one value, or one a prompt),
    divided by (number of new tokens) ** `length_penalty`. `early_stopping`: True ends when `num_beams` texts are finished;
    False when no beam would be better than those if it ended at once; "never" when none could be at any length. Prompts,
    `stop_tokens`, `tokenizer` and `params` are as in `generate`.

    Raises:
      InputError: what `generate` raises it for, more texts asked for than there are beams, or an option that is for drawing.
    """
    check_writes(model)
    prompts = as_rows(model, tokens, valid)
    _check(max_new_tokens, num_beams, n, length_penalty, early_stopping, options)
    options = {name: value for name, value in options.items() if name != "temperature"}
    settings = sampling(len(prompts), temperature=0, vocab_size=model.config.vocab_size, **options)
    settings = jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), settings)
    rules = Rules(
        jnp.int32(max_new_tokens),
        jnp.float32(length_penalty),
        jnp.asarray(early_stopping is True),
        jnp.asarray(early_stopping == "never" and length_penalty > 0),
    )
    ends = end_tokens(model) if stop_tokens is None else tuple(stop_tokens)
    params = prepare(model, params)
    beams = _beams(begin(model, params, prompts, max_new_tokens, ctx=ctx), num_beams)
    starts = np.asarray(beams.state.history.prompt_length)[::num_beams]
    done = False
    for number in range(max_new_tokens):
        beams, done_next = step(model, params, beams, settings, rules, ends, number == 0, ctx)
        if done:  # looked at a step late, so that the device never waits; a step more changes nothing
            break
        done = done_next
    return _generated(jax.device_get(beams.finished), starts, n, ends, filler(model, ends), tokenizer)


@partial(jax.jit, static_argnames=("model", "ends", "first"), donate_argnames="beams")
def step(
    model: Model,
    params: dict,
    beams: Beams,
    settings: Sampling,
    rules: Rules,
    ends: tuple[int, ...],
    first: bool,
    ctx: Context,
) -> tuple[Beams, Bool[Array, ""]]:
    """Read each beam's last token (the prompts' have been, at first), go on with the best, and say whether all is done."""
    state, num_beams = beams.state, beams.score.shape[1]
    if not first:
        hidden, cache = engine.read_last(model, params, state.cache, state.history, ctx)
        state = state.replace(cache=cache, hidden=hidden)
        beams = beams.replace(state=state)
    logprobs = jax.nn.log_softmax(model.unembed(params, state.hidden, ctx=ctx).astype(jnp.float32))
    texts, rows = _continued(beams, process(logprobs, settings, state.history, ends), logprobs, len(ends))

    written = state.history.written[0] + 1
    last = jnp.take_along_axis(texts.tokens, texts.length[..., None] - 1, axis=2)[..., 0]
    ended = jnp.isin(last, jnp.array(ends, jnp.int32)) | (written == rules.num_new)
    beams = _going_on(beams.replace(state=state), texts, rows, ended)

    full = (beams.finished.length > 0).all(axis=1)
    counted = ended & (jnp.arange(ended.shape[1]) < num_beams) & (beams.open & ~(full & rules.first_suffice))[:, None]
    score = jnp.where(counted, texts.score / _penalty(written, rules), NONE)
    texts = texts.replace(score=score, length=jnp.where(counted, texts.length, 0))
    finished = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), beams.finished, texts).best(num_beams)

    hoped = beams.score[:, 0] / _penalty(jnp.where(rules.hopes, rules.num_new, written), rules)
    beams = beams.replace(finished=finished, open=beams.open & (hoped > finished.score.min(axis=1)))
    full = (finished.length > 0).all()
    return beams, ~beams.open.any() | (full & rules.first_suffice)


def _beams(state: engine.State, num_beams: int) -> Beams:
    """The beams at their start: all but the first of a prompt are kept from being continued, as they are the same."""
    prompts, width = state.history.tokens.shape
    none = Texts(
        score=jnp.full((prompts, num_beams), NONE),
        length=jnp.zeros((prompts, num_beams), jnp.int32),
        tokens=jnp.zeros((prompts, num_beams, width), jnp.int32),
        logprobs=jnp.zeros((prompts, num_beams, width)),
    )
    score = jnp.full((prompts, num_beams), NONE).at[:, 0].set(0.0)
    logprobs = jnp.zeros((prompts * num_beams, width))
    return Beams(engine.repeated(state, num_beams), score, logprobs, none, jnp.ones(prompts, bool))


def _continued(
    beams: Beams, gains: Float[Array, "rows vocab"], logprobs: Float[Array, "rows vocab"], num_ends: int
) -> tuple[Texts, Int[Array, "prompts texts"]]:
    """The best texts of one token more, so many that enough beams remain if others end; and the row that each comes from."""
    prompts, num_beams = beams.score.shape
    vocab, history = gains.shape[1], beams.state.history
    total = beams.score[..., None] + gains.reshape(prompts, num_beams, vocab)
    score, best = jax.lax.top_k(total.reshape(prompts, num_beams * vocab), max(2, 1 + num_ends) * num_beams)
    rows, tokens = jnp.arange(prompts)[:, None] * num_beams + best // vocab, best % vocab
    place = (jnp.arange(prompts)[:, None], jnp.arange(best.shape[1]), history.length[rows])
    texts = Texts(
        score=score,
        length=history.length[rows] + 1,
        tokens=history.tokens[rows].at[place].set(tokens),
        logprobs=beams.logprobs[rows].at[place].set(logprobs[rows, tokens]),
    )
    return texts, rows


def _going_on(beams: Beams, texts: Texts, rows: Int[Array, "prompts texts"], ended: Bool[Array, "prompts texts"]) -> Beams:
    """The beams that are the best texts which have not ended."""
    score, places = jax.lax.top_k(texts.score + jnp.where(ended, NONE, 0), beams.score.shape[1])
    chosen, rows = jax.tree.map(lambda x: _pick(x, places), texts), _pick(rows, places).ravel()
    state, width = beams.state, texts.tokens.shape[2]
    history = state.history.replace(tokens=chosen.tokens.reshape(-1, width), length=chosen.length.ravel())
    layers = jax.tree.map(lambda x: x[rows], state.cache.layers)
    state = state.replace(cache=state.cache.replace(layers=layers), history=history)
    return beams.replace(state=state, score=score, logprobs=chosen.logprobs.reshape(-1, width))


def _pick(x: Array, places: Int[Array, "prompts texts"]) -> Array:
    return x[jnp.arange(len(x))[:, None], places]


def _penalty(length: Int[Array, ""], rules: Rules) -> Float[Array, ""]:
    return length.astype(jnp.float32) ** rules.length_penalty


def _generated(
    texts: Texts, starts: np.ndarray, n: int, ends: tuple[int, ...], filler: int, tokenizer: Tokenizer | None
) -> Generated:
    best = jax.tree.map(lambda x: x[:, :n].reshape(-1, *x.shape[2:]), texts)
    starts = np.repeat(starts, n)
    lengths = np.maximum(best.length - starts, 0)
    places = np.arange(lengths.max())
    written, from_start = places < lengths[:, None], np.minimum(starts[:, None] + places, best.tokens.shape[1] - 1)
    tokens, logprobs = (np.take_along_axis(x, from_start, axis=1) for x in (best.tokens, best.logprobs))
    rows = [row[:length].tolist() for row, length in zip(tokens, lengths)]
    return Generated(
        np.where(written, tokens, filler),
        lengths,
        np.where(written, logprobs, np.float32(0)),
        tuple("stop" if row and row[-1] in ends else "length" for row in rows),
        tuple(tokenizer.decode(row, skip_special=True) for row in rows) if tokenizer else None,
        best.score,
    )


def _check(max_new_tokens: int, num_beams: int, n: int, length_penalty: float, early_stopping: bool | str, options: dict) -> None:
    if max_new_tokens < 1 or not 1 <= n <= num_beams:
        raise InputError(
            f"beam search was asked for {max_new_tokens} new tokens and the {n} best texts of {num_beams} beams: ask for 1 "
            "token and text or more, and no more texts than beams"
        )
    if not math.isfinite(length_penalty):
        raise InputError(f"length_penalty={length_penalty}: expected a finite number (0 for none; above 0 favours longer texts)")
    if early_stopping not in (True, False, "never"):
        raise InputError(f"early_stopping={early_stopping!r}: expected True, False or 'never'")
    if not np.isin(options.get("temperature", 0), (0, 1)).all():
        raise InputError(f"temperature={options['temperature']}: beam search draws nothing, so leave it out, or set num_beams=1")
    wrong = next((name for name in options if name not in ("temperature", *OPTIONS)), None)
    if wrong is not None:
        raise InputError(
            f"beam search has no option {wrong!r}: it draws nothing and tells of nothing before its end; it takes "
            f"{', '.join(OPTIONS)}; leave {wrong!r} out, or set num_beams=1"
        )
