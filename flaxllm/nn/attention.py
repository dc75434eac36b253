"""The one attention function.

The plain einsum form is the oracle that every other implementation is tested against. `"auto"` chooses among
them; asking for one that cannot serve the call is an error, never a silent fallback.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flaxllm.errors import InputError, did_you_mean
from flaxllm.nn.blockwise import blockwise_attention
from flaxllm.nn.context import Context, tap
from flaxllm.nn.layers import dropout
from flaxllm.nn.mask import LEAST_SCORE, Mask, check_mask, dense_mask

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

    @property
    def is_plainly_causal(self) -> bool:
        """The mask is causal, perhaps windowed, by the order of the arrays alone."""
        return self.mask.causal and not jax.tree.leaves(self.mask)

    @property
    def drawn_mask(self) -> Bool[Array, "#batch q_len k_len"] | None:
        return dense_mask(self.mask, self.q.shape[1], self.k.shape[1])


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

    Serves self, cross, grouped-query (`heads` a multiple of `kv_heads`), packed, padded, windowed, biased and
    cached use. `causal=True` is short for `mask=Mask(causal=True)`. `scale` is `dim ** -0.5` unless given.
    The softmax is in float32 at least, the result in the dtype of `v`. A query that sees no key gets 0.
    `ctx.attention` names the implementation.

    Raises:
      InputError: shapes or a mask that do not fit, or an implementation that cannot serve the call.
    """
    if causal and mask is not None:
        raise InputError("attention got both causal=True and a mask: write Mask(causal=True, ...) instead")
    mask = Mask(causal=causal) if mask is None else mask
    _check_shapes(q, k, v, bias)
    check_mask(mask, q.shape[0], q.shape[1], k.shape[1])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    call = Call(q, k, v, mask, bias, scale, dropout_rate, ctx)
    name = _choose(call) if ctx.attention == "auto" else ctx.attention
    if name not in IMPLEMENTATIONS:
        known = did_you_mean(name, ["auto", *IMPLEMENTATIONS])
        raise InputError(f"unknown attention implementation {name!r}: {known}")
    refusal = REFUSALS[name](call)
    if refusal:
        raise InputError(f"attention implementation {name!r} {refusal}: use 'auto' or 'einsum'")
    return IMPLEMENTATIONS[name](call)


def _check_shapes(q: Array, k: Array, v: Array, bias: Array | None) -> None:
    if not (q.ndim == k.ndim == v.ndim == 4 and q.shape[::3] == k.shape[::3] and k.shape[:3] == v.shape[:3]):
        raise InputError(
            f"attention got queries {q.shape}, keys {k.shape} and values {v.shape}: expected "
            "[batch, q_len, heads, dim], [batch, k_len, kv_heads, dim] and [batch, k_len, kv_heads, v_dim]"
        )
    (batch, q_len, heads, _), (_, k_len, kv_heads, _) = q.shape, k.shape
    if heads % kv_heads:
        raise InputError(f"{heads} query heads cannot share {kv_heads} key heads: use a multiple")
    full = (batch, heads, q_len, k_len)
    if bias is not None and not _broadcasts(bias.shape, full):
        raise InputError(f"the attention bias has shape {bias.shape}: expected {full}, or 1 for some")


