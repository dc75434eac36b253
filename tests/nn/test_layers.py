import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import erf

from flaxllm import nn
from flaxllm.nn import Context

RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_layer_norm_is_its_formula_in_float64():
    x, scale, bias = 3 + 5 * normal(4, 7, 32), normal(32), normal(32)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-3) * scale + bias
    got = nn.layer_norm({"scale": scale, "bias": bias}, x, 1e-3, Context())
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_layer_norm_of_low_precision_sums_in_float32():
    x = jnp.asarray(100 + normal(2, 512), jnp.bfloat16)
    got = nn.layer_norm({"scale": jnp.ones(512), "bias": jnp.zeros(512)}, x, 1e-5, Context())
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=0.02)


def test_gelu_tanh_is_its_formula_and_near_the_exact_one():
    x = jnp.linspace(-6, 6, 301)
    wide = np.asarray(x, np.float64)
    expected = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    np.testing.assert_allclose(nn.gelu_tanh(x), expected, atol=1e-6)
    np.testing.assert_allclose(nn.ACTIVATIONS["gelu"](x), 0.5 * wide * (1 + erf(wide / np.sqrt(2))), atol=1e-6)


def test_gelu_of_low_precision_is_the_rounded_exact_one():
    x = jnp.linspace(-4, 4, 201, dtype=jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    got, slope = nn.ACTIVATIONS["gelu"](x), jax.vmap(jax.grad(nn.ACTIVATIONS["gelu"]))(x)
    assert got.dtype == slope.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), 0.5 * wide * (1 + erf(wide / np.sqrt(2))), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_derivatives_given_by_hand_are_the_numerical_ones(mode):
    with jax.enable_x64(True):
        x, scale, bias = (jnp.asarray(RNG.normal(size=shape)) for shape in [(3, 8), (8,), (8,)])

        def all_three(x, scale, bias):
            params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
            normed = nn.layer_norm(params, jnp.asarray(x), 1e-3, Context())
            return normed, nn.gelu_tanh(jnp.asarray(x)), nn.ACTIVATIONS["gelu"](jnp.asarray(x))

        check_grads(all_three, (x, scale, bias), order=2, modes=[mode], atol=1e-5, rtol=1e-5)


def test_feed_forward_is_two_products_around_the_activation():
    params = nn.init(nn.feed_forward_specs(6, 10), jax.random.PRNGKey(0))
    x = normal(2, 3, 6)
    up = x @ np.asarray(params["up"]["kernel"]) + np.asarray(params["up"]["bias"])
    expected = np.maximum(up, 0) @ np.asarray(params["down"]["kernel"]) + np.asarray(params["down"]["bias"])
    np.testing.assert_allclose(nn.feed_forward(params, x, "relu", Context()), expected, atol=1e-6)


def test_compute_dtype_casts_parameters_at_their_use():
    params = nn.init(nn.dense_specs({"embed": 6}, {"mlp": 4}), jax.random.PRNGKey(0))
    x = jnp.asarray(normal(1, 2, 6), jnp.bfloat16)
    assert nn.dense(params, x, "btd,df->btf", Context(compute_dtype=jnp.bfloat16)).dtype == jnp.bfloat16
    assert nn.dense(params, x, "btd,df->btf", Context()).dtype == jnp.float32


def test_an_id_outside_the_vocabulary_shows():
    table = jnp.asarray(normal(5, 4))
    found = nn.embed(table, jnp.array([[1, 5]]), Context())
    np.testing.assert_array_equal(found[0, 0], table[1])
    assert jnp.isnan(found[0, 1]).all()


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((8, 4000))
    ctx = Context(dropout_key=jax.random.PRNGKey(1))
    dropped = nn.dropout(x, 0.25, "here", ctx)
    assert set(np.unique(np.asarray(dropped)).round(5)) == {0.0, np.float32(4 / 3).round(5)}
    assert abs(float((dropped == 0).mean()) - 0.25) < 4 * (0.25 * 0.75 / x.size) ** 0.5
    np.testing.assert_array_equal(nn.dropout(x, 0.25, "here", Context()), x)


def test_no_two_rows_places_or_layers_share_a_dropout_mask():
    ctx = Context(dropout_key=jax.random.PRNGKey(1))
    x = jnp.ones((6, 64))
    masks = [nn.dropout(x, 0.5, "a", ctx), nn.dropout(x, 0.5, "b", ctx), nn.dropout(x, 0.5, "a", ctx.within("mlp")),
             nn.dropout(x, 0.5, "a", ctx.replace(layer=0)), nn.dropout(x, 0.5, "a", ctx.replace(layer=1))]
    rows = {np.asarray(row).tobytes() for mask in masks for row in mask}
    assert len(rows) == 5 * 6


def test_a_row_drops_the_same_wherever_it_is_computed():
    ctx = Context(dropout_key=jax.random.PRNGKey(1))
    x = jnp.ones((6, 64))
    whole = nn.dropout(x, 0.5, "a", ctx)
    part = nn.dropout(x[:2], 0.5, "a", ctx.replace(rows=jnp.array([4, 2])))
    np.testing.assert_array_equal(part, whole[jnp.array([4, 2])])
