"""What a call needs that is not the model's: precision, dropout key, attention choice, sharding rules, taps.

A `Context` is a small frozen pytree handed down through every layer. The default is evaluation in the parameters' own
dtype: without a key there is no dropout.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from flaxllm.errors import InputError, did_you_mean
from flaxllm.nn.param import LAYERS, Key


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
    """New data for a tap: `value` where `mask` holds (everywhere if it is None).

    Both broadcast to the tapped value, so that a mask can select heads or positions; those of a tap inside the layers have a
    leading layer axis. Both are data: another replacement of the same shapes compiles nothing.
    """

    value: Any
    mask: Any = None


class Taps(struct.PyTreeNode):
    """What is done with the named values of a model.

    `returned`: names, or patterns of them (`"layers/attention/*"`), whose values come back. `replaced`: new data by name.
    `functions`: a function of `(layer, value)` by name, whose result goes on in the value's place; `layer` is None outside
    the layers. `added`: data by name that is added, of a shape that broadcasts to the value's (with a leading layer axis
    inside the layers): zeros there are what to take a gradient with respect to. Their order is this one, and what comes back
    is what goes on.
    """

    returned: str | tuple[str, ...] = struct.field(pytree_node=False, default=())
    replaced: dict[str, Replacement] = field(default_factory=dict)
    functions: Mapping[str, Any] | tuple[tuple[str, Any], ...] = struct.field(pytree_node=False, default=())
    added: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.returned, str):
            object.__setattr__(self, "returned", (self.returned,))
        if isinstance(self.functions, Mapping):  # a static field must hash
            object.__setattr__(self, "functions", tuple(self.functions.items()))

    def returns(self, path: str) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in self.returned)

    def changes(self) -> set[str]:
        """The names of values that go on changed."""
        return {*self.replaced, *self.added, *dict(self.functions)}

    def data(self) -> dict[str, list[Any]]:
        """All arrays by the name of their tap."""
        new = {name: [x for x in (r.value, r.mask) if x is not None] for name, r in self.replaced.items()}
        return {name: [*new.get(name, []), *([self.added[name]] if name in self.added else [])] for name in {*new, *self.added}}


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
        path = f"{self.scope}{name}"
        return self.taps is not None and (path in self.taps.changes() or self.taps.returns(path))


def tap(value: Array, name: str, ctx: Context) -> Array:
    """Name a value: changed and returned as the context's taps say, and untouched where there are none.

    Raises:
      InputError: data that does not broadcast to the value.
    """
    if ctx.taps is None:
        return value
    path = ctx.scope + name

    def here(data: Any) -> Array | None:
        if data is None:
            return None
        data = jnp.asarray(data) if ctx.layer is None else jnp.asarray(data)[ctx.layer]
        if data.ndim > value.ndim or any(n not in (1, m) for n, m in zip(data.shape[::-1], value.shape[::-1])):
            raise InputError(
                f"the tap {path!r} has the shape {value.shape}{'' if ctx.layer is None else ' in each layer'}, to which data of "
                f"shape {data.shape} does not broadcast"
            )
        return data

    if path in ctx.taps.replaced:
        new, mask = here(ctx.taps.replaced[path].value).astype(value.dtype), here(ctx.taps.replaced[path].mask)
        value = jnp.broadcast_to(new, value.shape) if mask is None else jnp.where(mask, new, value)
    if path in dict(ctx.taps.functions):
        value = dict(ctx.taps.functions)[path](ctx.layer, value)
    if path in ctx.taps.added:
        value = value + here(ctx.taps.added[path]).astype(value.dtype)
    ctx.collected[path] = value if ctx.taps.returns(path) else None
    return value


def collecting(ctx: Context) -> Context:
    """A context that gathers its tapped values in a fresh dict; each traced function (a scan's body) needs its own."""
    return ctx if ctx.taps is None else ctx.replace(collected={})


def check_layer_axis(ctx: Context, depth: int) -> None:
    """Raise InputError if data for a tap inside the `depth` layers of this context's scope is not one for each."""
    for name, arrays in {} if ctx.taps is None else ctx.taps.data().items():
        for data in arrays:
            if name.startswith(f"{ctx.scope}{LAYERS}/") and jnp.shape(data)[:1] != (depth,):
                raise InputError(
                    f"the tap {name!r} is in each of {depth} layers: expected data with a leading axis of {depth}, "
                    f"not of shape {jnp.shape(data)}"
                )


def returned_taps(ctx: Context) -> dict[str, Array]:
    """What the taps asked for, once the model has run; a name that no layer taps is an error.

    Raises:
      InputError: a returned, replaced, changed or added name does not exist in this model.
    """
    if ctx.taps is None:
        return {}
    for name in sorted(ctx.taps.changes() - set(ctx.collected)):
        raise InputError(f"no tap is called {name!r} in this model: {did_you_mean(name, ctx.collected)}")
    for pattern in ctx.taps.returned:
        if not any(fnmatchcase(name, pattern) for name in ctx.collected):
            raise InputError(f"no tap is called {pattern!r} in this model: {did_you_mean(pattern, ctx.collected)}")
    return {name: value for name, value in ctx.collected.items() if value is not None}


def constrain(x: Array, ctx: Context, *axes: str | None) -> Array:
    """Keep an activation where the sharding rules say; without rules it is left to the compiler."""
    if ctx.rules is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(ctx.rules.mesh, ctx.rules.spec(*axes)))
