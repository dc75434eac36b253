"""Taps on whole models of every family: a value patched into itself, one input's values in another's run, and no taps at all."""

import importlib
import pkgutil
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxllm.models
import flaxllm.nn
from flaxllm import nn
from flaxllm.models import Model
from flaxllm.models.output import Output
from flaxllm.nn import Context, Replacement, Taps
from flaxllm.parallel import make_mesh, mesh_placement
from interpret.small import MODELS, inputs, model_and_params

ULP = np.finfo(np.float32).eps


def stacks(name: str) -> list[str]:
    return ["encoder/", "decoder/"] if name in ("t5", "transformer") else [""]


@partial(jax.jit, static_argnames="model")
def run(model: Model, params: dict, given: dict, ctx: Context) -> tuple[jax.Array, dict]:
    output = model.apply(params, **given, ctx=ctx)
    return model.unembed(params, output.hidden, ctx=ctx), output.taps


@cache
def everything(name: str, seed: int = 0) -> tuple[np.ndarray, dict]:
    """The logits, and every inner value."""
    return run(*model_and_params(name), inputs(name, seed), Context(taps=Taps(returned=("*",))))


def assert_close(actual, expected, ulps: int = 64):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ulps * ULP * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_a_value_in_its_own_place_changes_nothing(name):
    logits, taps = everything(name)
    itself = Context(taps=Taps(replaced={tap: Replacement(value) for tap, value in taps.items()}))
    found, _ = run(*model_and_params(name), inputs(name), itself)
    assert_close(found, logits, ulps=4)


@pytest.mark.parametrize("name", MODELS)
def test_all_of_another_inputs_layers_give_its_logits(name):
    model, params = model_and_params(name)
    (logits, taps), (others, _) = everything(name, 0), everything(name, 1)
    assert np.abs(logits - others).max() > 0.1
    outs = {tap: value for tap, value in taps.items() if tap in {f"{stack}layers/out" for stack in stacks(name)}}
    for here, expected in ((True, logits), (False, others)):
        new = {tap: Replacement(value, jnp.full((len(value), 1, 1, 1), here)) for tap, value in outs.items()}
        found, _ = run(model, params, inputs(name, 1), Context(taps=Taps(replaced=new)))
        assert_close(found, expected, ulps=4)


@pytest.mark.parametrize("name", MODELS)
def test_layers_one_by_one_and_recomputed_have_the_same_values(name):
    model, params = model_and_params(name)
    logits, taps = everything(name)
    unstacked = nn.unstack(jax.tree.map(jnp.copy, params))
    found = run(model, unstacked, inputs(name), Context(taps=Taps(returned=("*",)), remat="full"))
    assert_close(found[0], logits)
    assert found[1].keys() == taps.keys()
    for tap, value in taps.items():
        assert_close(found[1][tap], value)


@pytest.mark.parametrize("name", ["gpt", "t5"])
def test_a_vmap_and_a_mesh_have_the_same_values(name):
    model, params = model_and_params(name)
    logits, taps = everything(name)
    names = tuple(f"{stack}layers/{tap}" for stack in stacks(name) for tap in ("out", "attention/weights"))
    ctx = Context(taps=Taps(returned=names))
    by_row = jax.vmap(lambda row: run(model, params, jax.tree.map(lambda x: x[None], row), ctx), out_axes=(0, 1))
    per_row, per_row_taps = by_row(inputs(name))
    assert_close(per_row[:, 0], logits)
    placement = mesh_placement(make_mesh("data:2,model:2", jax.devices()[:4]), model.param_specs())
    split = run(model, placement.place(params), inputs(name), ctx.replace(rules=placement.rules))
    assert_close(split[0], logits)
    for tap in names:
        assert_close(per_row_taps[tap][:, :, 0], taps[tap])
        assert_close(split[1][tap], taps[tap])


def program(name: str) -> tuple[str, str]:
    """What a forward pass and a gradient lower to."""
    model, given = MODELS[name], inputs(name)
    params = nn.abstract(model.param_specs())

    def loss(params: dict) -> jax.Array:
        output: Output = model.apply(params, **given)
        return (model.unembed(params, output.hidden) ** 2).sum()

    return jax.jit(loss).lower(params).as_text(), jax.jit(jax.grad(loss)).lower(params).as_text()


@pytest.mark.parametrize("name", MODELS)
def test_without_taps_the_program_is_that_of_an_identity(name, monkeypatch):
    expected = program(name)
    called = []

    def identity(value: jax.Array, name: str, ctx: Context) -> jax.Array:
        called.append(name)
        return value

    for package in (flaxllm.models, flaxllm.nn):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            if getattr(module, "tap", None) is nn.tap or module.__name__ == "flaxllm.nn.context":
                monkeypatch.setattr(module, "tap", identity)
    assert program(name) == expected
    assert {"out", "weights", "mixed", "up", "hidden"} <= set(called)
