"""Changing a config by dotted key: the command line gives text, a sweep gives values, and both are checked the same."""

import difflib
from collections.abc import Iterator, Mapping
from copy import deepcopy

from absl import flags
from ml_collections import ConfigDict, FieldReference

from flaxllm.errors import InputError

_PARSERS = {
    bool: flags.BooleanParser(),
    float: flags.FloatParser(),
    int: flags.IntegerParser(),
    str: flags.ArgumentParser(),
}


def dotted_keys(config: ConfigDict) -> Iterator[str]:
    """Every key that holds a value, such as `"optimizer.learning_rate"`."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from (f"{name}.{key}" for key in dotted_keys(value))
        else:
            yield name


def key_type(config: ConfigDict, key: str) -> type:
    """The type of a dotted key's values, besides None where it may be empty.

    Raises:
      InputError: there is no such key.
    """
    section, name = _find(config, key)
    return section.get_type(name)


def parse_override(config: ConfigDict, key: str, text: str) -> object:
    """The value that `text` means for `key`; "None" empties a key that may be empty.

    Raises:
      InputError: there is no such key, or the text is no value of its type.
    """
    section, name = _find(config, key)
    if text == "None" and _may_be_none(section, name):
        return None
    kind = section.get_type(name)
    if kind not in _PARSERS:
        raise InputError(f"config.{key} is a {kind.__name__}, which can only be set in the config file")
    try:
        return _PARSERS[kind].parse(text)
    except ValueError as error:
        raise InputError(f"config.{key} takes {_described(section, name)}, not {text!r}") from error


def with_changes(config: ConfigDict, changes: Mapping[str, object]) -> ConfigDict:
    """A copy of the config with these values at these dotted keys.

    Raises:
      InputError: an unknown key, or a value that is not of the key's type.
    """
    changed = deepcopy(config)
    for key, value in changes.items():
        section, name = _find(changed, key)
        kind = section.get_type(name)
        fits = type(value) is kind or (kind is float and type(value) is int) or kind not in _PARSERS
        if not (fits or (value is None and _may_be_none(section, name))):
            raise InputError(f"config.{key} takes {_described(section, name)}, not {value!r}")
        section[name] = value
    return changed


def _find(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """The section that holds a dotted key, and the key's last part."""
    if key not in dotted_keys(config):
        section = [known for known in dotted_keys(config) if known.startswith(f"{key}.")]
        if section:
            raise InputError(f"config.{key} is a section: set one of its keys, such as config.{section[0]}")
        raise InputError(f"there is no config.{key}: {_hint(config, key)}")
    *path, name = key.split(".")
    for part in path:
        config = config[part]
    return config, name


def _hint(config: ConfigDict, key: str) -> str:
    """The key with the nearest last part, or else the names that can stand where the key first goes wrong."""
    names = {known: known.rpartition(".")[2] for known in dotted_keys(config)}
    near = difflib.get_close_matches(key.rpartition(".")[2], names.values(), n=1)
    alike = [known for known, name in names.items() if name in near]
    if alike:
        return f"did you mean 'config.{difflib.get_close_matches(key, alike, n=1, cutoff=0.0)[0]}'?"
    prefix = "config"
    for part in key.split("."):
        if not isinstance(config.get(part), ConfigDict):
            break
        prefix, config = f"{prefix}.{part}", config[part]
    return f"expected one of: {', '.join(f'{prefix}.{name}' for name in config)}"


def _may_be_none(section: ConfigDict, name: str) -> bool:
    return isinstance(dict(section.iteritems(preserve_field_references=True))[name], FieldReference)


def _described(section: ConfigDict, name: str) -> str:
    kind = {bool: "true or false", float: "a number", int: "a whole number", str: "a text"}[section.get_type(name)]
    return f"{kind} or None" if _may_be_none(section, name) else kind
