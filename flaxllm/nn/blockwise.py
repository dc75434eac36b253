"""Attention block by block, so that memory grows with the length and not with its square.

The forward pass keeps a running softmax (Milakov and Gimelshein 2018, algorithm 3) and saves only the logarithm of each
query's total; the backward pass makes the weights again from it (Dao 2023, algorithms 1 and 2). A block that the mask
hides from every query is not computed.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxllm.nn.mask import HIDDEN_SCORE, Mask, dense_mask, shows_anything, with_positions

BLOCK = 512


class Blocks(NamedTuple):
    """The arguments of an attention, cut: `n` blocks of `q` queries and `m` blocks of `k` keys."""

    q: Float[Array, "n batch q kv_heads group dim"]
    k: Float[Array, "m batch k kv_heads dim"]
    v: Float[Array, "m batch k kv_heads v_dim"]
    bias: Float[Array, "#n #m #batch #kv_heads #group #q #k"] | None
    mask: Mask  # its arrays are [n or m, batch, q or k]


def blockwise_attention(
    q: Float[Array, "batch q_len heads dim"],
    k: Float[Array, "batch k_len kv_heads dim"],
    v: Float[Array, "batch k_len kv_heads v_dim"],
    mask: Mask,
    bias: Float[Array, "#batch #heads #q_len #k_len"] | None = None,
    scale: float = 1.0,
    precision: Any = None,
    block: int = BLOCK,
) -> Float[Array, "batch q_len heads v_dim"]:
    """`nn.attention` over blocks of at most `block` queries and keys; it has reverse-mode derivatives only."""
    batch, q_len, heads, dim = q.shape
    k_len, kv_heads = k.shape[1:3]
    q_block, k_block = min(block, q_len), min(block, k_len)
    grouped = q.reshape(batch, q_len, kv_heads, heads // kv_heads, dim)
    blocks = Blocks(
        _cut(grouped, 1, q_block),
        _cut(k, 1, k_block),
        _cut(v, 1, k_block),
        None if bias is None else _cut_bias(bias, kv_heads, q_block, k_block),
        _cut_mask(mask, q_len, k_len, q_block, k_block),
    )
    out = _attention(blocks, scale, precision)
    return jnp.moveaxis(out, 0, 1).reshape(batch, -1, heads, v.shape[-1])[:, :q_len]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _attention(blocks: Blocks, scale: float, precision: Any) -> Float[Array, "n batch q kv_heads group v_dim"]:
    return _forward(blocks, scale, precision)[0]


def _forward(blocks: Blocks, scale: float, precision: Any) -> tuple[Array, tuple]:
    batch, q_block, kv_heads, group = blocks.q.shape[1:5]
    wide = jnp.promote_types(blocks.q.dtype, jnp.float32)
    rows = (batch, kv_heads, group, q_block)
    start = (jnp.full(rows, HIDDEN_SCORE, wide), jnp.zeros(rows, wide), jnp.zeros((*rows, blocks.v.shape[-1]), wide))

    def attend(i: Int[Array, ""]) -> tuple[Array, Array]:
        def add(softmax: tuple[Array, Array, Array], j: Int[Array, ""]) -> tuple[tuple, None]:
            best, total, out = softmax

            def more() -> tuple[Array, Array, Array]:
                scores, seen = _scores(blocks, i, j, scale, precision)
                new_best = jnp.maximum(best, scores.max(-1))
                shrink = jnp.exp(best - new_best)
                weights = _hide(jnp.exp(scores - new_best[..., None]), seen, 0.0)
                values = jnp.einsum(
                    "bhgqk,bkhd->bhgqd", weights.astype(blocks.v.dtype), blocks.v[j],
                    precision=precision, preferred_element_type=wide,
                )  # fmt: skip
                return new_best, total * shrink + weights.sum(-1), out * shrink[..., None] + values

            return jax.lax.cond(shows_anything(_mask_at(blocks.mask, i, j)), more, lambda: softmax), None

        (best, total, out), _ = jax.lax.scan(add, start, jnp.arange(len(blocks.k)))
        total = jnp.where(total == 0.0, 1.0, total)
        out = (out / total[..., None]).astype(blocks.v.dtype)
        return jnp.moveaxis(out, 3, 1), best + jnp.log(total)

    out, log_total = jax.lax.map(attend, jnp.arange(len(blocks.q)))
    return out, (blocks, out, log_total)


def _backward(scale: float, precision: Any, saved: tuple, dout: Array) -> tuple[Blocks]:
    blocks, out, log_total = saved
    wide = log_total.dtype
    einsum = partial(jnp.einsum, precision=precision, preferred_element_type=wide)
    delta = (out.astype(wide) * dout.astype(wide)).sum(-1).transpose(0, 1, 3, 4, 2)

    def pull(totals: tuple[Array, Array], i: Int[Array, ""]) -> tuple[tuple, tuple]:
        dout_i = dout[i].astype(blocks.v.dtype)

        def one_block(j: Int[Array, ""]) -> tuple[Array, Array, Array, Array | None]:
            scores, seen = _scores(blocks, i, j, scale, precision)
            weights = _hide(jnp.exp(scores - log_total[i][..., None]), seen, 0.0)
            dv = einsum("bhgqk,bqhgd->bkhd", weights.astype(dout_i.dtype), dout_i)
            dscores = weights * (einsum("bqhgd,bkhd->bhgqk", dout_i, blocks.v[j]) - delta[i][..., None])
            low = dscores.astype(blocks.q.dtype)
            dq = scale * einsum("bhgqk,bkhd->bqhgd", low, blocks.k[j])
            dk = scale * einsum("bhgqk,bqhgd->bkhd", low, blocks.q[i])
            return dq, dk, dv, None if blocks.bias is None else _sum_to(dscores, blocks.bias.shape[2:])

        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one_block, i))

        def add(dq: Array, j: Int[Array, ""]) -> tuple[Array, tuple]:
            visible = shows_anything(_mask_at(blocks.mask, i, j))
            more, *others = jax.lax.cond(visible, lambda: one_block(j), lambda: nothing)
            return dq + more, tuple(others)

        dq, (dk, dv, dbias) = jax.lax.scan(add, nothing[0], jnp.arange(len(blocks.k)))
        return (totals[0] + dk, totals[1] + dv), (dq, dbias)

    zeros = tuple(jnp.zeros(x.shape, wide) for x in (blocks.k, blocks.v))
    (dk, dv), (dq, dbias) = jax.lax.scan(pull, zeros, jnp.arange(len(blocks.q)))
    if dbias is not None:
        dbias = _sum_to(dbias, blocks.bias.shape).astype(blocks.bias.dtype)
    dq, dk, dv = (d.astype(x.dtype) for d, x in zip((dq, dk, dv), blocks, strict=False))
    return (Blocks(dq, dk, dv, dbias, None),)


_attention.defvjp(_forward, _backward)


def _scores(
    blocks: Blocks, i: Int[Array, ""], j: Int[Array, ""], scale: float, precision: Any
) -> tuple[Float[Array, "batch kv_heads group q k"], Bool[Array, "#batch 1 1 q k"] | None]:
    """The scores of one block, hidden ones set low, and which of them are seen (None: all)."""
    q, k = blocks.q[i], blocks.k[j]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = scale * jnp.einsum("bqhgd,bkhd->bhgqk", q, k, precision=precision, preferred_element_type=wide)
    if blocks.bias is not None:
        scores = scores + blocks.bias[jnp.minimum(i, blocks.bias.shape[0] - 1), jnp.minimum(j, blocks.bias.shape[1] - 1)]
    seen = dense_mask(_mask_at(blocks.mask, i, j), q.shape[1], k.shape[1])
    seen = None if seen is None else seen[:, None, None]
    return _hide(scores, seen, HIDDEN_SCORE), seen


def _hide(x: Array, seen: Array | None, value: float) -> Array:
    return x if seen is None else jnp.where(seen, x, value)


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The sum over every axis that has the size 1 in `shape`."""
    return x.sum([axis for axis, size in enumerate(shape) if size == 1], keepdims=True)


