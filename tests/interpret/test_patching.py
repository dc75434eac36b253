from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.interpret import logit_difference, patch, patching
from flaxllm.interpret.forward import forward
from flaxllm.interpret.metrics import at, measured
from flaxllm.models.output import Output
from interpret.small import PAIRS, inputs, model_and_params, stack

CLEAN, CORRUPT = 0, 1  # seeds


def texts(name: str, seed: int):
    given = inputs(name, seed)
    return tuple(given.values()) if name in PAIRS else given["tokens"]


def run_with_cell(name: str, tap: str, axis: int, metric: Callable) -> Callable[[int, int], jax.Array]:
    """The metric of the corrupt input with a cell of the clean one, by a function of the layer and its value."""
    model, params = model_and_params(name)
    returned = nn.Context(taps=nn.Taps(returned=(tap,)))
    clean = forward(model, params, inputs(name, CLEAN), returned).taps[tap]

    @jax.jit
    def run(layer: int, place: int) -> jax.Array:
        def change(at_layer, value):
            here = (jnp.arange(value.shape[axis]) == place) & (at_layer == layer)
            here = here.reshape([-1 if number == axis else 1 for number in range(value.ndim)])
            return here * clean[at_layer] + (1 - here) * value

        ctx = nn.Context(taps=nn.Taps(functions=((tap, change),)))
        return metric(model.apply(params, **inputs(name, CORRUPT), ctx=ctx))

    return run


@pytest.mark.parametrize(
    ("name", "over", "tap", "axis"),
    [
        ("gpt", "position", None, 1),
        ("llama", "head", "layers/attention/key", 2),
        ("bert", "position", "layers/attention/weights", 2),
        ("t5", "head", None, 2),
    ],
)
def test_each_cell_is_a_run_with_the_clean_cell(name, over, tap, axis):
    model, params = model_and_params(name)
    metric = logit_difference(model, params, 3, 7)
    found = patch(model, params, texts(name, CLEAN), texts(name, CORRUPT), metric, tap, over, cells_at_a_time=4)
    default = "layers/out" if over == "position" else "layers/attention/mixed"
    run = run_with_cell(name, tap or stack(name) + default, axis, metric)
    expected = [[run(layer, place) for place in range(found.shape[1])] for layer in range(found.shape[0])]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found) > 0.01


@pytest.mark.parametrize("name", ["llama", "transformer"])
def test_the_last_layer_carries_a_position_to_its_own_logits_alone(name):
    model, params = model_and_params(name)
    metric = logit_difference(model, params, np.array([3, 4]), position=np.array([2, 2]))
    found = patch(model, params, texts(name, CLEAN), texts(name, CORRUPT), metric, cells_at_a_time=16)
    clean, corrupt = (metric(forward(model, params, inputs(name, seed), nn.Context())) for seed in (CLEAN, CORRUPT))
    expected = np.where(np.arange(found.shape[1]) == 2, clean, corrupt)
    if name in PAIRS:  # whose clean decoder saw a clean encoder
        assert abs(clean - corrupt) > 0.01
    np.testing.assert_allclose(found[-1], expected, atol=1e-5)


def test_other_inputs_of_the_same_shapes_compile_nothing(monkeypatch):
    model, params = model_and_params("gpt")
    traced = []
    monkeypatch.setattr(patching, "measured", lambda *args: traced.append(1) or measured(*args))

    def found(seed: int, right: int, position: int):
        metric = logit_difference(model, params, right, 7, position)
        return patch(model, params, texts("gpt", seed), texts("gpt", seed + 1), metric, "layers/mlp/out", cells_at_a_time=6)

    first, count = found(10, 3, -1), len(traced)
    assert count > 0
    assert not np.allclose(first, found(20, 5, 2))
    assert len(traced) == count


def test_a_metric_may_be_any_function():
    model, params = model_and_params("bert")

    def first(output: Output) -> jax.Array:
        return output.hidden[0, 0, 0]

    found = patch(model, params, texts("bert", CLEAN), texts("bert", CLEAN), first, cells_at_a_time=16)
    np.testing.assert_allclose(found, first(forward(model, params, inputs("bert", CLEAN), nn.Context())), atol=1e-6)


def test_a_difference_of_logits_is_the_mean_over_rows():
    model, params = model_and_params("gpt")
    output = forward(model, params, inputs("gpt"), nn.Context())
    logits = np.asarray(model.unembed(params, output.hidden))
    found = logit_difference(model, params, np.array([3, 4]), 5, np.array([1, -2]))(output)
    np.testing.assert_allclose(found, (logits[0, 1, 3] - logits[0, 1, 5] + logits[1, -2, 4] - logits[1, -2, 5]) / 2, rtol=1e-5)
    np.testing.assert_allclose(logit_difference(model, params, 3)(output), logits[:, -1, 3].mean(), rtol=1e-5)
    assert np.isnan(at(output.hidden, jnp.array([5, 6]))).any(-1).tolist() == [False, True]
    with pytest.raises(InputError, match="the token 99 is not in this model's vocabulary"):
        logit_difference(model, params, 99)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(over="layer"), "got over='layer': expected 'position' or 'head'"),
        (dict(over="head", tap="layers/out"), "'layers/out' with the axes layers, batch, length, embed: expected layers, and heads"),
        (dict(tap="embedding"), "'embedding' with the axes batch, length, embed: expected layers, and length or queries"),
        (dict(tap="layers/ouch"), "no tap is called 'layers/ouch' in this model: did you mean"),
        (dict(clean=np.ones((2, 4), int)), r"a clean input of shape \[\(2, 4\)\] and a corrupt one of \[\(2, 6\)\]"),
        (dict(metric=Partial(lambda output: output.hidden[:, 0, 0])), r"an array of shape \(2,\): expected one number"),
    ],
)
def test_what_cannot_be_patched_is_refused(change, message):
    model, params = model_and_params("gpt")
    args = dict(clean=texts("gpt", CLEAN), corrupt=texts("gpt", CORRUPT), metric=logit_difference(model, params, 3))
    with pytest.raises(InputError, match=message):
        patch(model, params, **args | change)
