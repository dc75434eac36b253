"""Matrices in few bits against the same in numpy's float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm.nn import Context
from flaxllm.nn import quantized as module
from flaxllm.nn.quantized import Int4Matrix, Int8Matrix
from flaxllm.nn.weights import product, rows

HEADS, HEAD_DIM, WIDTH = 3, 5, 64
CTX = Context()


def matrix() -> np.ndarray:
    """Outputs of very different sizes, one of zeros and one that is the same everywhere."""
    values = np.random.default_rng(0).normal(size=(HEADS * HEAD_DIM, WIDTH)) * np.logspace(-3, 2, HEADS * HEAD_DIM)[:, None]
    values[3], values[4] = 0.0, 0.7
    return values.astype(np.float32)


def int8_values(weights: np.ndarray) -> np.ndarray:
    scale = np.abs(weights.astype(np.float64)).max(-1, keepdims=True) / 127
    return np.round(np.divide(weights, scale, out=np.zeros(weights.shape), where=scale > 0)) * scale


def int4_values(weights: np.ndarray) -> np.ndarray:
    """One group after another, as llama.cpp quantizes Q4_1: from the least to the largest weight in 15 steps."""
    result = np.zeros(weights.shape)
    for row in range(len(weights)):
        for start in range(0, weights.shape[1], 32):
            group = weights[row, start : start + 32].astype(np.float64)
            low = float(np.float16(group.min()))
            step = float(np.float16((group.max() - low) / 15))
            level = np.clip(np.round((group - low) / step), 0, 15) if step else 0.0
            result[row, start : start + 32] = low + step * level
    return result


FORMS = [(Int8Matrix, int8_values), (Int4Matrix, int4_values)]


@pytest.mark.parametrize(("form", "formula"), FORMS)
def test_values_are_those_of_the_formula(form, formula):
    weights = matrix()
    got = form.of(jnp.asarray(weights), (len(weights),)).dequantized()
    np.testing.assert_allclose(got, formula(weights), rtol=2e-6, atol=1e-7)


def test_no_weight_is_off_by_more_than_half_a_step():
    weights = matrix()
    eight, four = (np.asarray(form.of(jnp.asarray(weights), (len(weights),)).dequantized(), np.float64) for form, _ in FORMS)
    assert (np.abs(eight - weights) <= np.abs(weights).max(-1, keepdims=True) / 254 * 1.0001).all()
    groups = weights.reshape(len(weights), -1, 32).astype(np.float64)
    half = (groups.max(-1) - groups.min(-1)) / 30
    float16 = (np.abs(groups).max(-1) + 32 * half) * 2.0**-11 + 15 * 2.0**-25
    assert (np.abs(four.reshape(groups.shape) - groups) <= (half + float16)[..., None]).all()


def test_values_of_q4_1_are_kept():
    rng = np.random.default_rng(1)
    step, low = (np.float16(rng.uniform(0.01, 0.1, (8, 2, 1))).astype(np.float32) for _ in range(2))
    levels = rng.permuted(np.tile(np.arange(32) % 16, (8, 2, 1)), axis=-1)
    weights = (low + step * levels).reshape(8, 64).astype(np.float32)
    np.testing.assert_allclose(Int4Matrix.of(jnp.asarray(weights), (8,)).dequantized(), weights, rtol=1e-6)


def test_memory_is_eight_bits_and_five():
    weights = np.ones((96, 256), np.float32)
    assert sum(x.nbytes for x in jax.tree.leaves(Int8Matrix.of(jnp.asarray(weights), (96,)))) == 96 * 256 + 96 * 4
    assert sum(x.nbytes for x in jax.tree.leaves(Int4Matrix.of(jnp.asarray(weights), (96,)))) == 96 * 256 * 5 // 8


@pytest.mark.parametrize("form", [Int8Matrix, Int4Matrix])
@pytest.mark.parametrize("block", [1, 96 * 1024])  # 8 outputs at a time, with 7 left over; and all at once
@pytest.mark.parametrize("batch", [(1, 1), (2, 3)])
def test_a_product_is_that_of_the_values(form, block, batch, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    weight = form.of(jnp.asarray(matrix()), (HEADS, HEAD_DIM))
    values = np.asarray(weight.dequantized(), np.float64)
    x = np.random.default_rng(2).normal(size=(*batch, WIDTH)).astype(np.float32)
    got = jax.jit(lambda x, weight: product("btd,dhk->bthk", x, weight, CTX))(x, weight)
    expected = np.einsum("btd,hkd->bthk", x.astype(np.float64), values.reshape(HEADS, HEAD_DIM, WIDTH))
    size = np.einsum("btd,hkd->bthk", np.abs(x), np.abs(values).reshape(HEADS, HEAD_DIM, WIDTH))
    assert (np.abs(got - expected) <= 1e-6 * size).all()
    several = jax.jit(lambda x, weight: product("bthk,hkd->btd", x, weight, CTX))
    inward = several(x.reshape(*batch, 4, 16), form.of(jnp.asarray(matrix()), (HEADS * HEAD_DIM,)))
    assert (np.abs(inward - expected.reshape(inward.shape)) <= 1e-6 * size.reshape(inward.shape)).all()


@pytest.mark.parametrize("form", [Int8Matrix, Int4Matrix])
def test_rows_are_those_of_the_values_and_nan_outside(form):
    table = form.of(jnp.asarray(matrix()), (HEADS * HEAD_DIM,))
    got = rows(table, jnp.array([[2, 14], [0, 15]]), CTX)
    np.testing.assert_array_equal(got[:, 0], table.dequantized()[jnp.array([2, 0])])
    np.testing.assert_array_equal(got[0, 1], table.dequantized()[14])
    assert np.isnan(got[1, 1]).all()
    assert rows(table, jnp.array([0]), Context(compute_dtype=jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("form", [Int8Matrix, Int4Matrix])
def test_low_precision_is_summed_in_float32(form):
    weight = form.of(jnp.asarray(matrix()), (HEADS * HEAD_DIM,))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, WIDTH)), jnp.bfloat16)
    ctx = Context(compute_dtype=jnp.bfloat16)
    assert product("bd,dv->bv", x, weight, ctx).dtype == jnp.bfloat16
    got = product("bd,dv->bv", x, weight, ctx, jnp.float32)
    expected = np.asarray(x, np.float64) @ np.asarray(weight.dequantized(), np.float64).T
    assert got.dtype == jnp.float32
    # 8-bit values are bfloat16 numbers, those made of 4 bits are rounded to them.
    tolerance = 1e-5 if form is Int8Matrix else 2.0**-8
    size = np.abs(np.asarray(x, np.float64)) @ np.abs(np.asarray(weight.dequantized(), np.float64)).T
    assert (np.abs(got - expected) <= tolerance * size + 1e-6).all()


def test_an_equation_of_other_axes_is_refused():
    weight = Int8Matrix.of(jnp.asarray(matrix()), (HEADS, HEAD_DIM))
    for equation in ("btd,dhk->bhtk", "dbt,dhk->bthk"):
        with pytest.raises(ValueError, match="a matrix needs"):
            product(equation, jnp.ones((1, 1, WIDTH)), weight, CTX)
