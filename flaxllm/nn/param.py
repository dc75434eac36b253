"""Parameter specifications: each tensor is declared once, and all that is known of it derives from there.

A model gives a nested dict of `Param`. From it come the initial values, the abstract shapes, the shardings (by the
logical axis names), which tensors are decayed, and which axes form the matrix of each tensor.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray, UInt32

Key = PRNGKeyArray | UInt32[Array, "2"]
Initializer = Callable[[Key, tuple[int, ...], DTypeLike], Array]

LAYERS = "layers"


@dataclass(frozen=True)
class Param:
    """One tensor: its shape, the logical name of each axis, its initial distribution, and its input axes.

    `inputs` names the axes that are summed over when the tensor is applied (a lookup table sums over its one-hot index).
    Without the layer axis, these are the rows of its matrix and the others the columns; a tensor with no inputs (a bias,
    a norm's scale) is no matrix.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Initializer
    inputs: tuple[str, ...] = ()

    def __post_init__(self):
        if len(self.shape) != len(self.axes) or len(set(self.axes)) != len(self.axes):
            raise ValueError(f"a parameter of shape {self.shape} needs as many different axis names, got {self.axes}")
        if not set(self.inputs) <= set(self.axes):
            raise ValueError(f"inputs {self.inputs} are not all among the axes {self.axes}")

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(a for a in self.axes if a != LAYERS and a not in self.inputs)

    @property
    def is_matrix(self) -> bool:
        return bool(self.inputs)

    @property
    def is_lookup(self) -> bool:
        """An embedding table: its input is an index, not a vector of activations."""
        return self.inputs in (("vocab",), ("positions",), ("token_types",))

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def axis_size(self, name: str) -> int:
        return self.shape[self.axes.index(name)]

    @property
    def fan_in(self) -> int:
        return math.prod(self.axis_size(a) for a in self.inputs)


def normal(stddev: float) -> Initializer:
    return lambda key, shape, dtype: stddev * jax.random.normal(key, shape, dtype)


def zeros(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.zeros(shape, dtype)


def ones(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.ones(shape, dtype)


def flatten(tree: dict) -> dict[str, object]:
    """The leaves of a nested dict by path, such as `"layers/mlp/up/kernel"`."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(leaves: dict[str, object]) -> dict:
    return traverse_util.unflatten_dict(leaves, sep="/")


def stack(specs: dict, num_layers: int) -> dict:
    """The specifications of `num_layers` equal layers as one tree with a leading `layers` axis."""
    return map_specs(
        lambda p: replace(p, shape=(num_layers, *p.shape), axes=(LAYERS, *p.axes)), specs
    )


def map_specs(function: Callable[[Param], object], specs: dict) -> dict:
    return jax.tree.map(function, specs, is_leaf=lambda x: isinstance(x, Param))


def count(specs: dict) -> int:
    """The number of parameters."""
    return sum(p.size for p in flatten(specs).values())


def abstract(specs: dict, dtype: DTypeLike = jnp.float32) -> dict:
    """The shapes and dtypes, with nothing allocated."""
    return map_specs(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), specs)


def init(specs: dict, key: Key, dtype: DTypeLike = jnp.float32) -> dict:
    """Initial values. Each depends on the key, the tensor's own path and (where stacked) the layer's index only.

    So adding a tensor, or a layer at the end, leaves the values of the others as they were.
    """

    def initial(path: str, param: Param) -> Array:
        own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        if param.axes[:1] != (LAYERS,):
            return param.init(own_key, param.shape, dtype)
        layer_keys = jax.vmap(lambda layer: jax.random.fold_in(own_key, layer))(jnp.arange(param.shape[0]))
        return jax.vmap(lambda k: param.init(k, param.shape[1:], dtype))(layer_keys)

    return unflatten({path: initial(path, param) for path, param in flatten(specs).items()})
