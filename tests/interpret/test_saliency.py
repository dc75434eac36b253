import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm.errors import InputError
from flaxllm.interpret import gradient_times_input, logit_difference, tap_gradients
from flaxllm.models.output import Output
from flaxllm.nn import Context, Taps
from interpret.small import PAIRS, in_float64, inputs, model_and_params

NAMES = ("layers/attention/weights", "layers/mlp/out")


def length(output: Output) -> jax.Array:
    return (output.hidden**2).sum() / 2


def test_gradients_of_all_layers_are_the_numerical_ones():
    """In float64, along a random direction in one layer at a time, by a function of the layer and the value."""
    model, params = model_and_params("gpt")
    params, rng = in_float64(params), np.random.default_rng(0)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        found = tap_gradients(model, params, metric=length, names=("*/weights", "layers/mlp/out"), **inputs("gpt"))
        assert found.keys() == set(NAMES)

        @jax.jit
        def moved(steps: dict, layer: int) -> jax.Array:
            functions = tuple((name, lambda at, x, step=step: x + jnp.where(at == layer, step, 0)) for name, step in steps.items())
            return length(model.apply(params, **inputs("gpt"), ctx=Context(taps=Taps(functions=functions))))

        nothing = {name: jnp.zeros(gradient.shape[1:]) for name, gradient in found.items()}
        for name, gradient in found.items():
            step = jnp.asarray(rng.normal(size=gradient.shape[1:]))
            for layer in range(2):
                up, down = (moved(nothing | {name: size * step}, layer) for size in (1e-5, -1e-5))
                np.testing.assert_allclose((gradient[layer] * step).sum(), (up - down) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_saliency_is_the_gradient_times_the_embedding(name):
    """A token's embedding is its row of the table alone: its gradient is that of a row of its own."""
    model, params = model_and_params(name)
    given = inputs(name) | {"tokens": np.arange(12).reshape(2, 6)}
    if name in PAIRS:  # whose decoder reads other rows
        given["decoder_tokens"] = given["decoder_tokens"] % 10 + 20
    metric = logit_difference(model, params, 3, 7)
    found = gradient_times_input(model, params, metric=metric, **given)
    table = params["embedding"]["tokens"]

    def of_table(table: jax.Array) -> jax.Array:
        changed = params | {"embedding": params["embedding"] | {"tokens": table}}
        return metric(model.apply(changed, **given))

    by_row = (jax.jit(jax.grad(of_table))(table) * table).sum(-1)
    np.testing.assert_allclose(found, by_row[given["tokens"]], rtol=1e-4, atol=1e-6)


def test_a_steered_model_has_the_gradients_of_what_goes_on():
    model, params = model_and_params("gpt")
    steered = Context(taps=Taps(added={"layers/mlp/out": jnp.array([[0.0] * 16, range(16)])[:, None, None]}))
    plain, found = (
        tap_gradients(model, params, metric=length, names="layers/mlp/out", ctx=ctx, **inputs("gpt"))["layers/mlp/out"]
        for ctx in (Context(), steered)
    )
    assert found.shape == plain.shape
    assert np.abs(found - plain).max() > 0.01


def test_a_metric_of_more_than_one_number_is_refused():
    with pytest.raises(InputError, match=r"the metric gives an array of shape \(2, 6\): expected one number"):
        gradient_times_input(*model_and_params("gpt"), metric=lambda output: output.hidden[..., 0], **inputs("gpt"))
    with pytest.raises(InputError, match="no tap is called 'layers/ouch'"):
        tap_gradients(*model_and_params("gpt"), metric=length, names=["layers/ouch"], **inputs("gpt"))
