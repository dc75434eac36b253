"""Parameters of requests: what each may be. A request is checked against a table of them, and none is passed over."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flaxllm.data.json_file import brief
from flaxllm.errors import did_you_mean
from flaxllm.serving.errors import ApiError
from flaxllm.serving.rows import MAX_BIASES

MAX_N = 128
MAX_BEST_OF = 128
MAX_STOPS = 16


@dataclass(frozen=True)
class Field:
    """A parameter: its value where it is not given or null, which values it may have, and these in words."""

    default: Any
    accepts: Callable[[Any], bool]
    expected: str


def parse(body: bytes) -> dict[str, Any]:
    """The object that a request's body is.

    Raises:
      ApiError: it is no JSON object, or has what no JSON has (NaN, half a surrogate pair).
    """
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is no JSON: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ApiError(f"the body is {brief(value)}: expected a JSON object of parameters")
    return value


def read_fields(body: Mapping[str, Any], fields: Mapping[str, Field], refused: Mapping[str, str]) -> dict[str, Any]:
    """The value of each parameter. `refused` says of others of OpenAI's why they are not taken.

    Raises:
      ApiError: an unknown or refused parameter, or a value that it cannot have.
    """
    for name, value in body.items():
        if name in fields:
            if value is not None and not fields[name].accepts(value):
                raise ApiError(f"{name} is {brief(value)}: expected {fields[name].expected}", name)
        elif name not in refused:
            raise ApiError(f"there is no parameter {brief(name)}: {did_you_mean(name, fields)}", name)
        elif value is not None:
            raise ApiError(f"{name} cannot be used here: {refused[name]}", name)
    given = {name: value for name, value in body.items() if value is not None}
    return {name: given.get(name, field.default) for name, field in fields.items()}


def text(default: str | None = None) -> Field:
    return Field(default, lambda x: isinstance(x, str), "a string")


def switch(default: bool = False) -> Field:
    return Field(default, lambda x: isinstance(x, bool), "true or false")


def whole(default: int | None, low: int, high: int) -> Field:
    return Field(default, lambda x: is_whole(x) and low <= x <= high, f"a whole number from {low} to {high}")


def number(default: float, low: float, high: float) -> Field:
    return Field(default, lambda x: _is_number(x) and low <= x <= high, f"a number from {low:g} to {high:g}")


def one_of(default: str, *choices: str) -> Field:
    return Field(default, lambda x: isinstance(x, str) and x in choices, " or ".join(map(repr, choices)))


def texts_or_tokens(default: str | None) -> Field:
    return Field(default, _are_texts_or_tokens, "a string, a list of token ids, or a list of strings or of such lists")


def _are_texts_or_tokens(value: Any) -> bool:
    kinds = (is_whole, lambda x: isinstance(x, str), lambda x: isinstance(x, list) and all(map(is_whole, x)))
    return isinstance(value, str) or isinstance(value, list) and bool(value) and any(all(map(kind, value)) for kind in kinds)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_stop(value: Any) -> bool:
    stops = [value] if isinstance(value, str) else value
    return isinstance(stops, list) and len(stops) <= MAX_STOPS and all(isinstance(stop, str) and stop for stop in stops)


def _is_bias(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_BIASES
        and all(key.isascii() and key.isdigit() and len(key) < 10 for key in value)
        and all(_is_number(bias) and -100 <= bias <= 100 for bias in value.values())
    )


def _is_stream_options(value: Any) -> bool:
    return isinstance(value, dict) and set(value) <= {"include_usage"} and all(isinstance(x, bool) for x in value.values())


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


# What completions and chats have in common.
WRITING: dict[str, Field] = {
    "model": text(),
    "temperature": number(1.0, 0, 2),
    "top_p": number(1.0, 0, 1),
    "n": whole(1, 1, MAX_N),
    "presence_penalty": number(0.0, -2, 2),
    "frequency_penalty": number(0.0, -2, 2),
    "logit_bias": Field({}, _is_bias, f"an object of up to {MAX_BIASES} token ids, each with a number from -100 to 100"),
    "stop": Field([], _is_stop, f"a string or a list of up to {MAX_STOPS}, none of them empty"),
    "seed": whole(None, -(2**63), 2**63 - 1),
    "stream": switch(),
    "stream_options": Field(None, _is_stream_options, "an object with include_usage, true or false"),
    "user": text(),
}


def check_writing(given: Mapping[str, Any]) -> None:
    """Raise ApiError where the common parameters do not fit together."""
    if given["stream_options"] is not None and not given["stream"]:
        raise ApiError("stream_options is for streams: set stream to true, or leave it out", "stream_options")
