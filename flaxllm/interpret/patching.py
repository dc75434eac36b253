"""Activation patching: which part of a model carries what sets two inputs apart."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from flaxllm.decoding.reading import has_encoder
from flaxllm.errors import InputError
from flaxllm.interpret.forward import Input, forward, given, returning
from flaxllm.interpret.metrics import Metric, as_data, measured
from flaxllm.interpret.names import tap_axes
from flaxllm.models import Model
from flaxllm.nn import Context, Replacement, Taps

# By what is patched: the axes that can be its places, and the tap unless one is named.
_PLACES = {"position": (("length", "queries"), "layers/out"), "head": (("heads", "kv_heads"), "layers/attention/mixed")}

Texts = Input | tuple[Input, Input]


def patch(
    model: Model,
    params: dict,
    clean: Texts,
    corrupt: Texts,
    metric: Metric,
    tap: str | None = None,
    over: str = "position",
    *,
    cells_at_a_time: int = 8,
    ctx: Context = Context(),  # noqa: B008 (frozen)
    **inputs: Input | None,
) -> Float[Array, "layers places"]:
    """What `metric` gives for the corrupt input where one cell of `tap` is that of the clean input, for each cell: a layer and
    a position, or a layer and a head (Meng et al. 2022, section 2, there with noise as the corruption; Wang et al. 2023,
    section 3).

    `clean` and `corrupt` are tokens of one shape, of an encoder-decoder pairs `(tokens, decoder_tokens)`; `inputs` are the
    others that the model's `apply` takes, such as `valid`, the same for both. `tap` is what the layers give ("layers/out"), or
    for heads what each of them mixed ("layers/attention/mixed"), unless named; of an encoder-decoder, the decoder's. `metric`
    is a function of the model's output to one number, such as `logit_difference` makes. Other inputs of the same shapes
    compile nothing anew, if the metric is data, as that is, or the same function.

    Raises:
      InputError: inputs of different shapes, a tap that the model or its layers do not have or that has no such places, or a
        metric that gives no single number.
    """
    if over not in _PLACES:
        raise InputError(f"patch got over={over!r}: expected 'position' or 'head'")
    axes, default = _PLACES[over]
    tap = tap or ("decoder/" if has_encoder(model) else "") + default
    names = tap_axes(tap)
    places = [number for number, axis in enumerate(names) if axis in axes]
    if names[0] != "layers" or not places:
        raise InputError(f"patch got the tap {tap!r} with the axes {', '.join(names)}: expected layers, and {' or '.join(axes)}")
    clean, corrupt = (given(model, *(texts if isinstance(texts, tuple) else (texts, None)), inputs) for texts in (clean, corrupt))
    shapes = [[inputs[name].shape for name in ("tokens", "decoder_tokens") if name in inputs] for inputs in (clean, corrupt)]
    if shapes[0] != shapes[1]:
        raise InputError(f"patch got a clean input of shape {shapes[0]} and a corrupt one of {shapes[1]}: expected the same")
    kept = forward(model, params, clean, returning(ctx, tap)).taps[tap]
    return _patched(model, params, corrupt, kept, as_data(metric), tap, places[0], cells_at_a_time, ctx)


@partial(jax.jit, static_argnames=("model", "tap", "axis", "cells_at_a_time"))
def _patched(
    model: Model, params: dict, inputs: dict[str, Input], kept: Array, metric: Partial, tap: str, axis: int,
    cells_at_a_time: int, ctx: Context,
) -> Float[Array, "layers places"]:  # fmt: skip
    depth, count = kept.shape[0], kept.shape[axis]
    taps = (ctx.taps or Taps()).replace(returned=())

    def with_cell(cell: Array) -> Array:
        mask = jnp.arange(depth * count).reshape(depth, count) == cell
        mask = mask.reshape(depth, *(count if number == axis else 1 for number in range(1, kept.ndim)))
        replaced = taps.replaced | {tap: Replacement(kept, mask)}
        patched = ctx.replace(taps=taps.replace(replaced=replaced))
        return measured(metric, forward(model, params, inputs, patched))

    cells = jax.lax.map(with_cell, jnp.arange(depth * count), batch_size=cells_at_a_time)
    return cells.reshape(depth, count)
