"""One step, by every placement, with ragged weights, micro-batches and dropout: the same numbers everywhere."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives import Judge, causal_lm, means
from flaxllm.parallel import make_mesh, mesh_placement, pmap_placement
from flaxllm.parallel.placement import Placement
from flaxllm.training.optimizer import OPTIMIZERS, make_optimizer
from flaxllm.training.state import TrainState, make_state
from flaxllm.training.step import eval_step, train_step

MESHES = ["fsdp:8", "data:2,fsdp:2,model:2", "data:2,sequence:4"]


def placements(model: Model) -> dict[str, Placement]:
    specs = model.param_specs()
    meshes = {text: mesh_placement(make_mesh(text), specs) for text in MESHES}
    return {"one": mesh_placement(make_mesh("data:1", jax.devices()[:1]), specs), "pmap": pmap_placement(), **meshes}


def run(
    placement: Placement, model: Model, batch: dict, config, micro_batches: int, num_steps: int = 3, **objective
) -> tuple:
    """The logical state after a few steps on the same batch, and each step's metrics."""
    optimizer = make_optimizer(config, lambda _: config.learning_rate, model.param_specs())
    step = partial(
        train_step,
        objective=causal_lm(model, None, batch["tokens"].shape[1], **objective),
        optimizer=optimizer,
        ctx=Context(rules=placement.rules),
        micro_batches=micro_batches,
        reduce=placement.reduce,
    )
    compiled = placement.compile(step, returns_state=True)
    state = placement.create(lambda: make_state(model.init, optimizer, seed=3))
    history = []
    for _ in range(num_steps):
        state, metrics = compiled(state, placement.batch(batch))
        history.append(placement.read(metrics))
    return jax.tree.map(np.asarray, placement.gather(state)), history


_REFERENCES: dict[tuple, tuple] = {}


def on_one_device(model: Model, batch: dict, config) -> tuple:
    """What `run` gives on a single device, compiled once for all the tests that compare with it."""
    key = (model, config.to_json())
    if key not in _REFERENCES:
        _REFERENCES[key] = run(placements(model)["one"], model, batch, config, micro_batches=1)
    return _REFERENCES[key]


@pytest.fixture
def sgd_like(optimizer_config):
    # Adam turns the rounding noise of a tiny gradient into a whole step; a large eps keeps steps proportional.
    optimizer_config.update(eps=1.0, learning_rate=1.0)
    return optimizer_config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "micro_batches", "dropout"),
    [("pmap", 1, 0.0), ("pmap", 2, 0.2), (MESHES[1], 1, 0.0), *((mesh, 2, 0.2) for mesh in MESHES)],
)
def test_every_placement_gives_the_single_devices_numbers(
    name, micro_batches, dropout, tiny_model, ragged_batch, sgd_like
):
    model = with_dropout(tiny_model, dropout)
    state, history = on_one_device(model, ragged_batch, sgd_like)
    other_state, other_history = run(placements(model)[name], model, ragged_batch, sgd_like, micro_batches)
    for metrics, others in zip(history, other_history, strict=True):
        for key in ("loss", "cross_entropy", "accuracy", "gradient_norm"):
            np.testing.assert_allclose(others[key], metrics[key], rtol=2e-5, err_msg=key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other_state.params, state.params)
    assert history[0]["loss"] > history[-1]["loss"]


def with_dropout(model: Model, rate: float) -> Model:
    return replace(model, config=replace(model.config, dropout=rate, attention_dropout=rate))


def test_the_gradient_is_that_of_the_sum_over_the_sum_of_weights(tiny_model, ragged_batch, sgd_like):
    sgd_like.update(weight_decay=0.0, b1=0.0, eps=1e6, learning_rate=1e6)
    one = placements(tiny_model)["one"]
    state, _ = run(one, tiny_model, ragged_batch, sgd_like, micro_batches=4, num_steps=1)
    objective = causal_lm(tiny_model, None, 12)
    start = make_state(tiny_model.init, make_optimizer(sgd_like, lambda _: 0.0, tiny_model.param_specs()), seed=3)
    batch = {key: jnp.asarray(value) for key, value in ragged_batch.items()}

    @jax.jit
    def gradient_of(row):
        return jax.grad(lambda params: objective.terms(params, row, Context())["loss"].sum)(start.params)

    rows = [gradient_of({key: value[row : row + 1] for key, value in batch.items()}) for row in range(16)]
    gradient = jax.tree.map(lambda *parts: sum(parts) / ragged_batch["weights"].sum(), *rows)
    moved = jax.tree.map(lambda old, new: old - new, start.params, state.params)
    jax.tree.map(lambda g, m: np.testing.assert_allclose(m, g, rtol=1e-3, atol=2e-6), gradient, moved)


