"""Writing text after prompts."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Array, Bool

from flaxllm.data.tokenizers import Tokenizer
from flaxllm.decoding import engine, speculative
from flaxllm.decoding.beam_search import beam_search
from flaxllm.decoding.generated import Generated, Writing
from flaxllm.decoding.prepare import prepare
from flaxllm.decoding.prompts import Prompts, as_rows, begin, end_tokens, filler
from flaxllm.decoding.reading import check_writes, has_encoder
from flaxllm.decoding.sampling import Sampling, sampling
from flaxllm.decoding.text import TextStream
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models import Model
from flaxllm.nn import Context, Key

SETTINGS = frozenset(inspect.signature(sampling).parameters) - {"batch", "seeds", "vocab_size"}

def generate(
    model: Model,
    params: dict,
    tokens: Prompts,
    max_new_tokens: int = 64,
    *,
    valid: Bool[Array | np.ndarray, "batch prompt"] | None = None,
    n: int = 1,
    num_beams: int = 1,
    key: Key | None = None,
    seeds: Sequence[int] | None = None,
    stop_tokens: Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    on_token: Callable[[int, int], object] | None = None,
    on_text: Callable[[int, str], object] | None = None,
    draft: tuple[Model, dict] | None = None,
    num_draft_tokens: int = 4,
    ctx: Context = Context(),  # noqa: B008 (frozen)
    **options: object,
) -> Generated:
    """Write up to `max_new_tokens` tokens after each prompt (for an encoder-decoder: as the target of each source).

    `tokens` are rows of one length, with `valid` False at padding on whichever side, or lists of any lengths. `options` are
    those of `sampling` by name: `temperature` (1; 0 takes the likeliest token), `top_k`, `top_p` and so on, each one number
    or one a sequence. Each prompt is continued `n` times. A sequence's draws depend on its own seed only: its entry in
    `seeds`, or one drawn from `key` by its number. It ends with one of `stop_tokens`, which are the model's end-of-text
    tokens unless given, or once its text has one of the strings `stop`. `on_token(sequence, token)` is told of every token
    as it comes, `on_text(sequence, piece)` of the text that they make; both strings and texts need the tokenizer.
    With `num_beams` above 1 nothing is drawn: `beam_search` says what `n` and `options` are then.
    A `draft`, a small model of the same vocabulary and its parameters, makes it faster: it guesses `num_draft_tokens` at a
    time, and the model checks them in one reading. What is written has the same distribution (see `speculative`).

    `params` may be prepared: `flaxllm.prepare` spares every later call the time and memory of doing it here.
    The context's taps may change the model's values while it writes (`added` steers it, say); their data broadcast over
    positions then, which are read a few at a time.

    Raises:
      InputError: an empty prompt, tokens beyond the vocabulary or the model's `max_len`, draws without a key or seeds, an
        unknown option or a value out of its range, a model that writes no text, a draft that does not go with it, or taps
        that are to be returned.
    """
    if ctx.taps is not None and ctx.taps.returned:
        raise InputError(
            f"generate returns no taps, and was asked for {ctx.taps.returned[0]!r}: apply the model to the text that it wrote"
        )
    if num_beams != 1:
        others = dict(key=key, seeds=seeds, stop=stop or None, on_token=on_token, on_text=on_text, draft=draft)
        options |= {name: value for name, value in others.items() if value is not None}
        return beam_search(
            model, params, tokens, max_new_tokens, valid=valid, num_beams=num_beams, n=n, stop_tokens=stop_tokens,
            tokenizer=tokenizer, ctx=ctx, **options,
        )  # fmt: skip
    check_writes(model)
    prompts = as_rows(model, tokens, valid)
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if tokenizer is None and (stop or on_text):
        raise InputError("generate needs the tokenizer to know the text: give tokenizer= beside stop= or on_text=")
    if "" in stop:
        raise InputError("generate got an empty stop string, which is everywhere: leave it out")
    wrong = options.keys() - SETTINGS
    if wrong:
        name = min(wrong)
        raise InputError(f"generate has no option {name!r}: {did_you_mean(name, SETTINGS)}")
    if max_new_tokens < 1 or n < 1:
        raise InputError(f"generate was asked for {max_new_tokens} new tokens, {n} times: ask for 1 or more")
    count = len(prompts) * n
    settings = sampling(count, seeds=_seeds(count, key, seeds), vocab_size=model.config.vocab_size, **options)
    ends = end_tokens(model) if stop_tokens is None else tuple(stop_tokens)
    if draft is not None:
        speculative.check_draft(model, draft[0], num_draft_tokens)

    def ready(model: Model, params: dict, ctx: Context) -> tuple[Model, dict, engine.State]:
        params = prepare(model, params)
        state = begin(model, params, prompts, max_new_tokens, 0 if draft is None else num_draft_tokens, ctx)
        return model, params, engine.repeated(state, n) if n > 1 else state

    before = [() if has_encoder(model) else prompt for prompt in prompts for _ in range(n)]
    streams = [TextStream(tokenizer, stop, after=prompt) for prompt in before] if tokenizer else None
    writing = Writing(count, ends, streams, on_token, on_text)
    if draft is None:
        for choice in _choices(*ready(model, params, ctx), settings, ends, max_new_tokens, ctx):
            writing.take(np.asarray(choice.token), np.asarray(choice.logprob))
            if writing.done.all():
                break
        return writing.result(filler(model, ends))
    states = *ready(model, params, ctx), *ready(*draft, ctx.replace(taps=None))
    rounds = speculative.rounds(*states, settings, ends, max_new_tokens, num_draft_tokens, ctx)
    accepted = speculative.write(rounds, max_new_tokens, num_draft_tokens, writing.take, writing.done)
    return replace(writing.result(filler(model, ends)), accepted=accepted)


def _choices(
    model: Model, params: dict, state: engine.State, settings: Sampling, ends: tuple[int, ...], count: int, ctx: Context
) -> Iterator[engine.Choice]:
    """Each step's choices; the next step is under way before the last one's are handed out."""
    state, choice = engine.write(model, params, state, settings, ends, 0, ctx)
    for _ in range(count - 1):
        state, following = engine.step(model, params, state, settings, ends, 0, ctx)
        yield choice
        choice = following
    yield choice


def _seeds(count: int, key: Key | None, seeds: Sequence[int] | None) -> Sequence[int] | np.ndarray | None:
    """A seed for each sequence: those given, or drawn from the key by their numbers."""
    if seeds is not None and key is not None:
        raise InputError("generate got both a key and seeds: give one of them")
    if key is None:
        return seeds
    return np.asarray(jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row)))(np.arange(count)))
