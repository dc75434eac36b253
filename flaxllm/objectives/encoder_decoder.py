"""What encoder-decoders learn from: a source, and a target whose every token is predicted from the source and those before it
(teacher forcing: Williams and Zipser 1989; Vaswani et al. 2017, section 3.1; Raffel et al. 2020, section 3.1.2)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flaxllm.data import Tokenizer
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives.labelled import check_head
from flaxllm.objectives.objective import Batch, Item, Judge, Objective, Term
from flaxllm.objectives.vocabulary import vocabulary_terms

SourceAndTarget = tuple[np.ndarray, np.ndarray]


def teacher_forced(
    model: Model,
    tokenizer: Tokenizer | None,
    max_len: int,
    max_target_len: int,
    *,
    items: Callable[[Any], Sequence[Item]],
    pair: Callable[[Item, np.random.Generator], SourceAndTarget],
    z_loss: float,
    label_smoothing: float,
    max_logit_bytes: int,
    fields: tuple[str, ...] = (),
    judge: Judge | None = None,
) -> Objective:
    """The objective whose examples are the sources and targets that `pair` makes, both int32 and as they are: a target ends
    with its end-of-text token.

    Batches hold `tokens`, `segments` and `positions` of the sources, `[batch, max_len]`; of the targets, `[batch,
    max_target_len]`, `decoder_targets`, `decoder_weights`, `decoder_tokens` (the targets one place late, begun with the
    model's start token), `decoder_segments` and `decoder_positions`; and `row`.

    Raises:
      InputError: the model has no encoder, or ends its texts with another token than the tokenizer.
    """
    check_head(model, "seq2seq-lm", "learning from sources and targets")
    if tokenizer is not None:
        _check_end(model, tokenizer)

    def terms(params: dict, batch: Batch, ctx: Context) -> dict[str, Term]:
        where = {f"{of}{name}": batch[f"{of}{name}"] for of in ("", "decoder_") for name in ("segments", "positions")}
        hidden = model.apply(params, batch["tokens"], batch["decoder_tokens"], **where, ctx=ctx).hidden
        targets, weights = batch["decoder_targets"], batch["decoder_weights"]
        return vocabulary_terms(model, params, hidden, targets, weights, ctx, z_loss, label_smoothing, max_logit_bytes)

    def example(item: Item, rng: np.random.Generator) -> dict[str, np.ndarray]:
        source, target = pair(item, rng)
        return {
            "tokens": source,
            "decoder_tokens": np.array([model.config.decoder_start_token, *target[:-1]], np.int32),
            "decoder_targets": target,
            "decoder_weights": np.ones(len(target), np.float32),
        }

    target = np.zeros(max_target_len, np.int32)
    return Objective(
        terms=terms,
        weights=lambda batch: {"loss": batch["decoder_weights"].sum()},
        items=items,
        example=example,
        empty_row={
            "tokens": np.zeros(max_len, np.int32),
            "decoder_tokens": target,
            "decoder_targets": target,
            "decoder_weights": target.astype(np.float32),
        },
        fields=fields,
        judge=judge,
    )


def ended(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """The tokens and the end of the text, int32."""
    return np.append(tokens, tokenizer.end_of_text).astype(np.int32)


def _check_end(model: Model, tokenizer: Tokenizer) -> None:
    end, own = tokenizer.end_of_text, model.config.eos_token
    if end is None:
        raise InputError("the tokenizer has no end-of-text token, by which a target ends: use one that has it, such as T5's")
    if end != own and end not in (own if isinstance(own, tuple) else ()):
        raise InputError(f"the model ends its texts with token {own}, and the tokenizer with {end}: set model.eos_token to {end}")