def _cut(x: Array, axis: int, size: int, mode: str = "constant") -> Array:
    """`axis` in blocks of `size`, filled up at the end; the block's number is the new leading axis."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % size)
    padded = jnp.pad(x, padding, mode=mode)
    blocks = padded.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(blocks, axis, 0)


def _cut_bias(bias: Array, kv_heads: int, q_block: int, k_block: int) -> Array:
    heads = bias.shape[1]
    grouped = bias.reshape(bias.shape[0], *((1, 1) if heads == 1 else (kv_heads, heads // kv_heads)), *bias.shape[2:])
    by_key = _cut(grouped, 4, 1 if bias.shape[3] == 1 else k_block)
    return _cut(by_key, 4, 1 if bias.shape[2] == 1 else q_block)


def _cut_mask(mask: Mask, q_len: int, k_len: int, q_block: int, k_block: int) -> Mask:
    """The mask with its arrays in blocks; the keys that fill up the last block are hidden."""
    mask = with_positions(mask, q_len, k_len)
    if k_len % k_block and mask.key_valid is None:
        mask = mask.replace(key_valid=jnp.ones((1, k_len), bool))

    def cut(x: Array | None, size: int, mode: str = "edge") -> Array | None:
        return None if x is None else _cut(x, 1, size, mode)

    return mask.replace(
        query_positions=cut(mask.query_positions, q_block),
        key_positions=cut(mask.key_positions, k_block),
        query_segments=cut(mask.query_segments, q_block),
        key_segments=cut(mask.key_segments, k_block),
        key_valid=cut(mask.key_valid, k_block, "constant"),
    )


def _mask_at(mask: Mask, i: Int[Array, ""], j: Int[Array, ""]) -> Mask:
    def at(x: Array | None, index: Int[Array, ""]) -> Array | None:
        return None if x is None else x[index]

    return mask.replace(
        query_positions=at(mask.query_positions, i),
        key_positions=at(mask.key_positions, j),
        query_segments=at(mask.query_segments, i),
        key_segments=at(mask.key_segments, j),
        key_valid=at(mask.key_valid, j),
    )
