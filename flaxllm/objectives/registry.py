"""The objectives by the names that configs give them."""

import inspect
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from flaxllm.errors import InputError, did_you_mean
from flaxllm.objectives.causal_lm import causal_lm
from flaxllm.objectives.chat_tuning import sft
from flaxllm.objectives.classification import classification
from flaxllm.objectives.masked_lm import masked_lm
from flaxllm.objectives.objective import Objective
from flaxllm.objectives.preferences import dpo
from flaxllm.objectives.prefix_lm import prefix_lm
from flaxllm.objectives.pretraining import pretraining
from flaxllm.objectives.question_answering import question_answering
from flaxllm.objectives.seq2seq import seq2seq
from flaxllm.objectives.span_corruption import span_corruption
from flaxllm.objectives.token_classification import token_classification


class Kind(NamedTuple):
    """`make(model, tokenizer, max_len, **settings)`, the head that the model must have ("default": the family's own), and
    whether it reads records or the documents of a corpus."""

    make: Callable[..., Objective]
    head: str = "default"
    reads_records: bool = False


OBJECTIVES = {
    "causal-lm": Kind(causal_lm),
    "masked-lm": Kind(masked_lm, "masked-lm"),
    "pretraining": Kind(pretraining, "pretraining"),
    "span-corruption": Kind(span_corruption, "seq2seq-lm"),
    "prefix-lm": Kind(prefix_lm, "seq2seq-lm"),
    "seq2seq": Kind(seq2seq, "seq2seq-lm", reads_records=True),
    "classification": Kind(classification, "sequence-classification", reads_records=True),
    "token-classification": Kind(token_classification, "token-classification", reads_records=True),
    "question-answering": Kind(question_answering, "question-answering", reads_records=True),
    "sft": Kind(sft, "causal-lm", reads_records=True),
    "dpo": Kind(dpo, "causal-lm", reads_records=True),
}


def objective_kind(name: str) -> Kind:
    """The objective of that name.

    Raises:
      InputError: there is none.
    """
    if name not in OBJECTIVES:
        raise InputError(f"unknown objective.name {name!r}: {did_you_mean(name, OBJECTIVES)}")
    return OBJECTIVES[name]


def default_settings(name: str) -> dict[str, Any]:
    """The settings of an objective, its keyword arguments: their defaults, or the types of those whose default is None."""
    make = objective_kind(name).make
    hints = typing.get_type_hints(make)
    parameters = (p for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY)
    return {p.name: next(iter(typing.get_args(hints[p.name]))) if p.default is None else p.default for p in parameters}
