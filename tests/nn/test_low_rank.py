"""A weight with a low-rank adapter beside it, against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.nn.low_rank import LowRank
from flaxllm.nn.quantized import Int4Matrix, Int8Matrix
from flaxllm.nn.weights import OutputsFirst, Weight, product, rows

SIZES = dict(b=3, t=2, r=7, d=32, f=10, h=2, k=16, v=12)
EQUATIONS = ["btd,df->btf", "btd,dhk->bthk", "bthk,hkd->btd", "rd,df->rf", "btd,vd->btv"]


def _axes(equation: str) -> tuple[str, str, str, str]:
    """Those of the inputs, of the kernel, and of the kernel's inputs and outputs."""
    inputs, kernel = equation.split("->")[0].split(",")
    return inputs, kernel, *("".join(a for a in kernel if (a in inputs) == is_input) for is_input in (True, False))


def _random(axes: str, seed: int) -> jax.Array:
    sizes = SIZES | {"z": 4}  # the rank
    return jnp.asarray(np.random.default_rng(seed).standard_normal([sizes[a] for a in axes]), jnp.float32)


def _case(equation: str) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    inputs, kernel, summed, rest = _axes(equation)
    return _random(inputs, 0), _random(kernel, 1), _random(f"{summed}z", 2), _random(f"z{rest}", 3)


def _formula(equation: str, *operands: jax.Array) -> np.ndarray:
    _, kernel, summed, rest = _axes(equation)
    x, weight, down, up = (np.asarray(operand, np.float64) for operand in operands)
    return np.einsum(equation, x, weight + np.einsum(f"{summed}z,z{rest}->{kernel}", down, up))


@pytest.mark.parametrize("equation", EQUATIONS)
def test_the_product_is_that_of_the_sum(equation):
    x, weight, down, up = _case(equation)
    got = jax.jit(lambda x, kept: product(equation, x, kept, nn.Context()))(x, LowRank(weight, down, up))
    expected = _formula(equation, x, weight, down, up)
    assert got.dtype == jnp.float32 and got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_any_axes_may_come_before():
    x, weight, down, up = _case("btd,vd->btv")
    kept = LowRank(weight, down, up)
    for lead in ((), (5,), (2, 1, 3)):
        many = jnp.broadcast_to(x[0, 0], (*lead, SIZES["d"]))
        got = product("...d,vd->...v", many, kept, nn.Context())
        expected = _formula("btd,vd->btv", x, weight, down, up)[0, 0]
        np.testing.assert_allclose(got, np.broadcast_to(expected, got.shape), atol=1e-4)
        assert got.shape == (*lead, SIZES["v"])


@pytest.mark.parametrize("kind", [OutputsFirst, Int8Matrix, Int4Matrix])
def test_any_form_of_the_weight_will_do(kind):
    x, weight, down, up = _case("btd,dhk->bthk")
    matrix = weight.reshape(SIZES["d"], -1).T
    outputs = (SIZES["h"], SIZES["k"])
    base: Weight = kind(outputs, matrix) if kind is OutputsFirst else kind.of(matrix, outputs)
    its = matrix if kind is OutputsFirst else base.dequantized()
    got = product("btd,dhk->bthk", x, LowRank(base, down, up), nn.Context())
    expected = _formula("btd,dhk->bthk", x, its.T.reshape(weight.shape), down, up)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_the_result_has_the_dtype_of_the_weights_own_product():
    x, weight, down, up = _case("btd,df->btf")
    half, ctx = x.astype(jnp.bfloat16), nn.Context(compute_dtype=jnp.bfloat16)
    expected = _formula("btd,df->btf", x, weight, down, up)
    low_base = LowRank(weight.astype(jnp.bfloat16), down, up)  # a float32 adapter of a model in 16 bits
    for got in (product("btd,df->btf", half, LowRank(weight, down, up), ctx), product("btd,df->btf", half, low_base, nn.Context())):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(np.float32), expected, atol=0.03 * np.abs(expected).max())
    assert product("btd,df->btf", half, LowRank(weight, down, up), ctx, jnp.float32).dtype == jnp.float32


def test_rows_of_a_table_have_the_adapters_columns_added():
    table, down, up = _random("vd", 1), _random("dz", 2), _random("zv", 3)
    ids = jnp.array([[3, 0, 11], [1, SIZES["v"], 5]])
    got = rows(LowRank(table, down, up), ids, nn.Context())
    summed = np.asarray(table, np.float64) + (np.asarray(down, np.float64) @ np.asarray(up, np.float64)).T
    np.testing.assert_allclose(got[0], summed[ids[0]], atol=1e-5)
    assert np.isnan(got[1, 1]).all()
    half = LowRank(table.astype(jnp.bfloat16), down, up)
    assert half.dtype == jnp.bfloat16  # what a decoder's cache is kept in
    assert rows(half, ids, nn.Context()).dtype == jnp.bfloat16


def _dropped(name: str, seed: int = 0, rate: float = 0.25, **ctx: object) -> np.ndarray:
    """What an adapter reads of ones: its factors give that back, and the weight adds nothing."""
    eye = jnp.eye(SIZES["d"])
    kept = LowRank(jnp.zeros_like(eye), eye, eye, name, rate)
    ctx = nn.Context(dropout_key=jax.random.PRNGKey(seed), **ctx)
    return np.asarray(product("btd,df->btf", jnp.ones((8, 16, SIZES["d"])), kept, ctx))


def test_dropout_acts_on_what_goes_down():
    read = _dropped("query")
    assert set(np.unique(read)) == {0.0, np.float32(1 / 0.75)}
    assert abs((read == 0).mean() - 0.25) < 0.02
    assert not np.array_equal(read, _dropped("value")) and not np.array_equal(read, _dropped("query", seed=1))
    np.testing.assert_array_equal(read, _dropped("query", rows=jnp.arange(8)))
    assert not np.array_equal(read, _dropped("query", rows=jnp.arange(8) + 1))


def test_the_weight_itself_reads_everything_and_evaluation_drops_nothing():
    x, weight, down, up = _case("btd,df->btf")
    ctx = nn.Context(dropout_key=jax.random.PRNGKey(0))
    without = LowRank(weight, down, jnp.zeros_like(up), "query", 0.9)
    np.testing.assert_array_equal(product("btd,df->btf", x, without, ctx), product("btd,df->btf", x, weight, ctx))
    calm = product("btd,df->btf", x, LowRank(weight, down, up, "query", 0.9), nn.Context())
    np.testing.assert_array_equal(calm, product("btd,df->btf", x, LowRank(weight, down, up), nn.Context()))
