"""Parameters made ready for decoding: layer by layer, and in the layout that a product with few vectors reads fastest."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from flaxllm import nn
from flaxllm.models import Model
from flaxllm.models.quantize import quantize as quantized
from flaxllm.nn import Param, Weight
from flaxllm.nn.weights import Joined, Kept, Matrix

# Maps of one input, by their place in a layer: fewer and larger products take less time. Cross-attention's have two inputs.
JOINED = {"attention": ("query", "key", "value"), "mlp": ("up", "gate")}


def prepare(model: Model, params: dict, quantize: str | None = None) -> dict:
    """The same parameters as a tree that `generate` reads as it is. Make it once; the given one stays valid.

    Stacked layers become a tuple of per-layer trees. On a CPU, kernels get their output axes first. Matrices of
    one input are joined. What is prepared
    already is given back unchanged. `quantize` ("int8" or "int4") rounds the weights, as `flaxllm.models.quantize` does.

    Raises:
      InputError: the weights cannot be quantized so, or were prepared or quantized before.
    """
    if quantize is not None:
        params = quantized(model, params, quantize)
    if is_prepared(params):
        return params
    return _prepared(params, model.param_specs(), jax.default_backend() == "cpu")


def is_prepared(params: dict) -> bool:
    return any(
        isinstance(part, tuple) if name == nn.LAYERS else isinstance(part, dict) and is_prepared(part)
        for name, part in params.items()
    )


def _prepared(params: dict, specs: dict, turns: bool) -> dict:
    prepared = {}
    for name, part in params.items():
        if name == nn.LAYERS:
            prepared[name] = _layers_apart(part, specs[name], turns)
        elif isinstance(part, dict):
            prepared[name] = _prepared(part, specs[name], turns)
        else:
            prepared[name] = _turned(part, specs[name]) if turns else part
    return prepared


def _layers_apart(stacked: dict, specs: dict, turns: bool) -> tuple[dict, ...]:
    flat_specs = nn.flatten(specs)
    flat = {path: _cut(tensor, flat_specs[path], turns) for path, tensor in nn.flatten(stacked).items()}
    depth = len(next(iter(flat.values())))
    return tuple(_joined(nn.unflatten({path: layers[layer] for path, layers in flat.items()})) for layer in range(depth))


def _joined(layer: dict) -> dict:
    for place, names in JOINED.items():
        first, *others = (name for name in names if name in layer[place])
        kernels = [layer[place][name]["kernel"] for name in (first, *others)]
        if others and all(isinstance(kernel, Matrix) for kernel in kernels):
            kept = {first: Joined.of(kernels)} | dict.fromkeys(others)
            maps = {name: layer[place][name] | {"kernel": kernel} for name, kernel in kept.items()}
            layer = layer | {place: layer[place] | maps}
    return layer


@partial(jax.jit, static_argnums=(1, 2))
def _cut(stacked: Weight, spec: Param, turns: bool) -> tuple[Weight, ...]:
    parts, structure = jax.tree.flatten(stacked)
    layers = (jax.tree.unflatten(structure, layer) for layer in zip(*parts, strict=True))
    return tuple(_turned(layer, spec) if turns else layer for layer in layers)


def _turned(weight: Weight, spec: Param) -> Weight:
    """A kernel or a token table as a matrix with its outputs first; what is neither, or in another form already, as it is."""
    if isinstance(weight, Kept) or not spec.is_matrix or spec.is_lookup and spec.inputs != ("vocab",):
        return weight
    inputs, outputs = (spec.outputs, spec.inputs) if spec.is_lookup else (spec.inputs, spec.outputs)
    axes = [axis for axis in spec.axes if axis != nn.LAYERS]
    turned = jnp.transpose(weight, [axes.index(axis) for axis in (*outputs, *inputs)])
    return nn.OutputsFirst(turned.shape[: len(outputs)], turned.reshape(math.prod(turned.shape[: len(outputs)]), -1))
