"""A logit as a sum of what each part of the model adds to it."""

from functools import partial
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.interpret.forward import Input, Target, Tokens, final_norm, forward, given, returning, writer
from flaxllm.interpret.metrics import OnePerRow, at, difference, known_tokens
from flaxllm.models import Model, family
from flaxllm.nn import Context


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class Attribution(NamedTuple):
    """What each part adds to a logit, or to a difference of two; all together are the `logit`.

    `heads` are those of self-attention, `cross_heads` those of a decoder that looks at an encoder (None elsewhere);
    `attention_biases` are those of all ways out of attention in a layer, and `norm_bias` is the final norm's."""

    embedding: Float[Array, "batch"]
    heads: Float[Array, "layers batch heads"]
    cross_heads: Float[Array, "layers batch heads"] | None
    attention_biases: Float[Array, "layers batch"]
    mlps: Float[Array, "layers batch"]
    norm_bias: Float[Array, "batch"]
    logit: Float[Array, "batch"]


def direct_logit_attribution(
    model: Model,
    params: dict,
    tokens: Tokens,
    right: OnePerRow,
    wrong: OnePerRow | None = None,
    decoder_tokens: Target | None = None,
    *,
    position: OnePerRow = -1,
    ctx: Context = Context(),  # noqa: B008 (frozen)
    **inputs: Input | None,
) -> Attribution:
    """The logit of the token `right` at a position, or its difference from that of `wrong`, part by part: the residual stream
    is the sum of what the parts write, and is read linearly once the final norm's divisor is held at its actual value (Elhage
    et al. 2021, "A Mathematical Framework for Transformer Circuits"; nothing that a part does through later parts counts).

    `right`, `wrong` and `position` are one number each, or one for each row; a position below 0 counts from the row's end,
    padding included. Of an encoder-decoder the parts and the position are the decoder's. `inputs` are the others that the
    model's `apply` takes, such as `valid`.

    Raises:
      InputError: a model whose layers end in a norm, or without logits over a vocabulary; a token or a position that is not
        there; or inputs that the model does not take.
    """
    stack = writer(model)
    if not hasattr(family(model.family), "final_norm"):
        raise InputError(
            f"the logits of a {model.family} model are no sum of its parts, each of which a norm rescales: use gpt, llama or t5"
        )
    right, wrong = (None if ids is None else known_tokens(model, ids) for ids in (right, wrong))
    inputs = given(model, tokens, decoder_tokens, inputs)
    length = (tokens if decoder_tokens is None else decoder_tokens).shape[1]
    if not ((-length <= np.asarray(position)) & (np.asarray(position) < length)).all():
        raise InputError(f"the position {np.asarray(position).tolist()} is not in a row of {length} tokens: give one that is")
    ctx = returning(ctx, *(f"{stack}{name}" for name in ("embedding", "layers/*/mixed", "layers/mlp/out", "layers/out")))
    taps = {name.removeprefix(stack): value for name, value in forward(model, params, inputs, ctx).taps.items()}
    return _attribute(model, params, taps, right, wrong, jnp.asarray(position), ctx.replace(taps=None))


@partial(jax.jit, static_argnames="model")
def _attribute(
    model: Model, params: dict, taps: dict[str, Array], right: Array, wrong: Array | None, position: Array, ctx: Context
) -> Attribution:
    stack = params.get("decoder", params)
    at_layers = jax.vmap(at, (0, None))
    residual = at(taps["layers/out"][-1], position)
    hidden = _widen(final_norm(model, params, residual, ctx))
    direction = jax.grad(lambda x: difference(model, params, x, right, wrong, ctx).sum())(hidden)
    reading, norm_bias = _through_norm(stack["final_norm"], _widen(residual), direction, model.config.norm_eps)
    by_head, biases = {}, 0.0
    for name in ("attention", "cross_attention"):
        if f"layers/{name}/mixed" in taps:
            mixed = at_layers(taps[f"layers/{name}/mixed"], position)
            add = jax.vmap(partial(_heads, reading=reading, ctx=ctx))
            by_head[name], bias = add(_ways_out(stack["layers"], name), mixed)
            biases = biases + bias
    return Attribution(
        embedding=_dot(at(taps["embedding"], position), reading),
        heads=by_head["attention"],
        cross_heads=by_head.get("cross_attention"),
        attention_biases=biases,
        mlps=_dot(at_layers(taps["layers/mlp/out"], position), reading),
        norm_bias=norm_bias,
        logit=difference(model, params, hidden, right, wrong, ctx),
    )


def _through_norm(
    norm: dict, residual: Float[Array, "batch embed"], direction: Float[Array, "batch embed"], eps: float
) -> tuple[Float[Array, "batch embed"], Float[Array, "batch"]]:
    """The direction in the residual stream that the final norm, at its actual scale, turns to this one; and what the norm's
    bias adds. A layer norm has one, and takes the mean away too; an RMS norm does neither."""

    def centred(x: Array) -> Array:
        return x - x.mean(-1, keepdims=True) if "bias" in norm else x

    divisor = jnp.sqrt(jnp.square(centred(residual)).mean(-1, keepdims=True) + eps)
    bias = norm["bias"] if "bias" in norm else jnp.zeros_like(norm["scale"])
    return centred(direction * norm["scale"]) / divisor, direction @ bias


def _ways_out(layers: dict | tuple, name: str) -> dict:
    """The parameters of each layer's way out of this attention, with a leading layer axis."""
    if isinstance(layers, dict):
        return layers[name]["out"]
    return jax.tree.map(lambda *layer: jnp.stack(layer), *(layer[name]["out"] for layer in layers))


def _heads(
    way_out: dict, mixed: Float[Array, "batch heads head_dim"], reading: Float[Array, "batch embed"], ctx: Context
) -> tuple[Float[Array, "batch heads"], Float[Array, "batch"]]:
    """What each head's values and the bias add along a direction. The way out is linear, whatever form its weights have."""

    def written(mixed: Array) -> Float[Array, ""]:
        return _dot(nn.dense(way_out, mixed[:, None], "bthk,hkd->btd", ctx)[:, 0], reading).sum()

    by_head = (jax.grad(written)(mixed) * mixed).sum(-1)
    bias = way_out["bias"] if "bias" in way_out else jnp.zeros(reading.shape[-1], reading.dtype)
    return by_head, reading @ ctx.cast(bias)


def _widen(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _dot(x: Float[Array, "*layers batch embed"], direction: Float[Array, "batch embed"]) -> Float[Array, "*layers batch"]:
    return jnp.einsum("...d,...d->...", x, direction)
