"""Attention block by block, so that memory grows with the length and not with its square.

The forward pass keeps a running softmax (Milakov and Gimelshein 2018, algorithm 3) and saves only the
logarithm of each query's total; the backward pass makes the weights again from it (Dao 2023, algorithms 1 and
2). A block that the mask hides from every query is not computed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxllm.nn.mask import LEAST_SCORE, Mask, dense_mask, shows_anything, with_positions

CPU_BLOCK = 256  # there, 512 takes a fifth longer
BLOCK = 512

Index = Int[Array, ""] | int


class Blocks(NamedTuple):
    """The arguments of an attention, cut: `n` blocks of `q` queries and `m` blocks of `k` keys."""

    q: Float[Array, "n batch kv_heads group q dim"]
    k: Float[Array, "m batch kv_heads k dim"]
    v: Float[Array, "m batch kv_heads k v_dim"]
    bias: Float[Array, "#n #m #batch #kv_heads #group #q #k"] | None
    mask: Mask  # not cut, but filled up to whole blocks


def blockwise_attention(
    q: Float[Array, "batch q_len heads dim"],
    k: Float[Array, "batch k_len kv_heads dim"],
    v: Float[Array, "batch k_len kv_heads v_dim"],
    mask: Mask,
    bias: Float[Array, "#batch #heads #q_len #k_len"] | None = None,
    scale: float = 1.0,
    precision: Any = None,
    block: int | None = None,
) -> Float[Array, "batch q_len heads v_dim"]:
    """`nn.attention` over blocks of at most `block` queries and keys, with reverse-mode derivatives only."""
    batch, q_len, heads, dim = q.shape
    k_len, kv_heads = k.shape[1:3]
    block = block or (CPU_BLOCK if jax.default_backend() == "cpu" else BLOCK)
    q_block, k_block = _even_block(q_len, block), _even_block(k_len, block)
    grouped = q.reshape(batch, q_len, kv_heads, heads // kv_heads, dim)
    blocks = Blocks(
        _cut(jnp.einsum("bthgd->bhgtd", grouped), 3, q_block),
        _cut(jnp.einsum("bshd->bhsd", k), 2, k_block),
        _cut(jnp.einsum("bshd->bhsd", v), 2, k_block),
        None if bias is None else _cut_bias(bias, kv_heads, q_block, k_block),
        _fill_mask(mask, q_len, k_len, q_block, k_block),
    )
    out = jnp.einsum("nbhgqd->bnqhgd", _attention(blocks, scale, precision))
    out = out.reshape(batch, -1, *out.shape[3:])[:, :q_len]
    return out.reshape(batch, q_len, heads, v.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _attention(
    blocks: Blocks, scale: float, precision: Any
) -> Float[Array, "n batch kv_heads group q v_dim"]:
    return _forward(blocks, scale, precision)[0]


def _forward(blocks: Blocks, scale: float, precision: Any) -> tuple[Array, tuple]:
    einsum = _widening_einsum(blocks, precision)

    def attend(i: Index) -> tuple[Array, Array]:
        def add(softmax: tuple[Array, Array, Array], j: Index) -> tuple[Array, Array, Array]:
            best, total, out = softmax
            scores = _scores(blocks, i, j, scale, einsum)
            new_best = jnp.maximum(best, scores.max(-1))
            shrink = jnp.exp(best - new_best)
            weights = jnp.exp(scores - new_best[..., None])
            values = einsum("bhgqk,bhkd->bhgqd", weights.astype(blocks.v.dtype), blocks.v[j])
            return new_best, total * shrink + weights.sum(-1), out * shrink[..., None] + values

        def add_if_seen(softmax: tuple[Array, Array, Array], j: Index) -> tuple[tuple, None]:
            return _if_seen(blocks, i, j, lambda: add(softmax, j), softmax), None

        # Made from the arrays, so that inside a mesh it is laid out as they are.
        out = jnp.zeros_like(einsum("bhgqd,bhkv->bhgqv", blocks.q[i], blocks.v[0]))
        total = jnp.zeros_like(out[..., 0])
        best = jnp.full_like(total, LEAST_SCORE)
        (best, total, out), _ = jax.lax.scan(add_if_seen, (best, total, out), jnp.arange(len(blocks.k)))
        total = jnp.where(total == 0.0, 1.0, total)
        return (out / total[..., None]).astype(blocks.v.dtype), best + jnp.log(total)

    out, log_total = jax.lax.map(attend, jnp.arange(len(blocks.q)))
    return out, (blocks, out, log_total)


def _backward(scale: float, precision: Any, saved: tuple, dout: Array) -> tuple[Blocks]:
    blocks, out, log_total = saved
    einsum = _widening_einsum(blocks, precision)
    delta = (out.astype(log_total.dtype) * dout.astype(log_total.dtype)).sum(-1)

    def pull(totals: tuple[Array, Array], i: Index) -> tuple[tuple, tuple]:
        def derivatives(j: Index) -> tuple[Array, Array, Array, Array | None]:
            weights = jnp.exp(_scores(blocks, i, j, scale, einsum) - log_total[i][..., None])
            dv = einsum("bhgqk,bhgqd->bhkd", weights.astype(dout.dtype), dout[i])
            dscores = weights * (einsum("bhgqd,bhkd->bhgqk", dout[i], blocks.v[j]) - delta[i][..., None])
            low = dscores.astype(blocks.q.dtype)
            dq = scale * einsum("bhgqk,bhkd->bhgqd", low, blocks.k[j])
            dk = scale * einsum("bhgqk,bhgqd->bhkd", low, blocks.q[i])
            return dq, dk, dv, None if blocks.bias is None else _sum_to(dscores, blocks.bias.shape[2:])

        nothing = jax.tree.map(jnp.zeros_like, derivatives(0))

        def add_if_seen(dq: Array, j: Index) -> tuple[Array, tuple]:
            more, *others = _if_seen(blocks, i, j, lambda: derivatives(j), nothing)
            return dq + more, tuple(others)

        dq, (dk, dv, dbias) = jax.lax.scan(add_if_seen, nothing[0], jnp.arange(len(blocks.k)))
        return (totals[0] + dk, totals[1] + dv), (dq, dbias)

    zeros = tuple(jnp.zeros_like(x, log_total.dtype) for x in (blocks.k, blocks.v))
    (dk, dv), (dq, dbias) = jax.lax.scan(pull, zeros, jnp.arange(len(blocks.q)))
    if dbias is not None:
        dbias = _sum_to(dbias, blocks.bias.shape).astype(blocks.bias.dtype)
    dq, dk, dv = dq.astype(blocks.q.dtype), dk.astype(blocks.k.dtype), dv.astype(blocks.v.dtype)
    return (Blocks(dq, dk, dv, dbias, None),)


_attention.defvjp(_forward, _backward)


def _widening_einsum(blocks: Blocks, precision: Any) -> Callable[..., Array]:
    """Products of blocks, summed and kept in float32 at least."""
    wide = jnp.promote_types(blocks.q.dtype, jnp.float32)
    return partial(jnp.einsum, precision=precision, preferred_element_type=wide)


def _scores(
    blocks: Blocks, i: Index, j: Index, scale: float, einsum: Callable[..., Array]
) -> Float[Array, "batch kv_heads group q k"]:
    """The scores of one block, -inf where the mask hides a key."""
    q, k = blocks.q[i], blocks.k[j]
    scores = scale * einsum("bhgqd,bhkd->bhgqk", q, k)
    if blocks.bias is not None:
        n, m = blocks.bias.shape[:2]
        scores = scores + blocks.bias[jnp.minimum(i, n - 1), jnp.minimum(j, m - 1)]
    seen = dense_mask(_mask_at(blocks, i, j), q.shape[-2], k.shape[-2])
    return scores if seen is None else jnp.where(seen[:, None, None], scores, -jnp.inf)


def _mask_at(blocks: Blocks, i: Index, j: Index) -> Mask:
    def block_of(x: Array, number: Index, size: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, number * size, size, axis=1)

    q_block, k_block = blocks.q.shape[-2], blocks.k.shape[-2]
    return blocks.mask.map(lambda x: block_of(x, i, q_block), lambda x: block_of(x, j, k_block))


def _if_seen(blocks: Blocks, i: Index, j: Index, compute: Callable[[], tuple], otherwise: tuple) -> tuple:
    """What a block adds, computed only if some of its queries may see some of its keys."""
    return jax.lax.cond(shows_anything(_mask_at(blocks, i, j)), compute, lambda: otherwise)


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The sum over every axis that has the size 1 in `shape`."""
    return x.sum([axis for axis, size in enumerate(shape) if size == 1], keepdims=True)


