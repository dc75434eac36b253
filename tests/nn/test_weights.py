"""A kernel kept as a matrix multiplies as the plain kernel does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.nn.weights import OutputsFirst, product, rows

KERNELS = [("btd,df->btf", (6, 10)), ("btd,dhk->bthk", (6, 2, 5)), ("bthk,hkd->btd", (2, 3, 4)), ("rd,df->rf", (6, 10))]


def _case(equation: str, shape: tuple[int, ...], dtype=np.float32) -> tuple[np.ndarray, np.ndarray, OutputsFirst]:
    inputs, kernel = equation.split("->")[0].split(",")
    sizes = dict(zip(kernel, shape)) | {"b": 3, "t": 2, "r": 7}
    rng = np.random.default_rng(0)
    x = rng.standard_normal([sizes[axis] for axis in inputs])
    weight = rng.standard_normal(shape)
    outputs = [axis for axis in kernel if axis not in inputs]
    order = [kernel.index(axis) for axis in (*outputs, *(axis for axis in kernel if axis in inputs))]
    matrix = weight.transpose(order).reshape(int(np.prod([sizes[axis] for axis in outputs])), -1)
    return x.astype(dtype), weight.astype(dtype), OutputsFirst(tuple(sizes[a] for a in outputs), jnp.asarray(matrix, dtype))


@pytest.mark.parametrize(("equation", "shape"), KERNELS)
def test_a_matrix_multiplies_as_its_kernel(equation, shape):
    x, weight, kept = _case(equation, shape)
    expected = np.einsum(equation, x.astype(np.float64), weight.astype(np.float64))
    got = jax.jit(lambda x, kept: product(equation, x, kept, nn.Context()))(x, kept)
    assert got.shape == expected.shape and got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_matrix_computes_in_the_dtype_of_the_call():
    x, weight, kept = _case("btd,df->btf", (6, 10))
    got = product("btd,df->btf", jnp.asarray(x, jnp.bfloat16), kept, nn.Context(compute_dtype=jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), np.einsum("btd,df->btf", x, weight), atol=0.1)
    wide = product("btd,df->btf", jnp.asarray(x, jnp.bfloat16), kept, nn.Context(compute_dtype=jnp.bfloat16), jnp.float32)
    assert wide.dtype == jnp.float32


def test_gradients_pass_through():
    x, weight, kept = _case("btd,dhk->bthk", (6, 2, 5))
    by_matrix = jax.grad(lambda x: jnp.sin(product("btd,dhk->bthk", x, kept, nn.Context())).sum())(x)
    by_kernel = jax.grad(lambda x: jnp.sin(product("btd,dhk->bthk", x, jnp.asarray(weight), nn.Context())).sum())(x)
    np.testing.assert_allclose(by_matrix, by_kernel, atol=1e-5)


def test_rows_of_a_table_are_those_of_the_plain_one():
    table = jnp.arange(12.0).reshape(4, 3)
    kept = OutputsFirst((4,), table)
    ids = jnp.array([[3, 0], [1, 4]])
    got = rows(kept, ids, nn.Context())
    np.testing.assert_array_equal(got, rows(table, ids, nn.Context()))
    assert np.isnan(got[1, 1]).all()


def test_axes_in_another_order_are_refused():
    _, _, kept = _case("btd,dhk->bthk", (6, 2, 5))
    with pytest.raises(ValueError, match="its axes last"):
        product("dbt,dhk->bthk", jnp.ones((6, 3, 2)), kept, nn.Context())
