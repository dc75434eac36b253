"""One training step and one evaluation step, as pure functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from flaxllm.nn import Context, flatten
from flaxllm.objectives import Objective, Term, add_terms, means
from flaxllm.objectives.objective import Batch, ratio
from flaxllm.training.state import TrainState

Reduce = Callable[[Any], Any]
Assemble = Callable[[Any, Any], dict]


def all_trained(params: dict, frozen: None) -> dict:
    """The model's parameters where all of them are trained."""
    return params


def train_step(
    state: TrainState,
    batch: Batch,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ctx: Context,
    micro_batches: int,
    reduce: Reduce,
    assemble: Assemble = all_trained,
) -> tuple[TrainState, dict[str, Array]]:
    """The next state, and the metrics of the batch under the current one.

    The loss is divided by the weights of the whole batch, known before any gradient is taken: gradients then add up
    over micro-batches and, with `reduce`, over devices, and need no further division. `assemble` makes the model's
    parameters of those that are trained and those that are not.
    """
    totals = reduce(objective.weights(batch))
    ctx = ctx.replace(dropout_key=jax.random.fold_in(state.key, state.step))

    def loss(params: dict, micro_batch: Batch) -> tuple[Array, dict[str, Term]]:
        terms = objective.terms(assemble(params, state.frozen), micro_batch, ctx.replace(rows=micro_batch["row"]))
        return sum(ratio(terms[name].sum, total) for name, total in totals.items()), terms

    def accumulate(sums: tuple | None, micro_batch: Batch) -> tuple:
        (_, terms), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, micro_batch)
        new = (gradients, terms)
        return new if sums is None else (jax.tree.map(jnp.add, sums[0], gradients), add_terms(sums[1], terms))

    if micro_batches == 1:
        sums = accumulate(None, batch)
    else:
        cut = jax.tree.map(lambda x: _cut(x, micro_batches), batch)
        shapes = jax.eval_shape(lambda: accumulate(None, jax.tree.map(lambda x: x[0], cut)))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        sums, _ = jax.lax.scan(lambda sums, micro_batch: (accumulate(sums, micro_batch), None), zeros, cut)
    gradients, terms = reduce(sums)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = means(terms) | {
        "loss": sum(ratio(terms[name].sum, total) for name, total in totals.items()),
        "gradient_norm": optax.global_norm(gradients),
        "finite": finite_leaves(gradients),
    }
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def eval_step(
    state: TrainState,
    batch: Batch,
    objective: Objective,
    ctx: Context,
    reduce: Reduce,
    assemble: Assemble = all_trained,
) -> tuple[dict[str, Term], dict[str, Array]]:
    """The terms of a batch, without dropout, and for each row what the objective judges a whole set by."""
    params = assemble(state.params, state.frozen)
    judge = objective.judge
    outputs = judge.outputs(params, batch, ctx) if judge and judge.outputs else {}
    return reduce(objective.terms(params, batch, ctx)), outputs


def finite_leaves(tree: dict) -> Bool[Array, "leaves"]:
    """For each tensor, in the order of `flatten`, whether its sum of squares is finite."""
    return jnp.stack([jnp.isfinite(jnp.square(x).sum()) for x in flatten(tree).values()])


def _cut(x: Array, micro_batches: int) -> Array:
    """`[batch, ...]` to `[micro_batches, batch / micro_batches, ...]`; each takes its share of every device's rows."""
    return jnp.swapaxes(x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]), 0, 1)
