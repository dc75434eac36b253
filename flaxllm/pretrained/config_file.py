"""Reading a checkpoint's config.json key by key, so that what is missing or wrong is said by its name."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flaxllm.data.json_file import brief
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models.heads import LABELS

# What Hugging Face calls the activations of `nn.ACTIVATIONS`; the first name of each is the one that is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
_MAX_LABELS = 10**6
_NEEDED = object()


def activation_name(activation: str) -> str:
    """Hugging Face's name of one of ours."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation)


@dataclass(frozen=True)
class Keys:
    """The keys of a config.json. Each method reads one; without a default it must be there. A null counts as absent.

    Raises (every method):
      InputError: the key is missing, or its value is of another kind than asked for.
    """

    values: Mapping[str, Any]
    file: str

    def get(self, name: str, default: Any = _NEEDED) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _NEEDED:
            raise InputError(f"{self.file} has no key {name!r}, which a {self.model_type} needs: add it, or give it in config")
        return default

    @property
    def model_type(self) -> str:
        return str(self.values.get("model_type") or "model")

    def integer(self, name: str, default: Any = _NEEDED) -> Any:
        return self._typed(name, default, int, "a whole number")

    def number(self, name: str, default: Any = _NEEDED) -> Any:
        value = self._typed(name, default, (int, float), "a number")
        if value is not None and not abs(value) <= sys.float_info.max:
            raise InputError(f"{self.file} has {name} {brief(value)}: expected a finite number")
        return value if value is None else float(value)

    def switch(self, name: str, default: Any = _NEEDED) -> Any:
        return self._typed(name, default, bool, "true or false")

    def choice(self, name: str, options: Mapping[str, Any], default: Any = _NEEDED) -> Any:
        """What `options` has under the key's value."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in options:
            raise InputError(f"{self.file} has {name} {value!r}, which is not known: {did_you_mean(value, options)}")
        return options[value]

    def quotient(self, name: str, divisor: str) -> int:
        whole, parts = self.integer(name), self.integer(divisor)
        if parts < 1 or whole % parts:
            raise InputError(f"{self.file} has {name} {whole}, which its {divisor} {parts} does not divide")
        return whole // parts

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse a value that no model here computes; a missing key is allowed."""
        value = self.values.get(name)
        if value is not None and value not in allowed:
            known = " or ".join(map(repr, allowed))
            raise InputError(f"{self.file} has {name} {value!r}, which flaxllm does not compute: only {known} can be loaded")

    def _typed(self, name: str, default: Any, kind: type | tuple[type, ...], what: str) -> Any:
        value = self.get(name, default)
        if value is default:
            return value
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{self.file} has {name} {value!r}: expected {what}")
        return value


def labels_of(keys: Keys) -> tuple[str, ...]:
    """The names of the classes, in the order of their ids; those of another number than `num_labels` are not its."""
    names, number = keys.get("id2label", None), keys.integer("num_labels", None)
    if number is not None and not 0 <= number <= _MAX_LABELS:
        raise InputError(f"{keys.file} has num_labels {number}: expected a number of classes, at most {_MAX_LABELS}")
    if not isinstance(names, Mapping | None):
        raise InputError(f"{keys.file} has id2label {brief(names)}: expected an object from class numbers to names")
    if names is None or number not in (None, len(names)):
        return LABELS if number is None else tuple(f"LABEL_{i}" for i in range(number))
    try:
        by_id = {int(index): str(name) for index, name in names.items()}
    except ValueError as error:
        raise InputError(f"{keys.file} has id2label {brief(names)}: expected an object from class numbers to names") from error
    if sorted(by_id) != list(range(len(by_id))):
        raise InputError(f"{keys.file} has id2label with the numbers {brief(sorted(by_id))}: expected 0 to {len(by_id) - 1}")
    return tuple(by_id[index] for index in range(len(by_id)))


def special_tokens(keys: Keys) -> dict[str, int | tuple[int, ...] | None]:
    """The fields `bos_token`, `eos_token` and `pad_token` of a model's config; several tokens may end a text."""
    ends = keys.get("eos_token_id", None)
    if isinstance(ends, list) and all(type(end) is int for end in ends):
        ends = tuple(ends)
    elif ends is not None:
        ends = keys.integer("eos_token_id")
    return {
        "bos_token": keys.integer("bos_token_id", None),
        "eos_token": ends,
        "pad_token": keys.integer("pad_token_id", None),
    }


def common_keys(config: Any) -> dict[str, Any]:
    """The keys of a config.json that every family has: special tokens and the names of classes."""
    ends = config.eos_token
    return {
        "bos_token_id": config.bos_token,
        "eos_token_id": list(ends) if isinstance(ends, tuple) else ends,
        "pad_token_id": config.pad_token,
        "id2label": {str(index): name for index, name in enumerate(config.labels)},
        "label2id": {name: index for index, name in enumerate(config.labels)},
    }