def _even_block(length: int, block: int) -> int:
    """The size of the fewest blocks that `length` can be cut into, alike so that little is filled up."""
    return -(-length // -(-length // block))


def _cut(x: Array, axis: int, size: int) -> Array:
    """`axis` in blocks of `size`, filled up with zeros; the block's number is the new leading axis."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % size)
    padded = jnp.pad(x, padding)
    blocks = padded.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(blocks, axis, 0)


def _cut_bias(bias: Array, kv_heads: int, q_block: int, k_block: int) -> Array:
    heads = bias.shape[1]
    groups = (1, 1) if heads == 1 else (kv_heads, heads // kv_heads)
    grouped = bias.reshape(bias.shape[0], *groups, *bias.shape[2:])
    by_key = _cut(grouped, 4, 1 if bias.shape[3] == 1 else k_block)
    return _cut(by_key, 4, 1 if bias.shape[2] == 1 else q_block)


def _fill_mask(mask: Mask, q_len: int, k_len: int, q_block: int, k_block: int) -> Mask:
    """The mask over whole blocks: the keys that fill up the last one are not valid."""
    mask = with_positions(mask, q_len, k_len)
    if k_len % k_block and mask.key_valid is None:
        mask = mask.replace(key_valid=jnp.ones((1, k_len), bool))

    def fill(x: Array, block: int) -> Array:
        # Repeating the last position or segment leaves the range of the block as it is.
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)), mode="constant" if x.dtype == bool else "edge")

    return mask.map(lambda x: fill(x, q_block), lambda x: fill(x, k_block))
