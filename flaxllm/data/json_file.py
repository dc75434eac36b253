"""JSON objects in files that others wrote: read, or refused in one sentence."""

import json
import reprlib
from pathlib import Path
from typing import Any

from flaxllm.errors import InputError

_SHORT = reprlib.Repr()
_SHORT.maxstring = 160


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
      InputError: the file cannot be read, or is not one JSON object in UTF-8 (see `parse_object`).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the file") from error
    return parse_object(data, str(path))


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The object that `data` spells; `where` names it in messages.

    Raises:
      InputError: it is not UTF-8, not JSON, too deep or too large a number, no object, or has a key twice.
    """
    try:
        content = json.loads(data.decode(), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad syntax, too many digits, a key twice; too deep a nest
        raise InputError(f"{where} is not a sound JSON object ({error}): mend it, or fetch or write it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{where} holds {brief(content)}: expected a JSON object")
    return content


def brief(value: Any) -> str:
    """A value as it is shown in a message: on one line, and cut in the middle where it is long."""
    return _SHORT.repr(value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"the key {brief(name)} is there twice")
        content[name] = value
    return content