def _broadcasts(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    return len(shape) == len(full) and all(n in (1, m) for n, m in zip(shape, full, strict=True))


def _choose(call: Call) -> str:
    if call.shows_weights or call.drops:
        return "einsum"
    if call.ctx.cache is not None and call.ctx.cache.layers:
        return "blockwise"  # which passes over slots that are empty
    batch, q_len, heads, _ = call.q.shape
    score_bytes = 4 * batch * heads * q_len * call.k.shape[1]
    if call.ctx.rules is not None:
        score_bytes //= math.prod(call.ctx.rules.split(axis) for axis in ("batch", "length", "heads"))
    return "blockwise" if score_bytes > DENSE_SCORE_BYTES else "einsum"


def einsum_attention(call: Call) -> Float[Array, "batch q_len heads v_dim"]:
    """The definition, written down: scores and weights are arrays `[batch, heads, q_len, k_len]`.

    The values come before the weights, since the last operand of an einsum is the left one of its product: the other way
    round the weights would be transposed.
    """
    q, k, v, ctx = call.q, call.k, call.v, call.ctx
    batch, q_len, heads, dim = q.shape
    k_len, kv_heads = k.shape[1:3]
    grouped = (batch, kv_heads, heads // kv_heads, q_len, k_len)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    if heads == kv_heads:
        scores = jnp.einsum("bthd,bshd->bhts", q, k, precision=ctx.precision, preferred_element_type=wide)
    else:
        # In the order of the scores, which would be transposed otherwise.
        q = jnp.einsum("btkgd->bkgtd", q.reshape(batch, q_len, kv_heads, heads // kv_heads, dim))
        scores = jnp.einsum("bkgtd,bskd->bkgts", q, k, precision=ctx.precision, preferred_element_type=wide)
        scores = scores.reshape(batch, heads, q_len, k_len)
    scores = scores * call.scale if call.bias is None else scores * call.scale + call.bias
    seen = call.drawn_mask
    weights = masked_softmax(tap(scores, "scores", ctx), None if seen is None else seen[:, None])
    weights = tap(weights, "weights", ctx)
    weights = dropout(weights, call.dropout_rate, "weights", ctx).astype(v.dtype)
    if heads == kv_heads:
        return jnp.einsum("bshd,bhts->bthd", v, weights, precision=ctx.precision)
    out = jnp.einsum("bskd,bkgts->bkgtd", v, weights.reshape(grouped), precision=ctx.precision)
    return jnp.einsum("bkgtd->btkgd", out).reshape(batch, q_len, heads, v.shape[-1])


@jax.custom_jvp
def masked_softmax(
    scores: Float[Array, "batch heads q_len k_len"], seen: Bool[Array, "#batch 1 q_len k_len"] | None
) -> Float[Array, "batch heads q_len k_len"]:
    """Softmax over the keys that are seen, 0 for the others; the backward pass keeps only the result."""
    if seen is not None:
        # Added, not selected: XLA on CPU then makes one pass of product, mask and exponential.
        scores = scores + jnp.where(seen, 0.0, -jnp.inf)
    unnormalized = jnp.exp(scores - scores.max(-1, keepdims=True, initial=LEAST_SCORE))
    total = unnormalized.sum(-1, keepdims=True)
    return unnormalized / jnp.where(total == 0.0, 1.0, total)


@masked_softmax.defjvp
def _masked_softmax_derivative(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    weights = masked_softmax(*primals)
    weighted = weights * tangents[0]
    return weights, weighted - weights * weighted.sum(-1, keepdims=True)


def _library_attention(call: Call, implementation: str) -> Float[Array, "batch q_len heads v_dim"]:
    """`jax.nn.dot_product_attention`. It is told of a plainly causal mask, so that cuDNN can skip what that
    hides, and shown any other; its queries that see nothing are set to 0."""
    seen = None if call.is_plainly_causal else call.drawn_mask
    full = (call.q.shape[1], call.k.shape[1])  # cuDNN takes no bias that is broadcast over these
    out = jax.nn.dot_product_attention(
        call.q,
        call.k,
        call.v,
        bias=None if call.bias is None else jnp.broadcast_to(call.bias, (*call.bias.shape[:2], *full)),
        mask=None if seen is None else seen[:, None],
        scale=call.scale,
        is_causal=call.is_plainly_causal,
        local_window_size=(call.mask.window - 1, 0) if call.is_plainly_causal and call.mask.window else None,
        implementation=implementation,
    )
    return out if seen is None else jnp.where(seen.any(-1)[:, :, None, None], out, 0.0)


def _blockwise(call: Call) -> Float[Array, "batch q_len heads v_dim"]:
    return blockwise_attention(call.q, call.k, call.v, call.mask, call.bias, call.scale, call.ctx.precision)


def _refuses_inside(call: Call) -> str | None:
    if call.drops:
        return "has no attention dropout"
    if call.shows_weights:
        return "never holds the attention weights that a tap asks for"
    return None


def _refuses_library(call: Call) -> str | None:
    q, k, v = call.q, call.k, call.v
    if not q.dtype == k.dtype == v.dtype:
        return f"needs queries, keys and values of one dtype, not {q.dtype}, {k.dtype} and {v.dtype}"
    if k.shape != v.shape:
        return f"needs values as wide as keys, not {v.shape[-1]} and {k.shape[-1]}"
    if call.ctx.precision is not None:
        return f"cannot be told the precision of its products ({call.ctx.precision})"
    return _refuses_inside(call)


def _refuses_cudnn(call: Call) -> str | None:
    """The limits that jax 0.10 finds only while it traces, differentiates or compiles."""
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version or float(device.compute_capability) < 8.0:
        return f"needs an NVIDIA GPU of the Ampere generation or newer, and this is {device.device_kind}"
    if call.q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"needs bfloat16 or float16 queries, not {call.q.dtype}"
    dim, widest = call.q.shape[-1], 256 if float(device.compute_capability) >= 9.0 else 128
    if dim % 8 or dim > widest:
        return f"needs a head_dim that is a multiple of 8 up to {widest} on this GPU, not {dim}"
    if call.bias is not None and call.bias.dtype != call.q.dtype:
        return f"needs a bias of the queries' dtype {call.q.dtype}, not {call.bias.dtype}"
    lengths = (call.q.shape[1], call.k.shape[1])
    adds_scores = call.bias is not None or not (call.is_plainly_causal or call.drawn_mask is None)
    if adds_scores and any(length % 2 for length in lengths):
        return f"needs even lengths where a bias or a mask is drawn, not {lengths[0]} and {lengths[1]}"
    return _refuses_library(call)


IMPLEMENTATIONS = {
    "einsum": einsum_attention,
    "xla": lambda call: _library_attention(call, "xla"),
    "cudnn": lambda call: _library_attention(call, "cudnn"),
    "blockwise": _blockwise,
}
REFUSALS = {
    "einsum": lambda call: None,
    "xla": _refuses_library,
    "cudnn": _refuses_cudnn,
    "blockwise": _refuses_inside,
}
