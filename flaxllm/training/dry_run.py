"""What a run will take, worked out from shapes alone: nothing is allocated, and the mesh may outgrow the machine.

Parameters, optimizer state and gradients are exact. The rest is an estimate: the saved activations are what jax would
keep for the backward pass over one device's share of a micro-batch, before the compiler fuses and reorders; the working
set is that of the loss (logits, their softmax and their gradient) or that of a layer in the backward pass (as much as
it would save, and what it computes a second time), whichever is larger. What XLA allots was measured to be within a
fifth of it.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jaxtyping import Array
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from flaxllm.console import lead_console, scaled, show_table, text_table
from flaxllm.data import with_segments
from flaxllm.errors import InputError
from flaxllm.nn import LAYERS, Context, Param, count, flatten, unflatten
from flaxllm.objectives import Objective
from flaxllm.parallel import MESH_AXES, parse_mesh, tree_shardings
from flaxllm.parallel.mesh import ACTIVATION_RULES, param_spec
from flaxllm.training.config import check_config
from flaxllm.training.setup import check_choices, make_context, make_recipe, vocabulary_size
from flaxllm.training.trained import FROZEN

_LOGIT_ARRAYS = 3
_PREDICTED = ("targets", "masked_tokens")  # the ends of the names of arrays of tokens that are told by a vocabulary's logits


class Plan(NamedTuple):
    """A run on paper. `memory`: bytes on one device, by what they hold. `flops`: of a step, over all devices."""

    specs: dict[str, Param]
    mesh: AbstractMesh
    rows: int  # of a micro-batch, on one device
    logits: int  # bytes of them at a time, on one device
    flops: float
    memory: dict[str, int]


def dry_run(config: ConfigDict, console: Console | None = None) -> None:
    """Print the parameters, the devices, the memory of each, and the operations of a step.

    Raises:
      InputError: whatever in the config cannot be.
    """
    plan = make_plan(config)
    console = console or lead_console()
    for table in (_parameter_table(plan), _step_table(plan, config), _memory_table(plan)):
        show_table(console, table)
        console.print()


def make_plan(config: ConfigDict) -> Plan:
    """What `dry_run` prints.

    Raises:
      InputError: whatever in the config cannot be.
    """
    check_config(config)
    check_choices(config)
    recipe = make_recipe(config, vocabulary_size(config))
    model, objective, tree = recipe.model, recipe.objective, recipe.model.param_specs()
    specs, mesh = flatten(tree), _mesh(config)
    micro_batches, length = config.train.micro_batches, config.data.max_len
    rows = _rows_on_device(config.data.batch_size, mesh, micro_batches)
    state = jax.eval_shape(lambda: recipe.make_state(config.seed))
    ctx = make_context(config, rules=None)  # what is traced is one device's share
    batch = _abstract_batch(objective, rows)
    saved = _saved_bytes(specs, mesh, objective, batch, ctx)
    without_remat = _saved_bytes(specs, mesh, objective, batch, ctx.replace(remat=None)) if ctx.remat else saved
    num_layers = max(param.shape[0] for param in specs.values() if param.axes[:1] == (LAYERS,))
    targets = sum(len(row) for name, row in objective.empty_row.items() if name.endswith(_PREDICTED))
    logits = 4 * rows * targets * _vocabulary_in_use(specs, mesh) // mesh.shape["sequence"]
    logits = min(logits, config.objective.get("max_logit_bytes", logits))
    stored = partial(_stored_bytes, specs=recipe.trained.state_specs, mesh=mesh)
    # The backward pass is twice the forward one, which full remat does a second time.
    passes = 4.0 if config.remat == "full" else 3.0
    return Plan(
        specs=specs,
        mesh=mesh,
        rows=rows,
        logits=logits,
        flops=passes * model.matmul_flops(config.data.batch_size * length, length),
        memory={
            "parameters": stored({"params": state.params, FROZEN: state.frozen}),
            "optimizer state": stored(state.opt_state),
            # The sum over micro-batches stands beside the gradient that is added to it.
            "gradients": stored(state.params) * (1 if micro_batches == 1 else 2),
            "saved activations": saved,
            "working set": max(_LOGIT_ARRAYS * logits, (2 * without_remat - saved) // num_layers),
        },
    )


def _mesh(config: ConfigDict) -> AbstractMesh:
    """The mesh that the config asks for, of as many devices as it names; pmap is one with nothing but `data`."""
    text = f"data:{jax.device_count()}" if config.placement == "pmap" else config.mesh
    sizes = parse_mesh(text, jax.device_count() if "-1" in text else None)
    return AbstractMesh(tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _rows_on_device(batch_size: int, mesh: AbstractMesh, micro_batches: int) -> int:
    parts = math.prod(mesh.shape[axis] for axis in ACTIVATION_RULES["batch"])
    if batch_size % parts:
        raise InputError(
            f"data.batch_size {batch_size} cannot be split over {parts} devices: use a multiple of {parts}"
        )
    return max(1, batch_size // (parts * micro_batches))


def _stored_bytes(state: Any, specs: dict, mesh: AbstractMesh) -> int:
    """What a device keeps of a tree that has the parameters' tree in it."""
    shardings = jax.tree.leaves(tree_shardings(state, specs, mesh))
    return sum(
        math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x, sharding in zip(jax.tree.leaves(state), shardings, strict=True)
    )


