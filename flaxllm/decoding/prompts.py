"""Prompts as they are given, and as rows that a model has read."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Int

from flaxllm.decoding import engine
from flaxllm.decoding.reading import has_encoder, most_positions
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.nn import Context

Prompts = Int[Array | np.ndarray, "batch prompt"] | Sequence[Sequence[int] | Int[np.ndarray, "_"]]


def as_rows(model: Model, tokens: Prompts, valid: Bool[Array | np.ndarray, "batch prompt"] | None = None) -> list[np.ndarray]:
    """Prompts as one array of token ids each, without their padding.

    Raises:
      InputError: no prompts, an empty one, or ids that the model's vocabulary has not.
    """
    valid = [None] * len(tokens) if valid is None else np.asarray(valid)
    rows = [np.asarray(row)[slice(None) if kept is None else kept] for row, kept in zip(tokens, valid)]
    if not rows:
        raise InputError("generate got no prompt: give it one row of tokens or more")
    for number, row in enumerate(rows):
        if row.size == 0:
            raise InputError(
                f"prompt {number} is empty: begin it with a token, such as the tokenizer's beginning- or end-of-text token"
            )
        if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer):
            raise InputError(f"prompt {number} is no row of token ids: got an array of {row.dtype} of shape {row.shape}")
        size = getattr(model.config, "source_vocab_size", None) or model.config.vocab_size
        if row.min() < 0 or row.max() >= size:
            wrong = next(int(token) for token in row if not 0 <= token < size)
            raise InputError(f"prompt {number} has the token {wrong}, and this model's vocabulary has {size}")
    return rows


def end_tokens(model: Model) -> tuple[int, ...]:
    """The tokens by which the model's config says that a text ends."""
    ends = model.config.eos_token
    return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)


def begin(
    model: Model, params: dict, prompts: list[np.ndarray], num_new: int, slack: int = 0, ctx: Context = Context()
) -> engine.State:
    """The state of rows that have read these prompts (an encoder-decoder's sources), for prepared parameters.

    Raises:
      InputError: prompts and new tokens are more than the model has positions for.
    """
    longest = max(map(len, prompts))
    limit = most_positions(model)
    if limit is not None and longest + num_new + slack > limit:
        guesses = f" and {slack} guesses" if slack else ""
        raise InputError(
            f"a prompt of {longest} tokens and {num_new} new ones{guesses} are more than the {limit} positions of this model: "
            "cut the prompt, or ask for fewer"
        )
    if not has_encoder(model):
        return engine.start(model, params, prompts, num_new, slack=slack, ctx=ctx)
    width = engine.bucket(longest)
    source = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        source[row, : len(prompt)] = prompt
    valid = np.arange(width) < np.array([[len(prompt)] for prompt in prompts])
    starts = [np.array([model.config.decoder_start_token])] * len(prompts)
    return engine.start(model, params, starts, num_new, (source, valid), slack, ctx)


def filler(model: Model, ends: tuple[int, ...]) -> int:
    """What stands after a text's end."""
    pad = model.config.pad_token
    return pad if pad is not None else ends[0] if ends else 0
