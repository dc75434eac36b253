"""Which tensor of a checkpoint goes where: all is settled by names and shapes before anything is read."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from flaxllm.errors import InputError
from flaxllm.nn import LAYERS, Param
from flaxllm.pretrained.checkpoint import Checkpoint, Tensor
from flaxllm.pretrained.names import LAYER, Names, Rule, rule_shape

_SHOWN = 3  # names in an error, before "and so many more"


class Place(NamedTuple):
    """Where a tensor belongs: to the parameters of a rule, and in this layer of them if they are stacked."""

    rule: Rule
    layer: int | None


class Match(NamedTuple):
    """What the tensors of a checkpoint are, by its own names: `places` of parameters; `tied`, those that repeat another,
    with that other's name; `buffers`; `dropped`, those of another head; `doubled`, a second one for a place, with the
    first; `unexpected`, of which nothing is known. `missing`: the places for which there is none, by their full names."""

    places: dict[str, Place]
    tied: dict[str, str]
    buffers: list[str]
    dropped: list[str]
    doubled: dict[str, str]
    unexpected: list[str]
    missing: dict[str, Place]


def match(checkpoint: Checkpoint, specs: Mapping[str, Param], names: Names) -> Match:
    """Settle every tensor of the checkpoint and every parameter (`specs`, by path)."""
    wanted = expand(names.rules, specs)
    own = {name: _full_name(name, wanted, names) for name in checkpoint.tensors}
    source: dict[str | None, str] = {}  # the checkpoint's name of each wanted tensor
    for name, full in own.items():
        if full in wanted:
            source.setdefault(full, name)
    for name, full in own.items():
        if names.tied.get(full) in wanted:  # where only a repetition is there, it will do
            source.setdefault(names.tied[full], name)
    found = Match({name: wanted[full] for full, name in source.items()}, {}, [], [], {}, [], {})
    for name, full in own.items():
        if name in found.places:
            continue
        if full is None:
            found.unexpected.append(name)
        elif full in wanted:
            found.doubled[name] = source[full]
        elif names.tied.get(full) in source:
            found.tied[name] = source[names.tied[full]]
        else:
            (found.buffers if _matches(full, names.buffers) else found.dropped).append(name)
    found.missing.update((full, place) for full, place in wanted.items() if full not in source)
    return found


def check_whole(checkpoint: Checkpoint, specs: Mapping[str, Param], found: Match, new_head: bool) -> list[str]:
    """The paths of the parameters that are to be made anew: those of a head that is missing whole, if it may be new.

    Raises:
      InputError: another tensor is missing; or one is unexpected, there twice, of another shape, or not of floating-point
        numbers.
    """
    path = checkpoint.path
    for name, first in found.doubled.items():
        raise InputError(f"{path} has both {first!r} and {name!r}, which are one tensor: remove one of them")
    if found.unexpected:
        raise InputError(f"{path} has {_listed(found.unexpected)}, which its config.json has no use for: see flaxllm inspect")
    headless = all(map(_may_be_new, found.missing.values())) and not any(map(_is_head, found.places.values()))
    if found.missing and not (headless and new_head):
        advice = ": name the head in from_pretrained to start a new one" if headless else ": the checkpoint is not whole"
        raise InputError(f"{path} lacks {_listed(list(found.missing))}, which its config.json calls for{advice}")
    for name, place in found.places.items():
        _check_tensor(name, checkpoint.tensors[name], rule_shape(place.rule, specs))
    return [path for place in found.missing.values() for path in place.rule.paths]


def _is_head(place: Place) -> bool:
    return place.rule.paths[0].startswith("head/")


def _may_be_new(place: Place) -> bool:
    """It belongs to a head, which may bring along the pooler that it reads."""
    return _is_head(place) or place.rule.paths[0].startswith("pooler/")


def expand(rules: Iterable[Rule], specs: Mapping[str, Param]) -> dict[str, Place]:
    """The rules' names with every layer's number in them."""
    places = {}
    for rule in rules:
        param = specs[rule.paths[0]]
        stacked = param.axes[:1] == (LAYERS,)
        for layer in range(param.shape[0]) if stacked else (None,):
            places[rule.theirs.replace(LAYER, str(layer))] = Place(rule, layer)
    return places


def _full_name(name: str, wanted: Mapping[str, Place], names: Names) -> str | None:
    """The name as the rules spell it; None if nothing is known of it."""
    for pattern, replacement in names.aliases:
        name = re.sub(pattern, replacement, name)
    for full in dict.fromkeys((name, names.prefix + name)):
        if full in wanted or full in names.tied or _matches(full, (*names.buffers, *names.heads)):
            return full
    return None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError(f"{tensor.file} has {name} of shape {list(tensor.shape)}: expected {list(shape)} by its config.json")
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise InputError(f"{tensor.file} has {name} of {tensor.dtype}: expected floating-point numbers, not a quantized model")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
