"""BERT's pretraining (Devlin et al. 2019, section 3.1): masked language modelling, and whether one text follows another."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from flaxllm.data import Documents, Pieces, Tokenizer
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives.labelled import check_head, class_terms
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
from flaxllm.objectives.texts import cut
from flaxllm.objectives.vocabulary import MAX_LOGIT_BYTES

Pair = tuple[np.ndarray, np.ndarray]

_RANDOM = 0.5


class Pairs(Sequence[Pair]):
    """The pieces of documents, as `texts_of` has them, each with one of another document; of the same where there is no other.
    Which one it is depends on the piece's number only.

    Raises:
      InputError: there is no second piece.
    """

    def __init__(self, documents: Documents, tokenizer: Tokenizer, length: int):
        parts = cut(documents, tokenizer, length)
        self._pieces = Pieces(parts, length)
        if len(self) < 2:
            raise InputError(f"pretraining on pairs needs 2 pieces of text or more, got {len(self)}: use more text")
        self._document = np.searchsorted(documents.spans[:, 0], parts.spans[:, 0], side="right")
        if self._document[0] == self._document[-1]:
            self._document = np.arange(len(self))

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> Pair:
        piece = self._pieces[index]
        first, last = (int(np.searchsorted(self._document, self._document[index], side)) for side in ("left", "right"))
        elsewhere = last + np.random.default_rng(index).integers(len(self) - (last - first))
        return piece, self._pieces[int(elsewhere) % len(self)]


def pretraining(
    model: Model,
    tokenizer: Tokenizer | None,
    max_len: int,
    *,
    mask_rate: float = 0.15,
    short_rate: float = 0.1,
    whole_words: bool = False,
    dynamic: bool = True,
    max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> Objective:
    """Batches hold `tokens`, `token_types` and `segments`, `[batch, length]`; `masked_tokens` and so on as for `masked_lm`;
    `is_random` (1 where the second text comes from elsewhere), `weights` (1) and `row`, `[batch]`.

    An example is [CLS], a text, [SEP], another, [SEP]. Both are parts of one piece of a document, cut in two at a random
    token; half of the time the second is a stretch of another document instead. `short_rate` of the pieces are shortened to a
    random length. (The released code does the same with sentences, which tokens do not show.) The terms that are minimised
    are "masked_lm" and "next_sentence". `whole_words` and `dynamic` are as for `masked_lm`.

    Raises:
      InputError: a rate that is none; a model with another head, or with fewer than two token types; a tokenizer without
        [CLS], [SEP] or [MASK], or that does not tell where words begin.
    """
    check_head(model, "pretraining", "pretraining")
    check_rate("mask_rate", mask_rate)
    if not 0.0 <= short_rate <= 1.0:
        raise InputError(f"objective.short_rate is {short_rate}: it must lie in [0, 1]")
    if model.config.num_token_types < 2:
        raise InputError(f"pretraining on pairs needs 2 token types, and this model has {model.config.num_token_types}")
    if tokenizer is not None and None in (tokenizer.cls, tokenizer.sep):
        raise InputError("pretraining on pairs needs a tokenizer with [CLS] and [SEP]: use one such as BERT's")
    masking = None if tokenizer is None else make_masking(tokenizer, mask_rate, whole_words)

    def terms(params: dict, batch: Batch, ctx: Context) -> dict[str, Term]:
        output = model.apply(params, batch["tokens"], batch["token_types"], segments=batch["segments"], ctx=ctx)
        logits = output.logits.astype(jnp.promote_types(output.logits.dtype, jnp.float32))
        next_sentence = class_terms(*(x[:, None] for x in (logits, batch["is_random"], batch["weights"])))
        masked = masked_terms(model, params, output.hidden, batch, ctx, max_logit_bytes)
        return {
            "masked_lm": masked["loss"],
            "accuracy": masked["accuracy"],
            "next_sentence": next_sentence["loss"],
            "next_sentence_accuracy": next_sentence["accuracy"],
        }

    def items(documents: Documents) -> Pairs:
        return Pairs(documents, tokenizer, text_room(tokenizer, max_len, 2))

    def example(pair: Pair, rng: np.random.Generator) -> dict[str, np.ndarray]:
        rng = rng if dynamic else np.random.default_rng(pair[0])
        first, second, is_random = two_texts(*pair, short_rate, rng)
        parts = with_special_tokens(tokenizer, first, second)
        hidden = hide(np.concatenate(parts), masking, rng)
        token_types = np.repeat(np.arange(2, dtype=np.int32), [len(part) for part in parts])
        return hidden | {"token_types": token_types, "is_random": np.int32(is_random), "weights": np.float32(1.0)}

    row = empty_masked_row(max_len, mask_rate)
    return Objective(
        terms=terms,
        weights=lambda batch: {"masked_lm": batch["masked_weights"].sum(), "next_sentence": batch["weights"].sum()},
        items=items,
        example=example,
        empty_row=row | {"token_types": row["tokens"], "is_random": np.zeros((), np.int32), "weights": np.zeros((), np.float32)},
        packs=False,
    )


def two_texts(
    piece: np.ndarray, other: np.ndarray, short_rate: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, bool]:
    """A text, a second one, and whether that one is of `other`. Neither begins what it is of, so that its beginning does not
    tell; and as far as `other` is long enough, neither does its length."""
    length = int(rng.integers(2, len(piece) + 1)) if rng.random() < short_rate else len(piece)
    place = int(rng.integers(1, length))
    if rng.random() >= _RANDOM:
        return piece[:place], piece[place:length], False
    size = min(length - place, len(other) - 1)
    start = int(rng.integers(1, len(other) - size + 1))
    return piece[:place], other[start : start + size], True
