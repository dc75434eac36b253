"""What a decoder keeps of the tokens it has read: their keys and values, layer by layer, so that each is read once.

A cache is data, and reading more tokens makes the next one. Row `b` has read `length[b]` tokens, and the one at position `p`
is in slot `p % slots` of each layer: a layer that sees a window needs few slots, the others as many as there will be
tokens. What a slot holds follows from the row's length alone, so that taking tokens back is making the length smaller.

Within a step the layers only read the cache, and what they add is written when all have run: else XLA would copy the whole.
"""

from collections.abc import Callable
from typing import no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from flaxllm.errors import InputError
from flaxllm.nn.context import Context
from flaxllm.nn.mask import Mask

FEW = 16  # so many tokens are written one by one; more are merged into all the slots at once


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class KeyValues(struct.PyTreeNode):
    """Keys and values of one layer, in the orders that a CPU's products with few queries read as they are."""

    keys: Float[Array, "batch kv_heads head_dim slots"]
    values: Float[Array, "batch kv_heads slots v_dim"]

    @property
    def slots(self) -> int:
        return self.keys.shape[-1]


Layers = tuple[KeyValues, ...]


@no_type_check
class Cache(struct.PyTreeNode):
    """`layers`: what self-attention has read; none where nothing was yet, and there is no need to look. `memory`: what
    cross-attention looks at, made once (`valid` where it is no padding)."""

    length: Int[Array, "batch"]
    layers: Layers
    memory: Layers | None = None
    memory_valid: Bool[Array, "sources source"] | None = None


def as_kept(keys: Float[Array, "batch k_len kv_heads dim"], values: Float[Array, "batch k_len kv_heads v_dim"]) -> KeyValues:
    return KeyValues(jnp.einsum("bskd->bkds", keys), jnp.einsum("bskd->bksd", values))


def reading(ctx: Context, cache: Cache) -> Context:
    """A context whose layers see what the cache holds, and gather what is to be written."""
    return ctx.replace(cache=cache, written=[])


def past(ctx: Context) -> KeyValues | None:
    """What this layer has read before.

    Raises:
      InputError: the layers are stacked.
    """
    if not isinstance(ctx.layer, int):
        raise InputError("reading with a cache needs the layers one by one: give parameters that flaxllm.prepare made")
    return ctx.cache.layers[ctx.layer] if ctx.cache.layers else None


def slot_positions(length: Int[Array, "batch"], slots: int) -> Int[Array, "batch slots"]:
    """The position of the token in each slot; below 0 where there is none."""
    last = length[:, None] - 1
    return last - (last - jnp.arange(slots)) % slots


def new_positions(cache: Cache, count: int) -> Int[Array, "batch count"]:
    """Those of the tokens that come next."""
    return cache.length[:, None] + jnp.arange(count)


def seen_positions(positions: Int[Array, "#batch length"], ctx: Context) -> Int[Array, "#batch k_len"]:
    """The positions of all keys that tokens at `positions` are compared with: those in the cache come first."""
    if ctx.cache is None or not ctx.cache.layers:
        return positions
    return jnp.concatenate([slot_positions(ctx.cache.length, ctx.cache.layers[0].slots), positions], axis=1)


def mask_with_past(mask: Mask, cache: Cache, slots: int, count: int) -> Mask:
    """The mask of `count` new tokens, over the slots and then over these tokens themselves.

    Raises:
      InputError: the mask tells documents apart.
    """
    if mask.query_segments is not None:
        raise InputError("rows that hold several documents cannot be read with a cache: give each document a row")
    old, new = slot_positions(cache.length, slots), new_positions(cache, count)
    valid = jnp.ones_like(new, bool) if mask.key_valid is None else mask.key_valid
    return mask.replace(
        query_positions=new,
        key_positions=jnp.concatenate([old, new], axis=1),
        key_valid=jnp.concatenate([old >= 0, valid], axis=1),
    )


def written(
    ctx: Context, cache: Cache, counts: Int[Array, "batch"], hidden: Float[Array, "batch length width"]
) -> Cache:
    """The cache with what the layers of this context gathered: the first `counts` tokens of each row. `hidden` is what the
    last of them gave."""
    # XLA writes in place only if it sees that all reading comes before. So the place is made to depend on what was read last.
    begin = jnp.where(jnp.isnan(hidden[:, 0, 0]), 0, cache.length)
    write = _begin if not ctx.cache.layers else _write_each if ctx.written[0].slots <= FEW else _merge
    return cache.replace(
        length=cache.length + counts, layers=write(cache.layers, tuple(ctx.written), begin, counts)
    )


def _begin(layers: Layers, new: Layers, begin: Int[Array, "batch"], counts: Int[Array, "batch"]) -> Layers:
    """Rows that held nothing, so that their slots are the tokens in order, where there are as many."""
    if any(added.slots > kept.slots for kept, added in zip(layers, new)):
        return _merge(layers, new, begin, counts)
    return _map(lambda kept, added, axis: _put(kept, added, 0, 0, axis), layers, new)


def _write_each(layers: Layers, new: Layers, begin: Int[Array, "batch"], counts: Int[Array, "batch"]) -> Layers:
    """Token by token, in place. A row's last valid token is written once more for each that is not valid."""
    batch, count = counts.shape[0], new[0].slots

    def write(number: Array | int, layers: Layers) -> Layers:
        row = number // count
        token = jnp.minimum(number % count, jnp.maximum(counts[row] - 1, 0))

        def write_one(kept: Array, added: Array, axis: int) -> Array:
            one = jax.lax.dynamic_slice_in_dim(jax.lax.dynamic_slice_in_dim(added, row, 1, 0), token, 1, axis)
            return _put(kept, one, row, (begin[row] + token) % kept.shape[axis], axis)

        return _map(write_one, layers, new)

    return write(0, layers) if batch * count == 1 else jax.lax.fori_loop(0, batch * count, write, layers)


def _merge(layers: Layers, new: Layers, begin: Int[Array, "batch"], counts: Int[Array, "batch"]) -> Layers:
    """All slots made anew, each with the token that it holds now, be it old or new."""

    def merge(kept: Array, added: Array, axis: int) -> Array:
        token = slot_positions(begin + counts, kept.shape[axis]) - begin[:, None]
        token = jnp.expand_dims(token, [other for other in (1, 2, 3) if other != axis])
        here = jnp.take_along_axis(added, jnp.maximum(token, 0), axis)
        return jnp.where(token >= 0, here.astype(kept.dtype), kept)

    return _map(merge, layers, new)


def _map(function: Callable[[Array, Array, int], Array], layers: Layers, new: Layers) -> Layers:
    """What `function` makes of all that is kept and added, told the axis of the slots."""
    return tuple(
        KeyValues(function(kept.keys, added.keys, 3), function(kept.values, added.values, 2))
        for kept, added in zip(layers, new, strict=True)
    )


def _put(kept: Array, added: Array, row: Array | int, slot: Array | int, axis: int) -> Array:
    place = [row, 0, 0, 0]
    place[axis] = slot
    return jax.lax.dynamic_update_slice(kept, added.astype(kept.dtype), place)
