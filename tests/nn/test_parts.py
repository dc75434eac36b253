import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.errors import InputError

X = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
SCALE = np.arange(7.0, dtype=np.float32)


def scaled(arrays: dict) -> dict:
    return {"rows": arrays["x"] * arrays["inner"][0][:, None], "sums": arrays["x"].sum(1)}


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 3, 6, 7, 8])
def test_every_row_comes_back_in_its_place_whatever_is_left_over(rows_at_a_time):
    run = jax.jit(lambda arrays: nn.map_parts(scaled, arrays, rows_at_a_time))
    out = run({"x": X, "inner": (SCALE,)})
    np.testing.assert_allclose(out["rows"], X * SCALE[:, None], rtol=1e-6)
    np.testing.assert_allclose(out["sums"], X.sum(1), rtol=1e-5, atol=1e-6)


def test_its_gradient_is_that_of_the_whole():
    gradient = jax.grad(lambda x: (nn.map_parts(jnp.sin, x, 3) * SCALE[:, None]).sum())(X)
    np.testing.assert_allclose(gradient, np.cos(X) * SCALE[:, None], rtol=1e-5, atol=1e-6)


def test_no_more_rows_than_asked_for_are_computed_at_once_and_the_parts_are_compiled_once():
    seen = []

    def function(x):
        seen.append(x.shape)
        return x

    jax.make_jaxpr(lambda x: nn.map_parts(function, x, 8))(np.zeros((43, 2)))
    assert sorted(set(seen)) == [(3, 2), (8, 2)]
    seen.clear()
    jaxpr = jax.make_jaxpr(lambda x: nn.map_parts(function, x, 8))(np.zeros((800, 2)))
    assert set(seen) == {(8, 2)} and "scan" in {equation.primitive.name for equation in jaxpr.eqns}


@pytest.mark.parametrize(
    ("function", "arrays", "rows", "message"),
    [
        (jnp.sin, X, 0, "rows_at_a_time=0: expected 1 or more"),
        (jnp.sin, (X, SCALE[:6]), 2, r"got arrays of shapes \(7, 5\), \(6,\): expected arrays with one common"),
        (jnp.sin, (X, jnp.float32(1)), 2, r"arrays of shapes \(7, 5\), \(\): expected"),
        (jnp.sin, jnp.float32(1), 2, r"arrays of shapes \(\): expected"),
        (jnp.sin, {}, 2, "arrays of shapes none: expected"),
        (jnp.sum, X, 3, r"results of shapes \(\): expected"),
        (lambda x: x[:2], X, 3, "got 2 rows from its function for 3: expected as many"),
        (lambda x: x[:2], X, 9, "got 2 rows from its function for 7: expected as many"),
    ],
)
def test_what_cannot_be_cut_is_refused(function, arrays, rows, message):
    with pytest.raises(InputError, match=message):
        nn.map_parts(function, arrays, rows)
