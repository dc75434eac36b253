"""Kernels kept as matrices, each or several as one, multiply as the plain kernels do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.nn import weights as module
from flaxllm.nn.quantized import Int4Matrix, Int8Matrix
from flaxllm.nn.weights import Joined, OutputsFirst, product, products, rows

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


@pytest.mark.parametrize("few", [6, 7])  # of the 6 or 7 rows, all or none are few
@pytest.mark.parametrize(("equation", "shape"), KERNELS)
def test_a_matrix_multiplies_as_its_kernel(equation, shape, few, monkeypatch):
    monkeypatch.setattr(module, "FEW_ROWS", few - 1)
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


def _heads(form: type, heads: tuple[int, ...]) -> tuple[list, list[np.ndarray]]:
    """Kernels from 64 inputs to so many heads of 5, in a form, and the values that they have."""
    rng = np.random.default_rng(1)
    matrices = [jnp.asarray(rng.standard_normal((5 * count, 64)), jnp.float32) for count in heads]
    if form is OutputsFirst:
        return [OutputsFirst((count, 5), matrix) for count, matrix in zip(heads, matrices)], matrices
    kept = [form.of(matrix, (count, 5)) for count, matrix in zip(heads, matrices)]
    return kept, [each.dequantized() for each in kept]


@pytest.mark.parametrize("form", [OutputsFirst, Int8Matrix, Int4Matrix])
def test_joined_matrices_multiply_as_each_does(form):
    kept, values = _heads(form, (4, 2, 1))
    x = np.random.default_rng(2).standard_normal((3, 2, 64)).astype(np.float32)
    joined = [Joined.of(kept), None, None]
    assert {array.shape[0] for array in jax.tree.leaves(joined)} == {35}
    for weights in (joined, kept):
        got = jax.jit(lambda x, weights: products("btd,dhk->bthk", x, weights, nn.Context()))(x, weights)
        for y, value in zip(got, values, strict=True):
            expected = np.einsum("btd,hkd->bthk", x.astype(np.float64), np.reshape(value, (-1, 5, 64)))
            np.testing.assert_allclose(y, expected, atol=5e-5)
