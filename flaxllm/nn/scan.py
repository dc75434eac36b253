"""Running a stack of equal layers: one `lax.scan` over stacked parameters, or an unrolled loop over a tuple of trees."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flaxllm.errors import InputError, did_you_mean
from flaxllm.nn.context import Context, check_layer_axis, collecting
from flaxllm.nn.param import LAYERS

Layer = Callable[[dict, Array, Context], Array]

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def scan_layers(cycle: tuple[Layer, ...], params: dict | tuple, x: Array, ctx: Context) -> Array:
    """Apply layer after layer to `x`, whose shape every layer keeps.

    `cycle` holds the layer functions `(params, x, ctx) -> x` that take turns: one for a uniform model, two where dense
    and banded attention alternate. `params` is a tree with a leading `layers` axis (scanned over whole cycles, so that
    compile time does not grow with depth) or a tuple of per-layer trees (unrolled). Values tapped in the layers come
    back with a leading layer axis.

    Raises:
      InputError: the number of layers is no multiple of the cycle's length, the remat policy is unknown, or data of a tap
        is not one for each layer.
    """
    depth = len(params) if isinstance(params, tuple) else jax.tree.leaves(params)[0].shape[0]
    period = len(cycle)
    if depth % period:
        raise InputError(f"{depth} layers cannot alternate {period} kinds of layer: use a multiple of {period} layers")
    check_layer_axis(ctx, depth)

    def turn(x: Array, layers: tuple, first: Array | int) -> tuple[Array, list[dict]]:
        returned = []
        for phase, (layer, layer_params) in enumerate(zip(cycle, layers, strict=True)):
            here = collecting(ctx.within(LAYERS).replace(layer=first + phase))
            x = layer(layer_params, x, here)
            returned.append({name: value for name, value in (here.collected or {}).items() if value is not None})
            if ctx.collected is not None:
                ctx.collected.update(dict.fromkeys(here.collected))
        return x, returned

    turn = _remat(turn, ctx.remat, unrolled=isinstance(params, tuple))
    if isinstance(params, tuple):
        taps = []
        for first in range(0, depth, period):
            x, returned = turn(x, params[first : first + period], first)
            taps.extend(returned)
        by_layer = {name: jnp.stack([t[name] for t in taps]) for name in taps[0]}
    else:

        def body(x: Array, turn_input: tuple) -> tuple[Array, list[dict]]:
            return turn(x, *turn_input)

        # Each kind of layer is scanned over as it is: cut inside the body, every kernel would be saved a second time.
        kinds = tuple(jax.tree.map(lambda p: p[phase::period], params) for phase in range(period))
        x, phases = jax.lax.scan(body, x, (kinds, jnp.arange(0, depth, period)))
        by_layer = {name: jnp.stack([taps[name] for taps in phases], 1) for name in phases[0]}
        by_layer = {name: value.reshape(depth, *value.shape[2:]) for name, value in by_layer.items()}
    if ctx.collected is not None:
        ctx.collected.update(by_layer)
    return x


def unstack(params: dict) -> dict:
    """The same tree with every stack in it as a tuple of per-layer trees, freeing each stacked tensor as it is cut.

    A stack is a subtree called "layers", wherever it is: an encoder-decoder has two. The given arrays of the stacks are
    deleted. Call it once before decoding, never inside `jit`.
    """
    return _map_stacks(_cut_layers, params)


def stack_layers(params: dict) -> dict:
    """The inverse of `unstack`: each tuple of per-layer trees as one tree with a leading layer axis."""
    return _map_stacks(lambda layers: jax.tree.map(lambda *tensors: jnp.stack(tensors), *layers), params)


def _map_stacks(function: Callable, params: dict) -> dict:
    return {
        name: function(part) if name == LAYERS else _map_stacks(function, part) if isinstance(part, dict) else part
        for name, part in params.items()
    }


def _cut_layers(stacked: dict) -> tuple[dict, ...]:
    def cut(tensor: Array) -> list[Array]:
        layers = [tensor[layer] for layer in range(tensor.shape[0])]
        jax.block_until_ready(layers)
        tensor.delete()
        return layers

    leaves, structure = jax.tree.flatten(stacked)
    layers = zip(*(cut(leaf) for leaf in leaves), strict=True)
    return tuple(jax.tree.unflatten(structure, layer) for layer in layers)


def _remat(function: Callable, policy: str | None, unrolled: bool) -> Callable:
    if policy is None:
        return function
    if policy not in REMAT_POLICIES:
        raise InputError(f"unknown remat policy {policy!r}: {did_you_mean(policy, REMAT_POLICIES)}")
    return jax.checkpoint(function, policy=REMAT_POLICIES[policy], prevent_cse=unrolled)
