"""From our parameter paths to a checkpoint's names and shapes, and back: both directions follow from one table.

A rule pairs a tensor of ours with one of theirs. How the two are laid out is known from the parameter's own declaration:
torch's linear layers store `[outputs, inputs]` with heads flattened, where ours store `[inputs..., outputs...]`.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from flaxllm.nn import LAYERS, Param

LAYER = "{layer}"  # in a name of theirs, where the layer's number stands


class Rule(NamedTuple):
    """`ours`: a parameter's path, or several whose tensors lie side by side in one of theirs (a fused projection).
    `theirs`: the name in the checkpoint of a model with a head, with `{layer}` for the layer's number where ours is
    stacked. `inputs_first`: theirs is `[inputs, outputs]`, as in GPT-2's files, and not `[outputs, inputs]`. `row`: theirs
    is `[1, size]`, and not a vector."""

    ours: str | tuple[str, ...]
    theirs: str
    inputs_first: bool = False
    row: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


class Names(NamedTuple):
    """All that is known of a family's names. `prefix`: what the checkpoint of a model without a head leaves out of the
    rules' names. `aliases`: (pattern, replacement) pairs for the names of older files. `buffers`: patterns of tensors
    that are no parameters. `heads`: patterns of the tensors of heads, which a model without them drops. `tied`: names
    that may repeat the tensor of another name. Patterns are regular expressions; those of `buffers` and `heads` match
    names from their start, prefix included."""

    rules: tuple[Rule, ...]
    prefix: str = ""
    aliases: tuple[tuple[str, str], ...] = ()
    buffers: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    tied: Mapping[str, str] = {}


def linear(ours: str, theirs: str, bias: bool = True, inputs_first: bool = False) -> list[Rule]:
    """The rules of a dense layer: its weight and, where it has one, its bias."""
    rules = [Rule(f"{ours}/kernel", f"{theirs}.weight", inputs_first)]
    return [*rules, Rule(f"{ours}/bias", f"{theirs}.bias")] if bias else rules


def norm(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
    rules = [Rule(f"{ours}/scale", f"{theirs}.weight")]
    return [*rules, Rule(f"{ours}/bias", f"{theirs}.bias")] if bias else rules


def as_theirs(tensor: np.ndarray, param: Param, inputs_first: bool) -> np.ndarray:
    """One layer's tensor of ours, laid out as the checkpoint's: a view of a contiguous one, to be read or written."""
    return tensor.transpose(_their_order(param, inputs_first)).reshape(_their_shape(param, inputs_first))


def rule_shape(rule: Rule, specs: Mapping[str, Param]) -> tuple[int, ...]:
    """The shape of a rule's tensor in the checkpoint: several of ours stand side by side along their outputs."""
    shapes = [_their_shape(specs[path], rule.inputs_first) for path in rule.paths]
    axis = fused_axis(rule, specs)
    shape = (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])
    return (1, *shape) if rule.row else shape


def fused_axis(rule: Rule, specs: Mapping[str, Param]) -> int:
    return 1 if specs[rule.paths[0]].is_matrix and rule.inputs_first else 0


def _their_order(param: Param, inputs_first: bool) -> list[int]:
    """Our axes, the layer's left out, in the order in which theirs lie."""
    axes = [axis for axis in param.axes if axis != LAYERS]
    groups = [param.inputs, param.outputs] if inputs_first or param.is_lookup else [param.outputs, param.inputs]
    return [axes.index(axis) for group in groups for axis in group]


def _their_shape(param: Param, inputs_first: bool) -> tuple[int, ...]:
    inputs, outputs = (math.prod(map(param.axis_size, axes)) for axes in (param.inputs, param.outputs))
    if not param.is_matrix:
        return (outputs,)
    return (inputs, outputs) if inputs_first or param.is_lookup else (outputs, inputs)
