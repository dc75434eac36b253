"""A learned number for each head and bucket of distances, added to the attention scores (Raffel et al. 2020, section 2.1)."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxllm.nn.context import Context
from flaxllm.nn.param import Initializer, Param


def relative_bias_specs(num_buckets: int, num_heads: int, init: Initializer) -> Param:
    """A lookup table with a row for each bucket."""
    return Param((num_buckets, num_heads), ("positions", "heads"), init, ("positions",))


def relative_bias(
    table: Float[Array, "buckets heads"],
    query_positions: Int[Array, "#batch q_len"],
    key_positions: Int[Array, "#batch k_len"],
    max_distance: int,
    bidirectional: bool,
    ctx: Context,
) -> Float[Array, "#batch heads q_len k_len"]:
    """What each query's scores gain for each key: the table's row of the bucket of `key position - query position`."""
    by_distance = ctx.cast(table)[relative_buckets(table.shape[0], max_distance, bidirectional)]
    distance = key_positions[:, None, :] - query_positions[:, :, None]
    index = jnp.clip(distance, -max_distance, max_distance) + max_distance
    return jnp.einsum("bqkh->bhqk", by_distance[index])


def relative_buckets(num_buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """The bucket of each distance `key - query` from `-max_distance` to `max_distance`; what is farther is in the
    outermost ones.

    The nearer half of the buckets holds one distance each, the others grow with the logarithm up to `max_distance`. The
    later half of all buckets is for keys after the query where `bidirectional`; else those are in bucket 0.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    if not bidirectional:
        return _buckets(np.maximum(-distance, 0), num_buckets, max_distance)
    half = num_buckets // 2
    return _buckets(np.abs(distance), half, max_distance) + half * (distance > 0)


def _buckets(distance: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    exact = num_buckets // 2
    # In float32, operation by operation as in the published code: weights were trained with its buckets, borders included.
    ratio = np.maximum(distance, exact).astype(np.float32) / np.float32(exact)
    logarithm = np.log(ratio.astype(np.float64)).astype(np.float32) / np.float32(math.log(max_distance / exact))
    far = exact + (logarithm * np.float32(num_buckets - exact)).astype(np.int64)
    return np.where(distance < exact, distance, np.minimum(far, num_buckets - 1))
