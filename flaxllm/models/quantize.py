"""Weights in few bits, for any family: a transform of its parameters."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flaxllm import nn
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models import Model
from flaxllm.nn import Param, Weight
from flaxllm.nn.quantized import GROUP, QUANTIZED
from flaxllm.nn.weights import Kept


def quantize(model: Model, params: dict, kind: str) -> dict:
    """The parameters with every kernel in `kind`: "int8" (a scale for each output) or "int4" (a low and a step for each group
    of 32 inputs). What has a row or column for each token is in 8 bits in both, as 4 cost it most. Norms, biases and positions
    stay. The given parameters stay valid.

    The tree serves wherever the plain one does, but for training: `apply`, `unembed`, `prepare`, `nn.unstack`.

    Raises:
      InputError: an unknown kind, parameters that were prepared or quantized before, or "int4" for a kernel whose inputs are
        no multiple of 32.
    """
    if kind not in QUANTIZED:
        raise InputError(f"weights cannot be quantized to {kind!r}: {did_you_mean(kind, QUANTIZED)}")
    specs = nn.flatten(model.param_specs())
    return nn.unflatten({path: _quantized(path, weight, specs.get(path), kind) for path, weight in nn.flatten(params).items()})


def num_bytes(tree: dict | Weight) -> int:
    """The memory of all arrays of a tree."""
    return sum(array.nbytes for array in jax.tree.leaves(tree))


def _quantized(path: str, weight: Weight | tuple, spec: Param | None, kind: str) -> Weight:
    if spec is None or isinstance(weight, Kept):
        raise InputError(f"{path} is no plain parameter of this model: quantize parameters as they were loaded")
    is_table = spec.inputs == ("vocab",)  # its rows are looked up, and multiplied by: each is an output
    if not spec.is_matrix or spec.is_lookup and not is_table:
        return weight
    inputs, outputs = (spec.outputs, spec.inputs) if is_table else (spec.inputs, spec.outputs)
    kind = "int8" if "vocab" in spec.axes else kind
    width = math.prod(map(spec.axis_size, inputs))
    if kind == "int4" and width % GROUP:
        raise InputError(f"{path} has {width} inputs, and 'int4' needs a multiple of {GROUP}: use 'int8'")
    stacked = spec.axes[:1] == (nn.LAYERS,)
    order = tuple(spec.axes.index(axis) for axis in (*spec.axes[:stacked], *outputs, *inputs))
    sizes = tuple(map(spec.axis_size, outputs))
    return _rounded(weight, order, (*spec.shape[:stacked], math.prod(sizes), width), sizes, kind)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _rounded(weight: Array, order: tuple[int, ...], shape: tuple[int, ...], outputs: tuple[int, ...], kind: str) -> Kept:
    return QUANTIZED[kind].of(jnp.transpose(weight, order).reshape(shape), outputs)
