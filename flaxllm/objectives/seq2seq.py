"""Sources and their targets (Vaswani et al. 2017; Raffel et al. 2020, section 2.4): translations, summaries, and whatever else
can be said as one text made of another, its task by a prefix."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxllm import metrics
from flaxllm.data import Tokenizer
from flaxllm.data.encoding import Encoded
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models import Model
from flaxllm.objectives.encoder_decoder import SourceAndTarget, ended, teacher_forced
from flaxllm.objectives.labelled import blocks, read_field
from flaxllm.objectives.objective import Judge, Objective
from flaxllm.objectives.vocabulary import MAX_LOGIT_BYTES


class Pair(NamedTuple):
    """Source and target as tokens, int32, and the target's text."""

    source: np.ndarray
    target: np.ndarray
    reference: str


def seq2seq(
    model: Model,
    tokenizer: Tokenizer | None,
    max_len: int,
    *,
    max_target_len: int = 128,
    prefix: str = "",
    metric: str = "bleu",
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> Objective:
    """Batches are those of `teacher_forced`. Of a record, `source` is read with `prefix` before it, or with the record's own
    `prefix` where it has one, as the tokenizer reads any text for its model; and `target`, which ends with the end-of-text
    token. They are cut to `max_len` and `max_target_len` tokens, ends counted.

    What the model writes for each source is judged by `metric`: "bleu", "chrf", "rouge" or "exact-match"; with "loss" it writes
    nothing. `label_smoothing` was 0.1 in Vaswani et al. 2017 (section 5.4).

    Raises:
      InputError: an unknown metric; a model without an encoder, or that ends its texts with another token than the tokenizer;
        from `items`, a record without its fields, or with an empty source.
    """
    if metric not in METRICS:
        raise InputError(f"unknown objective.metric {metric!r}: {did_you_mean(metric, METRICS)}")

    def items(records: Sequence[Mapping[str, Any]]) -> list[Pair]:
        pairs = []
        for numbers, block in blocks(records):
            texts = [_texts(record, number, prefix) for number, record in zip(numbers, block)]
            sources = _rows(tokenizer([source for source, _ in texts], max_len=max_len))
            targets = [target for _, target in texts]
            options = {"max_len": max_target_len - 1, "add_special_tokens": False}
            target_rows = _rows(tokenizer.encode_target(targets, **options))
            for number, source, target, reference in zip(numbers, sources, target_rows, targets):
                if not len(source):
                    raise InputError(f"record {number} has an empty 'source': leave it out")
                pairs.append(Pair(source, ended(target, tokenizer), reference))
        return pairs

    def pair(item: Pair, rng: np.random.Generator) -> SourceAndTarget:
        return item.source, item.target

    def score(items: Sequence[Pair], texts: Sequence[str]) -> dict[str, float]:
        return METRICS[metric](texts, [item.reference for item in items])

    return teacher_forced(
        model,
        tokenizer,
        max_len,
        max_target_len,
        items=items,
        pair=pair,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        max_logit_bytes=max_logit_bytes,
        fields=("prefix", "source", "target"),
        judge=None if metric == "loss" else Judge(score, prompt=lambda item: item.source, library=LIBRARIES.get(metric)),
    )


def _texts(record: Mapping[str, Any], number: int, prefix: str) -> tuple[str, str]:
    own = read_field(record, number, "prefix", str, "a string") if "prefix" in record else prefix
    source, target = (read_field(record, number, name, str, "a string") for name in ("source", "target"))
    return own + source, target


def _rows(encoded: Encoded) -> list[np.ndarray]:
    """The tokens of each text, without what fills its row up."""
    return [tokens[valid] for tokens, valid in zip(encoded.tokens, encoded.valid)]


def _exact_match(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The share of texts that are their references, white space around them aside."""
    return {"exact_match": float(np.mean([a.strip() == b.strip() for a, b in zip(predictions, references, strict=True)]))}


METRICS = {"bleu": metrics.bleu, "chrf": metrics.chrf, "rouge": metrics.rouge, "exact-match": _exact_match, "loss": None}
LIBRARIES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge": "rouge_score"}
