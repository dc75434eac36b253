"""Masked language modelling (Devlin et al. 2019, section 3.1): hidden tokens are told from those on both sides."""

import numpy as np

from flaxllm.data import Documents, Pieces, Tokenizer
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives.labelled import check_head
from flaxllm.objectives.masking import (
    check_rate,
    empty_masked_row,
    hide,
    make_masking,
    masked_terms,
    text_room,
    with_special_tokens,
)  # fmt: skip
from flaxllm.objectives.objective import Batch, Objective, Term
from flaxllm.objectives.texts import texts_of
from flaxllm.objectives.vocabulary import MAX_LOGIT_BYTES


def masked_lm(
    model: Model,
    tokenizer: Tokenizer | None,
    max_len: int,
    *,
    mask_rate: float = 0.15,
    whole_words: bool = False,
    dynamic: bool = True,
    max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> Objective:
    """Batches hold `tokens`, `segments` and `positions`, `[batch, length]`; of what is hidden in them, `[batch, hidden]`,
    `masked_tokens` (what stood there), `masked_places` in the example, `masked_weights`, and `masked_segments` (the example);
    and `row`.

    An example is [CLS], a piece of a document, [SEP], as far as the tokenizer has these. With `whole_words` a word is hidden
    whole or not at all (the released code of 2019). With `dynamic` what is hidden is drawn anew in each epoch (Liu et al.
    2019, section 4.1); without, a piece always has the same hidden.

    Raises:
      InputError: a rate that is none; a model with another head; a tokenizer without a mask token, or that does not tell where
        words begin.
    """
    check_head(model, "masked-lm", "masked-lm")
    check_rate("mask_rate", mask_rate)
    masking = None if tokenizer is None else make_masking(tokenizer, mask_rate, whole_words)

    def terms(params: dict, batch: Batch, ctx: Context) -> dict[str, Term]:
        hidden = model.apply(params, batch["tokens"], positions=batch["positions"], segments=batch["segments"], ctx=ctx).hidden
        return masked_terms(model, params, hidden, batch, ctx, max_logit_bytes)

    def items(documents: Documents) -> Pieces:
        return texts_of(documents, tokenizer, text_room(tokenizer, max_len, 1))

    def example(piece: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        (tokens,) = with_special_tokens(tokenizer, piece)
        return hide(tokens, masking, rng if dynamic else np.random.default_rng(piece))

    return Objective(
        terms=terms,
        weights=lambda batch: {"loss": batch["masked_weights"].sum()},
        items=items,
        example=example,
        empty_row=empty_masked_row(max_len, mask_rate),
    )
