"""Classes of texts and of pairs of texts: one of several, several at once, or a number."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxllm import metrics
from flaxllm.data import Tokenizer
from flaxllm.data.json_file import brief
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives.causal_lm import loss_weight
from flaxllm.objectives.labelled import (
    blocks,
    check_head,
    class_terms,
    empty_text,
    head_logits,
    label_index,
    read_field,
    text_arrays,
)
from flaxllm.objectives.objective import Batch, Judge, Objective, Term

Example = dict[str, np.ndarray]
Labels = tuple[str, ...]


class LabelKind(NamedTuple):
    """What a label is: how it is read of a record, its loss, and how what the model says is scored."""

    read: Callable[[Labels, Any, int], np.ndarray]
    terms: Callable[[Array, Array, Array], dict[str, Term]]
    score: Callable[[Labels, np.ndarray, np.ndarray], dict[str, float]]
    empty: Callable[[Labels], np.ndarray]


def classification(model: Model, tokenizer: Tokenizer | None, max_len: int, *, kind: str = "classes") -> Objective:
    """Labels of a `text`, or of it and a `text_pair` (Devlin et al. 2019, section 4.1), by a head on what the model makes of
    the whole; a text is cut to `max_len` tokens, of a pair the longer one first.

    A record's `label` is, by `kind`: "classes", a label's name or index, with softmax cross-entropy; "multi-label", a list
    of them, with the mean over all labels of sigmoid cross-entropy; "regression", a number, with its squared error, for
    a model with one label. The losses are those of transformers.

    Batches hold `tokens` `[batch, length]` with `segments` and `positions`, `token_types` where the model has some, `label`
    (`[batch]`, or `[batch, labels]` of 0 and 1) and `weights` `[batch]`.

    Raises:
      InputError: an unknown kind, or a model without this head or with too many or too few labels; from `items`, a record
        without its fields, or with a label that is none.
    """
    if kind not in KINDS:
        raise InputError(f"there is no kind {kind!r} of classification: {did_you_mean(kind, KINDS)}")
    check_head(model, "sequence-classification", "classification")
    labels, what = model.config.labels, KINDS[kind]
    if (len(labels) == 1) != (kind == "regression") and kind != "multi-label":
        raise InputError(
            f"the kind {kind!r} needs {'one label' if kind == 'regression' else 'two labels or more'}, and the model has "
            f"{len(labels)}: name them in model.labels, or choose another kind"
        )

    def terms(params: dict, batch: Batch, ctx: Context) -> dict[str, Term]:
        return what.terms(head_logits(model, params, batch, ctx), batch["label"], batch["weights"])

    def items(records: Sequence[Mapping[str, Any]]) -> list[Example]:
        return [
            example | {"label": what.read(labels, read_field(record, number, "label"), number)}
            for number, (record, example) in enumerate(zip(records, _texts(model, tokenizer, max_len, records)))
        ]

    return Objective(
        terms=terms,
        weights=loss_weight,
        items=items,
        example=lambda item, rng: item | {"weights": np.ones((), np.float32)},
        empty_row=empty_text(model, max_len) | {"label": what.empty(labels), "weights": np.zeros((), np.float32)},
        packs=False,
        fields=("text", "text_pair", "label"),
        judge=Judge(
            score=lambda items, outputs: what.score(labels, outputs["logits"], np.stack([item["label"] for item in items])),
            outputs=lambda params, batch, ctx: {"logits": head_logits(model, params, batch, ctx)},
            library=None if kind == "regression" else "sklearn",
        ),
    )


def _texts(model: Model, tokenizer: Tokenizer, max_len: int, records: Sequence[Mapping[str, Any]]) -> list[Example]:
    paired = len(records) > 0 and records[0].get("text_pair") is not None
    made = []
    for numbers, block in blocks(records):
        columns = [[read_field(record, number, "text", str, "a string") for number, record in zip(numbers, block)]]
        if paired:
            columns.append([read_field(record, number, "text_pair", str, "a string") for number, record in zip(numbers, block)])
        for number, record in zip(numbers, block):
            if not paired and record.get("text_pair") is not None:
                raise InputError(f"record {number} has a 'text_pair', and record 0 has none: give one to all, or to none")
        encoded = tokenizer(*columns, max_len=max_len, padding_side="right")
        made += [text_arrays(model, encoded, row) for row in range(len(block))]
    return made


def _read_class(labels: Labels, value: Any, number: int) -> np.ndarray:
    return np.array(label_index(labels, value, number, "label"), np.int32)


def _read_classes(labels: Labels, value: Any, number: int) -> np.ndarray:
    if not isinstance(value, list | tuple | np.ndarray):
        raise InputError(f"record {number} has {brief(value)} as its 'label': expected a list of labels")
    chosen = np.zeros(len(labels), np.float32)
    chosen[[label_index(labels, label, number, "label") for label in value]] = 1.0
    return chosen


def _read_number(labels: Labels, value: Any, number: int) -> np.ndarray:
    try:
        read = np.array(float(value), np.float32)
    except (TypeError, ValueError):
        read = np.array(np.nan)
    if not np.isfinite(read):
        raise InputError(f"record {number} has {brief(value)} as its 'label': expected a number")
    return read


def _class_terms(logits: Float[Array, "batch classes"], label: Array, weights: Array) -> dict[str, Term]:
    return class_terms(logits[:, None], label[:, None], weights[:, None])


def _classes_terms(logits: Float[Array, "batch classes"], label: Array, weights: Array) -> dict[str, Term]:
    loss = (jax.nn.softplus(logits) - label * logits).mean(-1)
    right = ((logits > 0) == (label > 0)).all(-1)
    return {name: Term((x * weights).sum(), weights.sum()) for name, x in (("loss", loss), ("accuracy", right))}


def _number_terms(logits: Float[Array, "batch one"], label: Array, weights: Array) -> dict[str, Term]:
    return {"loss": Term((jnp.square(logits[:, 0] - label) * weights).sum(), weights.sum())}


def _score_class(labels: Labels, logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    predicted, average = logits.argmax(-1), "binary" if len(labels) == 2 else "macro"
    return metrics.accuracy(predicted, label) | metrics.f1(predicted, label, average) | metrics.matthews(predicted, label)


def _score_classes(labels: Labels, logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    predicted, label = (logits > 0).astype(np.int32), label.astype(np.int32)
    averages = {f"{average}_f1": metrics.f1(predicted, label, average)["f1"] for average in ("micro", "macro")}
    return metrics.accuracy(predicted, label) | averages


def _score_number(labels: Labels, logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    return metrics.pearson(logits[:, 0], label) | metrics.spearman(logits[:, 0], label)


KINDS = {
    "classes": LabelKind(_read_class, _class_terms, _score_class, lambda labels: np.zeros((), np.int32)),
    "multi-label": LabelKind(_read_classes, _classes_terms, _score_classes, lambda labels: np.zeros(len(labels), np.float32)),
    "regression": LabelKind(_read_number, _number_terms, _score_number, lambda labels: np.zeros((), np.float32)),
}
