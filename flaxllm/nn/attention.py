"""The one attention function.

The plain einsum form is the oracle that every other implementation is tested against. `"auto"` chooses among them;
asking for one that cannot serve the call is an error, never a silent fallback.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flaxllm.errors import InputError, did_you_mean
from flaxllm.nn.blockwise import blockwise_attention
from flaxllm.nn.context import Context, tap
from flaxllm.nn.layers import dropout
from flaxllm.nn.mask import HIDDEN_SCORE, Mask, check_mask, dense_mask

DENSE_SCORE_BYTES = 2**28  # above this, "auto" no longer writes the scores of one device down


class Call(NamedTuple):
    """The arguments of one attention, checked and completed: what an implementation sees."""

    q: Float[Array, "batch q_len heads dim"]
    k: Float[Array, "batch k_len kv_heads dim"]
    v: Float[Array, "batch k_len kv_heads v_dim"]
    mask: Mask
    bias: Float[Array, "#batch #heads #q_len #k_len"] | None
    scale: float
    dropout_rate: float
    ctx: Context

    @property
    def drops(self) -> bool:
        return self.dropout_rate > 0.0 and self.ctx.dropout_key is not None

    @property
    def shows_weights(self) -> bool:
        return self.ctx.wants("scores") or self.ctx.wants("weights")


def attention(
    q: Float[Array, "batch q_len heads dim"],
    k: Float[Array, "batch k_len kv_heads dim"],
    v: Float[Array, "batch k_len kv_heads v_dim"],
    mask: Mask | None = None,
    *,
    causal: bool = False,
    bias: Float[Array, "#batch #heads #q_len #k_len"] | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Float[Array, "batch q_len heads v_dim"]:
    """`softmax(scale * q k^T + bias) v` over the keys that `mask` shows (Vaswani et al. 2017, eq. 1).

    Serves self, cross, grouped-query (`heads` a multiple of `kv_heads`), packed, padded, windowed, biased and cached
    use. `causal=True` is short for `mask=Mask(causal=True)`. `scale` is `dim ** -0.5` unless given. The softmax is in
    float32, the result in the dtype of `v`. A query that sees no key gets 0. `ctx.attention` names the implementation.

    Raises:
      InputError: heads that do not divide, a mask that does not fit, or an implementation that cannot serve the call.
    """
    if causal and mask is not None:
        raise InputError("attention got both causal=True and a mask: write Mask(causal=True, ...) instead")
    if q.shape[2] % k.shape[2]:
        raise InputError(f"{q.shape[2]} query heads cannot share {k.shape[2]} key heads: use a multiple")
    mask = Mask(causal=causal) if mask is None else mask
    check_mask(mask, q.shape[1], k.shape[1])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    call = Call(q, k, v, mask, bias, scale, dropout_rate, ctx)
    name = _choose(call) if ctx.attention == "auto" else ctx.attention
    if name not in IMPLEMENTATIONS:
        raise InputError(f"unknown attention implementation {name!r}: {did_you_mean(name, ['auto', *IMPLEMENTATIONS])}")
    refusal = REFUSALS[name](call)
    if refusal:
        raise InputError(f"attention implementation {name!r} {refusal}: use 'auto' or 'einsum'")
    return IMPLEMENTATIONS[name](call)


def _choose(call: Call) -> str:
    if call.shows_weights or call.drops:
        return "einsum"
    batch, q_len, heads, _ = call.q.shape
    score_bytes = 4 * batch * heads * q_len * call.k.shape[1]
    if call.ctx.rules is not None:
        score_bytes //= call.ctx.rules.split("batch") * call.ctx.rules.split("heads")
    return "blockwise" if score_bytes > DENSE_SCORE_BYTES else "einsum"


def einsum_attention(call: Call) -> Float[Array, "batch q_len heads v_dim"]:
    """The definition, written down: scores and weights are arrays `[batch, heads, q_len, k_len]`."""
    q, k, v, ctx = call.q, call.k, call.v, call.ctx
    batch, q_len, heads, dim = q.shape
    k_len, kv_heads = k.shape[1:3]
    grouped = (batch, kv_heads, heads // kv_heads, q_len, k_len)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    if heads == kv_heads:
        scores = jnp.einsum("bthd,bshd->bhts", q, k, precision=ctx.precision, preferred_element_type=wide)
    else:
        q = q.reshape(batch, q_len, kv_heads, heads // kv_heads, dim)
        scores = jnp.einsum("btkgd,bskd->bkgts", q, k, precision=ctx.precision, preferred_element_type=wide)
        scores = scores.reshape(batch, heads, q_len, k_len)
    scores = scores * call.scale if call.bias is None else scores * call.scale + call.bias
    seen = dense_mask(call.mask, q_len, k_len)
    weights = masked_softmax(tap(scores, "scores", ctx), None if seen is None else seen[:, None])
    weights = tap(weights, "weights", ctx)
    weights = dropout(weights, call.dropout_rate, "weights", ctx).astype(v.dtype)
    if heads == kv_heads:
        return jnp.einsum("bhts,bshd->bthd", weights, v, precision=ctx.precision)
    out = jnp.einsum("bkgts,bskd->btkgd", weights.reshape(grouped), v, precision=ctx.precision)
    return out.reshape(batch, q_len, heads, v.shape[-1])


@jax.custom_jvp
def masked_softmax(
    scores: Float[Array, "batch heads q_len k_len"], seen: Bool[Array, "#batch 1 q_len k_len"] | None
) -> Float[Array, "batch heads q_len k_len"]:
    """Softmax over the keys that are seen, 0 for the others; the backward pass keeps nothing but the result."""
    if seen is not None:
        scores = jnp.where(seen, scores, HIDDEN_SCORE)
    unnormalized = jnp.exp(scores - scores.max(-1, keepdims=True))
    if seen is not None:
        unnormalized = jnp.where(seen, unnormalized, 0.0)
    total = unnormalized.sum(-1, keepdims=True)
    return unnormalized / jnp.where(total == 0.0, 1.0, total)


@masked_softmax.defjvp
def _masked_softmax_derivative(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    weights = masked_softmax(*primals)
    weighted = weights * tangents[0]
    return weights, weighted - weights * weighted.sum(-1, keepdims=True)


def _library_attention(call: Call, implementation: str) -> Float[Array, "batch q_len heads v_dim"]:
    """`jax.nn.dot_product_attention`, with the mask drawn and hidden rows set to 0."""
    seen = dense_mask(call.mask, call.q.shape[1], call.k.shape[1])
    out = jax.nn.dot_product_attention(
        call.q,
        call.k,
        call.v,
        bias=call.bias,
        mask=None if seen is None else seen[:, None],
        scale=call.scale,
        implementation=implementation,
    )
    if call.mask.hides_whole_rows:
        out = jnp.where(seen.any(-1)[:, :, None, None], out, 0.0)
    return out


def _blockwise(call: Call) -> Float[Array, "batch q_len heads v_dim"]:
    return blockwise_attention(call.q, call.k, call.v, call.mask, call.bias, call.scale, call.ctx.precision)


def _refuses_inside(call: Call) -> str | None:
    if call.drops:
        return "has no attention dropout"
    if call.shows_weights:
        return "never holds the attention weights that a tap asks for"
    return None


def _refuses_cudnn(call: Call) -> str | None:
    if jax.default_backend() != "gpu":
        return f"needs an NVIDIA GPU, and this is {jax.default_backend()}"
    if call.q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs bfloat16 or float16 queries, not {call.q.dtype}"
    return _refuses_inside(call)


IMPLEMENTATIONS = {
    "einsum": einsum_attention,
    "xla": lambda call: _library_attention(call, "xla"),
    "cudnn": lambda call: _library_attention(call, "cudnn"),
    "blockwise": _blockwise,
}
REFUSALS = {
    "einsum": lambda call: None,
    "xla": _refuses_inside,
    "cudnn": _refuses_cudnn,
    "blockwise": _refuses_inside,
}
