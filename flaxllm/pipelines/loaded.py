"""What the tasks share: a model that is ready, texts as its rows, and what it makes of them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxllm.data.encoding import Encoded, check_texts
from flaxllm.data.json_file import brief
from flaxllm.data.tokenizers import Tokenizer
from flaxllm.decoding.buckets import Inputs, Row, in_buckets, in_parts
from flaxllm.decoding.reading import most_positions
from flaxllm.errors import InputError
from flaxllm.models import Model

_log = logging.getLogger("flaxllm")

Program = Callable[[Model, dict, Inputs], Any]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model that is ready for a task, with its tokenizer; `batch_size` texts are computed at once, at most.

    The layers of `params` are apart. `config` and `generation` are what config.json and generation_config.json say.
    """

    task: str  # by the name that it was asked for, such as translation_en_to_de
    model: Model
    params: dict
    tokenizer: Tokenizer
    batch_size: int
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task_params(self) -> Mapping[str, Any]:
        """What the checkpoint says of this task: a prefix, and settings of writing."""
        by_task = self.config.get("task_specific_params")
        said = by_task.get(self.task) if isinstance(by_task, Mapping) else None
        return said if isinstance(said, Mapping) else {}

    @property
    def max_len(self) -> int | None:
        """The most tokens that a row may have; None where any number will do."""
        return most_positions(self.model)

    @property
    def cut_len(self) -> int | None:
        """The tokens to which a text is cut that is to be cut: of the model and the tokenizer the one with less decides."""
        return min((most for most in (self.max_len, self.tokenizer.max_len) if most is not None), default=None)


def listed(inputs: Any) -> list[str]:
    """One text, or several, as a list.

    Raises:
      InputError: one is no text.
    """
    texts = [inputs] if isinstance(inputs, str | Mapping) else list(inputs)
    check_texts(texts)
    return texts


def encode(
    at: Loaded,
    text: str,
    pair: str | None,
    number: int,
    truncation: bool = False,
    cuts: str = "longest_first",
    allow_special: bool = False,
) -> Encoded:
    """The tokens of a text, or of a pair, as one row. `number` is its place among the texts, for messages.

    With `truncation` what is more than the model takes is cut off, and a warning tells what; `cuts` says which text of a pair
    that is, and `allow_special` whether special tokens are read as such (see `Tokenizer`).

    Raises:
      InputError: the text has no token, or more than the model takes.
    """
    encoded = at.tokenizer(text, pair, allow_special=allow_special)
    size = encoded.tokens.shape[1]
    if size == 0:
        raise InputError(f"text {number} is empty: give it a word at least")
    most = at.cut_len if truncation else at.max_len
    if most is None or size <= most:
        return encoded
    if not truncation:
        raise InputError(
            f"text {number} has {size} tokens, and this model takes {most}: shorten it, or give truncation=True to have the rest "
            "cut off"
        )
    cut = at.tokenizer(text, pair, max_len=most, truncation=cuts, allow_special=allow_special)
    lost = [_lost(whole, cut, which) for which, whole in enumerate((text, pair)) if whole is not None]
    said = " and ".join(brief(part) for part in lost if part)
    _log.warning("text %d has %d tokens, and this model takes %d: cut off is %s", number, size, most, said)
    return cut


def _lost(text: str, cut: Encoded, which: int) -> str:
    """What a cut left out of a text, on whichever side."""
    kept = cut.offsets[cut.sequence_ids == which]
    return text[: kept[:, 0].min()] + text[kept[:, 1].max() :] if len(kept) else text


def run(at: Loaded, program: Program, encoded: Sequence[Encoded]) -> list[list[Any]]:
    """What a compiled program `(model, parameters, inputs)` makes of each row, for each of the `encoded`."""
    rows = [row for each in encoded for row in _rows(at.model, each)]
    outputs = iter(in_buckets(lambda inputs: program(at.model, at.params, inputs), rows, at.max_len, at.batch_size))
    return [[next(outputs) for _ in each.tokens] for each in encoded]


def _rows(model: Model, encoded: Encoded) -> list[Row]:
    arrays = {"tokens": encoded.tokens}
    if encoded.has_token_types and getattr(model.config, "num_token_types", 0):
        arrays["token_types"] = encoded.token_types
    return [{name: array[number][valid] for name, array in arrays.items()} for number, valid in enumerate(encoded.valid)]


@partial(jax.jit, static_argnames="model")
def logits(model: Model, params: dict, inputs: Inputs) -> Float[Array, "row *token classes"]:
    """The program of heads with few classes."""
    return in_parts(lambda part: model.apply(params, **part).logits.astype(jnp.float32), inputs)


def softmax(x: Float[np.ndarray, "*batch classes"]) -> Float[np.ndarray, "*batch classes"]:
    """Over the last axis, in float64."""
    x = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)
