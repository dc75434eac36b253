"""Supervised fine-tuning: a model learns to answer (Ouyang et al. 2022, section 3.5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxllm.data import Tokenizer
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models import Model
from flaxllm.objectives.answers import Answered, read_answer, read_chat
from flaxllm.objectives.causal_lm import causal_lm
from flaxllm.objectives.labelled import check_head
from flaxllm.objectives.objective import Objective
from flaxllm.objectives.vocabulary import MAX_LOGIT_BYTES

LOSS_ON = ("completions", "all")


def sft(
    model: Model,
    tokenizer: Tokenizer | None,
    max_len: int,
    *,
    loss_on: str = "completions",
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> Objective:
    """Next-token prediction of answers: of a chat's `messages`, each with its `role` and `content`, what the assistant says,
    as the tokenizer's chat template writes it; or of a `prompt` and a `completion` (text, or lists of messages) the latter.

    With `loss_on` "all" everything is learned. What a record has beyond `max_len` tokens is cut off. Batches, packed, and the
    other settings are those of `causal_lm`; `weights` are 0 at what is not learned.

    Raises:
      InputError: an unknown `loss_on`, or a model without a causal head; from `items`, a record without its fields, or that the
        template cannot write, or of whose answers `max_len` leaves nothing.
    """
    if loss_on not in LOSS_ON:
        raise InputError(f"there is no loss_on {loss_on!r}: {did_you_mean(loss_on, LOSS_ON)}")
    check_head(model, "causal-lm", "sft")

    def items(records: Sequence[Mapping[str, Any]]) -> list[Answered]:
        read = (_read(tokenizer, record, number) for number, record in enumerate(records))
        if loss_on == "all":
            read = (Answered(each.tokens, np.ones_like(each.answer)) for each in read)
        return [each.cut(max_len, number) for number, each in enumerate(read)]

    next_token = causal_lm(
        model, tokenizer, max_len, z_loss=z_loss, label_smoothing=label_smoothing, max_logit_bytes=max_logit_bytes
    )
    return next_token._replace(
        items=items,
        example=lambda item, rng: item.example(),
        fields=("messages", "prompt", "completion"),
        tells_all=False,
    )


def _read(tokenizer: Tokenizer, record: Mapping[str, Any], number: int) -> Answered:
    if record.get("messages") is not None:
        return read_chat(tokenizer, record, number)
    return read_answer(tokenizer, record, number, "completion")