def _stored_shape(param: Param, mesh: AbstractMesh) -> tuple[int, ...]:
    return NamedSharding(mesh, param_spec(param, mesh)).shard_shape(param.shape)


def _shape_in_use(param: Param, mesh: AbstractMesh) -> tuple[int, ...]:
    """A parameter's shape where a device computes with it: split along the axes that activations are split along too,
    and whole along those it is only stored by."""
    split = param_spec(param, mesh)
    return tuple(
        size // mesh.shape[axis] if axis in ACTIVATION_RULES.get(name, ()) else size
        for name, size, axis in zip(param.axes, param.shape, split, strict=True)
    )


def _vocabulary_in_use(specs: dict[str, Param], mesh: AbstractMesh) -> int:
    tables = [param for param in specs.values() if "vocab" in param.axes]
    return max(_shape_in_use(table, mesh)[table.axes.index("vocab")] for table in tables)


def _abstract_batch(objective: Objective, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    row = with_segments(dict(objective.empty_row))
    batch = {name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for name, x in row.items()}
    return batch | {"row": jax.ShapeDtypeStruct((rows,), np.int32)}


def _saved_bytes(
    specs: dict[str, Param], mesh: AbstractMesh, objective: Objective, batch: dict[str, Any], ctx: Context
) -> int:
    """What a device keeps of the forward pass for the backward one, without its logits."""
    params = {path: jax.ShapeDtypeStruct(_shape_in_use(param, mesh), jnp.float32) for path, param in specs.items()}
    key = jax.eval_shape(lambda: jax.random.PRNGKey(0))

    def kept(params: dict, batch: dict, key: Array) -> list:
        def loss(params: dict) -> Array:
            terms = objective.terms(params, batch, ctx.replace(dropout_key=key, rows=batch["row"]))
            return sum(terms[name].sum for name in objective.weights(batch))

        return jax.tree.leaves(jax.vjp(loss, params)[1])

    jaxpr = jax.make_jaxpr(kept)(unflatten(params), batch, key).jaxpr
    vocabulary = _vocabulary_in_use(specs, mesh)
    logits = [(*x.shape, vocabulary) for name, x in batch.items() if name.endswith(_PREDICTED)]
    inputs = {id(x) for x in jaxpr.invars}  # the parameters and the batch, which are there anyway
    arrays = {id(x): x.aval for x in jaxpr.outvars if id(x) not in inputs}
    copies = {_one_layer(param, _shape_in_use(param, mesh)): _stored_parts(param, mesh) for param in specs.values()}
    return sum(
        x.size * x.dtype.itemsize // copies.get(x.shape, copies.get((LAYERS, *x.shape[1:]), mesh.shape["sequence"]))
        for x in arrays.values()
        if x.shape not in logits
    )


def _one_layer(param: Param, shape: tuple[int, ...]) -> tuple:
    """A stacked parameter's shape whatever its number of layers: a scan may keep those of one kind of layer only."""
    return (LAYERS, *shape[1:]) if param.axes[:1] == (LAYERS,) else shape


def _stored_parts(param: Param, mesh: AbstractMesh) -> int:
    """Into how many parts more a parameter is cut where it is stored than where it is computed with."""
    return math.prod(_shape_in_use(param, mesh)) // math.prod(_stored_shape(param, mesh))


def _parameter_table(plan: Plan) -> Table:
    table = text_table("parameter", "axes, sizes/split by")
    for name in ("parameters", "on a device"):
        table.add_column(name, justify="right", no_wrap=True)
    on_device = {path: math.prod(_stored_shape(param, plan.mesh)) for path, param in plan.specs.items()}
    for path, param in plan.specs.items():
        split = param_spec(param, plan.mesh)
        axes = (
            f"{name} {size}" + (f"/{axis}" if axis else "")
            for name, size, axis in zip(param.axes, param.shape, split, strict=True)
        )
        table.add_row(path, ", ".join(axes), f"{param.size:,}", f"{on_device[path]:,}")
    table.add_row("all", "", f"{count(plan.specs):,}", f"{sum(on_device.values()):,}", style="bold")
    return table


def _step_table(plan: Plan, config: ConfigDict) -> Table:
    devices, tokens = plan.mesh.size, config.data.batch_size * config.data.max_len
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items() if size > 1) or "one device"
    here = "" if devices == jax.device_count() else f" ({jax.device_count():,} here)"
    table = text_table("step", "")
    table.add_row("placement", f"{config.placement}: {mesh}")
    table.add_row("devices", f"{devices:,}{here}")
    table.add_row("batch", f"{config.data.batch_size:,} rows x {config.data.max_len:,} = {tokens:,} tokens")
    table.add_row("micro-batches", f"{config.train.micro_batches} of {plan.rows:,} rows on a device")
    table.add_row("logits", f"{scaled(plan.logits, 1024)}B at a time on a device")
    flops, share = (scaled(x, 1000) for x in (plan.flops, plan.flops / devices))
    table.add_row("operations", f"{flops}FLOP, on a device {share}FLOP")
    return table


def _memory_table(plan: Plan) -> Table:
    table = text_table("memory on a device")
    table.add_column("estimate", justify="right", no_wrap=True)
    for name, size in plan.memory.items():
        table.add_row(name, f"{scaled(size, 1024)}B")
    table.add_row("all", f"{scaled(sum(plan.memory.values()), 1024)}B", style="bold")
    return table