def test_eval_counts_every_row_once_in_every_placement(tiny_model, ragged_batch):
    judge = Judge(score=None, outputs=lambda params, batch, ctx: {"first": batch["tokens"][:, 0] + 1})
    objective = causal_lm(tiny_model, None, 12)._replace(judge=judge)
    params = tiny_model.init(jax.random.PRNGKey(0))
    batch = {key: jnp.asarray(value) for key, value in ragged_batch.items()}
    expected = means(objective.terms(params, batch, Context()))
    for name, placement in placements(tiny_model).items():
        step = partial(eval_step, objective=objective, ctx=Context(rules=placement.rules), reduce=placement.reduce)
        compiled = placement.compile(step, returns_state=False)
        state = placement.create(lambda: TrainState(0, params, None, None))
        terms, outputs = compiled(state, placement.batch(ragged_batch))
        best = placement.rows(outputs)["first"]
        np.testing.assert_array_equal(best, ragged_batch["tokens"][:, 0] + 1, err_msg=name)
        weight, loss = placement.read((terms["loss"].weight, means(terms)["loss"]))
        assert float(weight) == pytest.approx(float(ragged_batch["weights"].sum()), rel=1e-6), name
        assert float(loss) == pytest.approx(float(expected["loss"]), rel=1e-5), name


def test_dropout_changes_with_the_step_and_not_with_the_run(tiny_model, ragged_batch, sgd_like):
    sgd_like.update(learning_rate=0.0)
    model = with_dropout(tiny_model, 0.3)
    _, history = on_one_device(model, ragged_batch, sgd_like)
    _, again = run(placements(model)["one"], model, ragged_batch, sgd_like, micro_batches=1)
    losses = [float(metrics["loss"]) for metrics in history]
    assert len(set(losses)) == 3
    assert losses == [float(metrics["loss"]) for metrics in again]


def test_non_finite_gradients_are_pointed_out_by_tensor(tiny_model, ragged_batch, sgd_like):
    placement = placements(tiny_model)["one"]
    optimizer = make_optimizer(sgd_like, lambda _: 0.1, tiny_model.param_specs())
    state = make_state(tiny_model.init, optimizer, 0)
    broken = nn.flatten(state.params)
    broken["final_norm/scale"] = broken["final_norm/scale"].at[0].set(jnp.inf)
    step = partial(train_step, objective=causal_lm(tiny_model, None, 12), optimizer=optimizer, ctx=Context(),
                   micro_batches=1, reduce=placement.reduce)  # fmt: skip
    _, metrics = jax.jit(step)(state.replace(params=nn.unflatten(broken)), placement.batch(ragged_batch))
    assert metrics["finite"].shape == (len(broken),) and not metrics["finite"].all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_every_optimizer_takes_the_single_devices_steps_on_a_mesh(name, tiny_model, ragged_batch, optimizer_config):
    optimizer_config.update(name=name, learning_rate=1e-3, clip_norm=1.0)
    _, history = on_one_device(tiny_model, ragged_batch, optimizer_config)
    _, others = run(placements(tiny_model)[MESHES[1]], tiny_model, ragged_batch, optimizer_config, micro_batches=1)
    losses, other_losses = ([float(metrics["loss"]) for metrics in h] for h in (history, others))
    np.testing.assert_allclose(other_losses, losses, rtol=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_chunked_loss_is_the_same_on_a_mesh(tiny_model, ragged_batch, sgd_like):
    _, history = on_one_device(tiny_model, ragged_batch, sgd_like)
    for name in MESHES[1:]:
        _, others = run(placements(tiny_model)[name], tiny_model, ragged_batch, sgd_like, micro_batches=1, max_logit_bytes=1000)
        np.testing.assert_allclose(*([m["loss"] for m in h] for h in (others, history)), rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["one", "pmap", "data:2,fsdp:2,model:2"])
def test_both_steps_lower_for_accelerators(platform, dtype, name, tiny_model, ragged_batch, sgd_like):
    model = with_dropout(tiny_model, 0.1)
    placement = placements(model)[name]
    optimizer = make_optimizer(sgd_like, lambda _: 0.1, model.param_specs())
    ctx = Context(compute_dtype=dtype, rules=placement.rules)
    parts = dict(objective=causal_lm(model, None, 12), ctx=ctx, reduce=placement.reduce)
    batch = placement.batch(ragged_batch)
    state = jax.eval_shape(lambda: placement.place(make_state(model.init, optimizer, 0)))
    train = placement.compile(partial(train_step, optimizer=optimizer, micro_batches=2, **parts), returns_state=True)
    evaluate = placement.compile(partial(eval_step, **parts), returns_state=False)
    for traced in (jax.jit(train).trace(state, batch), jax.jit(evaluate).trace(state, batch)):
        assert "stablehlo.dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_sharded_state_never_gathers_on_one_device(tiny_model, sgd_like):
    placement = placements(tiny_model)["fsdp:8"]
    optimizer = make_optimizer(sgd_like, lambda _: 0.1, tiny_model.param_specs())
    state: TrainState = placement.create(lambda: make_state(tiny_model.init, optimizer, 0))
    kernel = state.params["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    alone = make_state(tiny_model.init, optimizer, 0).params["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_allclose(kernel, alone, rtol=1e-6)
