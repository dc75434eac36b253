"""What a call needs that is not the model's: precision, dropout key, attention choice, sharding rules, taps.

A `Context` is a small frozen pytree handed down through every layer. The default is evaluation in the parameters' own
dtype: without a key there is no dropout.
"""

import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from flaxllm.errors import InputError, did_you_mean
from flaxllm.nn.param import Key


@dataclass(frozen=True)
class Rules:
    """Where activations live: a mesh, and for each logical axis the mesh axes it is split over (plain data)."""

    mesh: Mesh
    axes: tuple[tuple[str, tuple[str, ...]], ...]

    def spec(self, *names: str | None) -> PartitionSpec:
        table = dict(self.axes)
        return PartitionSpec(*(table.get(name) or None for name in names))

    def split(self, name: str, size: int = 0) -> int:
        """Into how many parts the logical axis `name` is cut; one of a `size` that they do not divide stays whole."""
        parts = math.prod(self.mesh.shape[axis] for axis in dict(self.axes).get(name, ()))
        return 1 if size % parts else parts


class Replacement(struct.PyTreeNode):
    """New data for a tap: `value` where `mask` holds, both with a leading layer axis if the tap is a layer's.

    `mask` broadcasts to the tapped value, so it can select layers, heads or positions; both are data, so that another
    replacement of the same shape compiles nothing.
    """

    value: Any
    mask: Any


class Taps(struct.PyTreeNode):
    """Which named values are returned, which are replaced by data, and which by a function of `(layer, value)`."""

    returned: tuple[str, ...] = struct.field(pytree_node=False, default=())
    replaced: dict[str, Replacement] = field(default_factory=dict)
    functions: tuple[tuple[str, Any], ...] = struct.field(pytree_node=False, default=())

    @property
    def names(self) -> set[str]:
        return {*self.returned, *self.replaced, *dict(self.functions)}


class Context(struct.PyTreeNode):
    """The surroundings of one call.

    Data: `dropout_key` (None: no dropout), `rows` (`[batch]`, the global row number of each sequence, so that dropout
    does not depend on how a batch is cut), `taps`, `layer` (the current layer's index, set by `scan_layers`), `cache` (what
    a decoder has read before, see `nn.reading`).
    Static: `compute_dtype` (None: that of the parameters), `precision` of matrix products, `attention` (an
    implementation's name or "auto"), `remat` (None, "full" or "dots"), `rules`, `scope` (the prefix of tap names).
    """

    dropout_key: Any = None
    rows: Any = None
    taps: Taps | None = None
    layer: Any = None
    cache: Any = None
    compute_dtype: Any = struct.field(pytree_node=False, default=None)
    precision: Any = struct.field(pytree_node=False, default=None)
    attention: str = struct.field(pytree_node=False, default="auto")
    remat: str | None = struct.field(pytree_node=False, default=None)
    rules: Rules | None = struct.field(pytree_node=False, default=None)
    scope: str = struct.field(pytree_node=False, default="")
    collected: dict | None = struct.field(pytree_node=False, default=None)
    written: list | None = struct.field(pytree_node=False, default=None)

    def within(self, scope: str) -> "Context":
        """The context of a part of the model: tap names and dropout keys are told apart by it."""
        return self.replace(scope=f"{self.scope}{scope}/")

    def cast(self, x: Array) -> Array:
        """A parameter in the dtype that this call computes in."""
        return x if self.compute_dtype is None else x.astype(self.compute_dtype)

    def key_for(self, name: str) -> Key:
        """The dropout key of one place in the model (and, inside layers, of this layer)."""
        key = jax.random.fold_in(self.dropout_key, zlib.crc32(f"{self.scope}{name}".encode()))
        return key if self.layer is None else jax.random.fold_in(key, self.layer)

    def wants(self, name: str) -> bool:
        return self.taps is not None and f"{self.scope}{name}" in self.taps.names


def tap(value: Array, name: str, ctx: Context) -> Array:
    """Name a value: replaced and returned as the context's taps say, and untouched where there are none."""
    if ctx.taps is None:
        return value
    path = ctx.scope + name
    if path in ctx.taps.replaced:
        new = ctx.taps.replaced[path]
        here = new if ctx.layer is None else jax.tree.map(lambda x: x[ctx.layer], new)
        value = jnp.where(here.mask, here.value.astype(value.dtype), value)
    if path in dict(ctx.taps.functions):
        value = dict(ctx.taps.functions)[path](ctx.layer, value)
    ctx.collected[path] = value if path in ctx.taps.returned else None
    return value


def collecting(ctx: Context) -> Context:
    """A context that gathers its tapped values in a fresh dict; each traced function (a scan's body) needs its own."""
    return ctx if ctx.taps is None else ctx.replace(collected={})


def returned_taps(ctx: Context) -> dict[str, Array]:
    """What the taps asked for, once the model has run; a name that no layer taps is an error.

    Raises:
      InputError: a returned, replaced or transformed name does not exist in this model.
    """
    if ctx.taps is None:
        return {}
    for name in sorted(ctx.taps.names - set(ctx.collected)):
        raise InputError(f"no tap is called {name!r} in this model: {did_you_mean(name, ctx.collected)}")
    return {name: ctx.collected[name] for name in ctx.taps.returned}


def constrain(x: Array, ctx: Context, *axes: str | None) -> Array:
    """Keep an activation where the sharding rules say; without rules it is left to the compiler."""
    if ctx.rules is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(ctx.rules.mesh, ctx.rules.spec(*axes)))
