"""What the objectives on labelled records share: fields read with care, texts as rows of tokens, the loss of a head."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxllm.data import Tokenizer
from flaxllm.data.encoding import Encoded
from flaxllm.data.json_file import brief
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives.cross_entropy import cross_entropy
from flaxllm.objectives.objective import Batch, Term

_BLOCK = 512  # records that are encoded at a time: the arrays of all would be as wide as the longest text


def check_head(model: Model, head: str, objective: str) -> None:
    """Raise InputError where the model has another head than the objective trains."""
    if model.head != head:
        raise InputError(f"{objective} needs a model with the head {head!r}, and this one has {model.head or 'base'!r}")


def read_field(
    record: Mapping[str, Any], number: int, name: str, kind: type | tuple[type, ...] = object, expected: str = ""
) -> Any:
    """The value of a record's field, which must be there and of a `kind`, `expected` in words.

    Raises:
      InputError: the record lacks it, or it is of another kind.
    """
    if name not in record:
        raise InputError(f"record {number} has no field {name!r}: say in data.columns which column holds it")
    if not isinstance(record[name], kind):
        raise InputError(f"record {number} has {brief(record[name])} as its {name!r}: expected {expected}")
    return record[name]


def label_index(labels: Sequence[str], value: Any, number: int, name: str) -> int:
    """The index of a label that a record gives by its name, or by the index itself.

    Raises:
      InputError: there is no such label.
    """
    if isinstance(value, str) and value in labels:
        return list(labels).index(value)
    is_index = isinstance(value, int | np.integer) or isinstance(value, str) and value.isdecimal()
    if is_index and 0 <= int(value) < len(labels):
        return int(value)
    raise InputError(f"record {number} has {brief(value)} in its {name!r}, which is no label: {did_you_mean(str(value), labels)}")


def blocks(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[range, Sequence[Mapping[str, Any]]]]:
    """The records, some at a time, with their numbers."""
    for start in range(0, len(records), _BLOCK):
        numbers = range(start, min(start + _BLOCK, len(records)))
        yield numbers, [records[number] for number in numbers]


def from_left(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, cutting texts into windows and filling up rows from left to right whatever its own way."""
    return dataclasses.replace(tokenizer, truncation_side="right", padding_side="right")


def text_arrays(model: Model, encoded: Encoded, row: int) -> dict[str, Int[np.ndarray, " token"]]:
    """The `tokens` of a row that is filled up on the right, and its `token_types` where the model tells two apart."""
    length = int(encoded.valid[row].sum())
    return {name: getattr(encoded, name)[row, :length].copy() for name in _text_names(model)}


def empty_text(model: Model, max_len: int) -> dict[str, Int[np.ndarray, " token"]]:
    """An empty row of the arrays that `text_arrays` gives."""
    return {name: np.zeros(max_len, np.int32) for name in _text_names(model)}


def _text_names(model: Model) -> Iterable[str]:
    return ("tokens", "token_types") if getattr(model.config, "num_token_types", 0) > 1 else ("tokens",)


def head_logits(model: Model, params: dict, batch: Batch, ctx: Context) -> Float[Array, "batch *length classes"]:
    """The logits of the model's head on rows of one text each, filled up on the right; in float32 at least.

    Tokens that only fill up a row have its next positions, as in transformers.
    """
    tokens = batch["tokens"]
    more = {"token_types": batch["token_types"]} if "token_types" in batch else {}
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    logits = model.apply(params, tokens, valid=batch["segments"] > 0, positions=positions, ctx=ctx, **more).logits
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def class_terms(
    logits: Float[Array, "batch length classes"], targets: Int[Array, "batch length"], weights: Float[Array, "batch length"]
) -> dict[str, Term]:
    """The softmax cross-entropy over a head's classes as "loss", and "accuracy"."""
    terms = cross_entropy(lambda logits: logits, logits, targets, weights)
    return {name: terms[name] for name in ("loss", "accuracy")}
