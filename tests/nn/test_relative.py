import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.nn import Context
from flaxllm.nn.relative import relative_buckets


def exact_bucket(distance: int, num_buckets: int, max_distance: int) -> int:
    """Raffel et al. 2020, section 2.1, of a distance of 0 or more, in whole numbers alone: a far distance is in bucket
    `exact + j` from `exact * (max_distance / exact) ** (j / (num_buckets - exact))` on."""
    exact = num_buckets // 2
    if distance < exact:
        return distance
    steps = num_buckets - exact
    passed = [j for j in range(steps) if distance**steps * exact**j >= max_distance**j * exact**steps]
    return exact + max(passed)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (32, 600), (8, 20), (9, 30), (10, 81), (64, 256), (4, 5)])
def test_buckets_are_those_of_the_paper(num_buckets, max_distance, bidirectional):
    half = num_buckets // 2
    expected = [
        exact_bucket(abs(d), half, max_distance) + half * (d > 0)
        if bidirectional
        else exact_bucket(max(-d, 0), num_buckets, max_distance)
        for d in range(-max_distance, max_distance + 1)
    ]
    np.testing.assert_array_equal(relative_buckets(num_buckets, max_distance, bidirectional), expected)


@pytest.mark.parametrize(
    ("num_buckets", "max_distance", "distance", "published"),
    [(24, 889, 621, 23), (32, 939, 728, 31), (34, 991, 236, 27), (36, 392, 84, 26)],
)
def test_borders_are_rounded_as_in_the_published_code(num_buckets, max_distance, distance, published):
    """From torch 2.13 and transformers 5.24, in float32; exact logarithms put each distance in a neighbouring bucket."""
    buckets = relative_buckets(num_buckets, max_distance, bidirectional=False)
    assert buckets[max_distance - distance] == published
    assert abs(exact_bucket(distance, num_buckets, max_distance) - published) == 1


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_is_the_tables_row_of_each_pair_of_positions(bidirectional):
    table = jax.random.normal(jax.random.PRNGKey(0), (8, 3))
    queries, keys = np.array([[0, 1, 40], [7, 3, 2]]), np.array([[0, 1, 2, 40, 90], [100, 0, 5, 6, 7]])
    bias = nn.relative_bias(table, jnp.asarray(queries), jnp.asarray(keys), 20, bidirectional, Context())
    assert bias.shape == (2, 3, 3, 5)
    for row, query, key in np.ndindex(2, 3, 5):
        distance = int(keys[row, key] - queries[row, query])
        if bidirectional:
            bucket = exact_bucket(min(abs(distance), 20), 4, 20) + 4 * (distance > 0)
        else:
            bucket = exact_bucket(min(max(-distance, 0), 20), 8, 20)
        np.testing.assert_array_equal(bias[row, :, query, key], table[bucket])


def test_positions_for_all_rows_alike_make_one_bias_for_all():
    table, positions = jnp.ones((8, 3)), jnp.arange(5)[None]
    assert nn.relative_bias(table, positions, positions, 20, True, Context()).shape == (1, 3, 5, 5)
    low = nn.relative_bias(table, positions, positions, 20, True, Context(compute_dtype=jnp.bfloat16))
    assert low.dtype == jnp.bfloat16


def test_the_gradient_counts_the_pairs_of_each_bucket():
    positions = jnp.arange(30)[None]
    total = lambda table: nn.relative_bias(table, positions, positions, 20, False, Context()).sum()  # noqa: E731
    counts = np.zeros(8)
    for query, key in np.ndindex(30, 30):
        counts[exact_bucket(min(max(query - key, 0), 20), 8, 20)] += 1
    np.testing.assert_array_equal(jax.grad(total)(jnp.zeros((8, 2))), np.stack([counts, counts], -1))


def test_the_table_is_a_lookup():
    spec = nn.relative_bias_specs(32, 8, nn.normal(1.0))
    assert (spec.shape, spec.is_lookup) == ((32, 8), True)
