"""Attention as maps, as a flow from layer to layer, and as what each head does."""

from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flaxllm.errors import InputError
from flaxllm.interpret.forward import Input, Target, Tokens, forward, given, returning
from flaxllm.models import Model
from flaxllm.nn import Context

Weights = Float[Array | np.ndarray, "layers batch heads queries keys"]

# The families of one stack are told apart by which way they look.
_STACK = {"bert": "encoder", "gpt": "decoder", "llama": "decoder"}


def attention_maps(
    model: Model,
    params: dict,
    tokens: Tokens,
    decoder_tokens: Target | None = None,
    *,
    ctx: Context = Context(),  # noqa: B008 (frozen)
    **inputs: Input | None,
) -> dict[str, Float[Array, "layers batch heads queries keys"]]:
    """The attention weights of all layers and heads: "encoder", "decoder" and "cross", those of them that the model has.

    A query's weights over the keys that it sees add up to 1, and are 0 for the others. `inputs` are the others that the
    model's `apply` takes, such as `valid`.

    Raises:
      InputError: inputs that the model does not take.
    """
    inputs = given(model, tokens, decoder_tokens, inputs)
    taps = forward(model, params, inputs, returning(ctx, "*attention/weights")).taps
    names = {
        "layers/attention/weights": _STACK.get(model.family),
        "encoder/layers/attention/weights": "encoder",
        "decoder/layers/attention/weights": "decoder",
        "decoder/layers/cross_attention/weights": "cross",
    }
    return {place: taps[name] for name, place in names.items() if name in taps}


def attention_rollout(weights: Weights) -> Float[Array, "layers batch queries keys"]:
    """How much of each input token flows to each position of each layer, through attention and the residual connections
    alike: `A_l A_(l-1) ... A_1`, where `A` is half the mean of the heads and half the identity (Abnar and Zuidema 2020,
    section 3, attention rollout). The rows add up to 1.

    Raises:
      InputError: weights that are not those of self-attention.
    """
    mixing = 0.5 * _self_attention(weights).mean(2) + 0.5 * jnp.eye(weights.shape[-1])
    mixing = mixing / mixing.sum(-1, keepdims=True)  # of queries that see nothing

    def deeper(below: Array, mixing: Array) -> tuple[Array, Array]:
        reached = jnp.einsum("bqk,bki->bqi", mixing, below)
        return reached, reached

    start = jnp.broadcast_to(jnp.eye(weights.shape[-1], dtype=mixing.dtype), mixing.shape[1:])
    return jax.lax.scan(deeper, start, mixing)[1]


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class HeadSummaries(NamedTuple):
    """What each head does, `[layers, heads]`. `entropy` of its weights, in nats; mean `distance` in tokens from query to key;
    `previous_token`: the weight on the token just before; `induction`: the weight on what came after earlier occurrences of
    the query's token (None where the tokens are not known). NaN where no query counts."""

    entropy: Float[Array, "layers heads"]
    distance: Float[Array, "layers heads"]
    previous_token: Float[Array, "layers heads"]
    induction: Float[Array, "layers heads"] | None


def head_summaries(weights: Weights, tokens: Tokens | None = None, valid: Input | None = None) -> HeadSummaries:
    """Means over the valid queries of the whole batch, of self-attention: for `previous_token` over those with a token before
    them, for `induction` over those whose token has occurred before (the prefix matching of Olsson et al. 2022, appendix).

    Raises:
      InputError: weights that are not those of self-attention.
    """
    weights = _self_attention(weights)
    batch, length = weights.shape[1], weights.shape[-1]
    counted = jnp.ones((batch, length), bool) if valid is None else jnp.asarray(valid)
    place = jnp.arange(length)
    apart = jnp.abs(place[:, None] - place).astype(weights.dtype)
    is_previous = jnp.broadcast_to(place[:, None] - 1 == place, (batch, length, length)) & counted[:, None, :]
    entropy = -jnp.where(weights > 0, weights * jnp.log(jnp.where(weights > 0, weights, 1.0)), 0.0).sum(-1)
    return HeadSummaries(
        entropy=_mean(entropy, counted),
        distance=_mean(jnp.einsum("lbhqk,qk->lbhq", weights, apart), counted),
        previous_token=_weight_on(weights, is_previous, counted),
        induction=None if tokens is None else _weight_on(weights, _after_earlier(jnp.asarray(tokens), counted), counted),
    )


def _after_earlier(tokens: Array, valid: Array) -> Bool[Array, "batch queries keys"]:
    """Whether a key is the one right after an earlier occurrence of the query's token."""
    place = jnp.arange(tokens.shape[1])
    earlier = (tokens[:, :, None] == tokens[:, None, :]) & valid[:, None, :] & (place[:, None] > place)
    return jnp.roll(earlier, 1, axis=-1)  # nothing is rolled around: the last token is earlier than none


def _weight_on(weights: Array, keys: Bool[Array, "batch queries keys"], valid: Array) -> Float[Array, "layers heads"]:
    """The weight on these keys, over the valid queries that have any."""
    return _mean(jnp.einsum("lbhqk,bqk->lbhq", weights, keys.astype(weights.dtype)), valid & keys.any(-1))


def _mean(values: Float[Array, "layers batch heads queries"], counted: Array) -> Float[Array, "layers heads"]:
    return jnp.einsum("lbhq,bq->lh", values, counted.astype(values.dtype)) / counted.sum()


def _self_attention(weights: Weights) -> Float[Array, "layers batch heads length length"]:
    if weights.shape[-2] != weights.shape[-1]:
        raise InputError(
            f"attention weights of shape {weights.shape} are from {weights.shape[-2]} queries to {weights.shape[-1]} keys: "
            "expected those of self-attention, [layers, batch, heads, length, length]"
        )
    return jnp.asarray(weights)
