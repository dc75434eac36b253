"""Attention over what is kept of earlier tokens (or of a memory) and over new ones, without putting the two together."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxllm.nn.attention import attention, masked_softmax
from flaxllm.nn.cache import KeyValues, as_kept, mask_with_past, past
from flaxllm.nn.context import Context, tap
from flaxllm.nn.mask import Mask, dense_mask

FEW_QUERIES = 128  # so many look at what is kept as it is; more go through it block by block


def attend_with_past(
    q: Float[Array, "batch q_len heads dim"],
    k: Float[Array, "batch q_len kv_heads dim"],
    v: Float[Array, "batch q_len kv_heads v_dim"],
    mask: Mask,
    ctx: Context,
    bias: Float[Array, "#batch #heads #q_len #k_len"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch q_len heads v_dim"]:
    """`attention` of new tokens to those in the context's cache and to themselves; what they add to it is gathered.

    `bias` is over the slots of the cache and then the new tokens, `mask` over the new ones alone.

    Raises:
      InputError: stacked layers, or a mask that tells documents apart.
    """
    before, new = past(ctx), as_kept(k, v)
    ctx.written.append(new)
    if before is None:
        return attention(q, k, v, mask, bias=bias, scale=scale, ctx=ctx)
    whole = mask_with_past(mask, ctx.cache, before.slots, q.shape[1])
    if q.shape[1] <= FEW_QUERIES:
        return kept_attention(q, (before, new), whole, ctx, bias, scale)
    keys = jnp.concatenate([jnp.einsum("bkds->bskd", before.keys), k.astype(before.keys.dtype)], axis=1)
    values = jnp.concatenate([jnp.einsum("bksd->bskd", before.values), v.astype(before.values.dtype)], axis=1)
    return attention(q, keys, values, whole, bias=bias, scale=scale, ctx=ctx)


def kept_attention(
    q: Float[Array, "batch q_len heads dim"],
    parts: tuple[KeyValues, ...],
    mask: Mask,
    ctx: Context,
    bias: Float[Array, "#batch #heads #q_len #k_len"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch q_len heads v_dim"]:
    """One softmax over the keys of all parts, one after another; mask and bias are over their slots in that order.

    A part may have fewer rows than there are queries: then as many in succession look at each, as beams do at their
    source. Such a mask has no arrays of queries.
    """
    rows, shape = parts[0].keys.shape[0], q.shape
    kv_heads, dim = parts[0].keys.shape[1:3]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # Queries as rows of one matrix for each key head: XLA takes keys and values as they are kept then.
    q = q.reshape(rows, -1, kv_heads, shape[2] // kv_heads, dim)
    q_len, group = q.shape[1], q.shape[3]
    q = jnp.einsum("btkgd->bkgtd", q).reshape(rows, kv_heads, group * q_len, dim)
    scores = [
        jnp.einsum("bkqd,bkds->bkqs", q, part.keys, precision=ctx.precision, preferred_element_type=wide) for part in parts
    ]
    scores = jnp.concatenate(scores, -1).reshape(rows, shape[2], q_len, -1) * (dim**-0.5 if scale is None else scale)
    scores = tap(scores if bias is None else scores + bias, "scores", ctx)
    seen = dense_mask(mask, q_len, scores.shape[-1])
    weights = tap(masked_softmax(scores, None if seen is None else seen[:, None]), "weights", ctx)
    weights = weights.reshape(rows, kv_heads, group * q_len, -1)
    begin, mixed = 0, 0
    for part in parts:
        here = weights[..., begin : begin + part.slots].astype(part.values.dtype)
        mixed += jnp.einsum("bkqs,bksd->bkqd", here, part.values, precision=ctx.precision)
        begin += part.slots
    mixed = jnp.einsum("bkgtd->btkgd", mixed.reshape(rows, kv_heads, group, q_len, -1))
    return mixed.reshape(*shape[:3], -1)
