"""The two placements of a train step: `mesh` (jit over a device mesh; one device is the smallest) and `pmap`.

Both offer the same functions and give the same numbers, so that nothing else in the code asks which one it is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.jax_utils
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxllm.errors import InputError
from flaxllm.nn import Rules
from flaxllm.parallel.mesh import activation_rules, tree_shardings

PMAP_AXIS = "devices"

Tree = Any
Step = Callable[..., Any]


class Placement(NamedTuple):
    """How a state, a batch and a step come to the devices and back.

    `rules`: the activation sharding for a context. `reduce(tree)`: inside a step, the sum over the devices that share a
    batch. `local_rows(batch_size)`: the rows `[start, stop)` of the global batch that this process must give.
    `create(make)`: the state that `make()` describes, made in place. `place(state)`: a logical state (host arrays, or
    what `abstract` asked for) put in place. `gather(state)`: the logical state, fit for a checkpoint. `abstract(state)`:
    its shapes with the shardings to restore to. `compile(step, donate)`: the step `(state, batch) -> outputs`, where
    `returns_state` says that the first output is a state. `batch(arrays)`: this process's rows put in place.
    `read(metrics)`: a tree of scalars as numpy. `rows(outputs)`: arrays with a row for each of the global batch, as numpy
    and in order, in every process.
    """

    rules: Rules | None
    reduce: Callable[[Tree], Tree]
    local_rows: Callable[[int], tuple[int, int]]
    create: Callable[[Callable[[], Tree]], Tree]
    place: Callable[[Tree], Tree]
    gather: Callable[[Tree], Tree]
    abstract: Callable[[Tree], Tree]
    compile: Callable[..., Step]
    batch: Callable[[dict[str, np.ndarray]], Tree]
    read: Callable[[Tree], Tree]
    rows: Callable[[Tree], Tree]


def mesh_placement(mesh: Mesh, specs: dict) -> Placement:
    """Data, fsdp, model and sequence parallelism by sharding annotations; parameters are split by their logical axes."""
    rules = activation_rules(mesh)
    rows = PartitionSpec(("data", "fsdp"))

    def shardings(state: Tree) -> Tree:
        return tree_shardings(state, specs, mesh)

    def local_rows(batch_size: int) -> tuple[int, int]:
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        _check_divides(batch_size, parts, "the data and fsdp axes of the mesh")
        indices = NamedSharding(mesh, rows).addressable_devices_indices_map((batch_size,))
        bounds = [index[0].indices(batch_size)[:2] for index in indices.values()]
        return min(start for start, _ in bounds), max(stop for _, stop in bounds)

    def split(array: np.ndarray) -> NamedSharding:
        axes = ("sequence",) if array.ndim > 1 and array.shape[1] % mesh.shape["sequence"] == 0 else ()
        return NamedSharding(mesh, PartitionSpec(rows[0], *axes))

    def batch(arrays: dict[str, np.ndarray]) -> Tree:
        return {name: jax.make_array_from_process_local_data(split(x), x) for name, x in arrays.items()}

    def abstract(state: Tree) -> Tree:
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings(state)
        )

    def create(make: Callable[[], Tree]) -> Tree:
        return jax.jit(make, out_shardings=shardings(jax.eval_shape(make)))()

    def compile_step(step: Step, returns_state: bool) -> Step:
        if not returns_state:
            return jax.jit(step)

        @partial(jax.jit, donate_argnums=0)
        def in_place(state: Tree, batch: Tree) -> tuple:
            new_state, *rest = step(state, batch)
            return jax.lax.with_sharding_constraint(new_state, shardings(new_state)), *rest

        return in_place

    return Placement(
        rules=rules,
        reduce=lambda tree: tree,
        local_rows=local_rows,
        create=create,
        place=lambda state: jax.tree.map(jax.device_put, state, shardings(state)),
        gather=lambda state: state,
        abstract=abstract,
        compile=compile_step,
        batch=batch,
        read=jax.device_get,
        rows=_of_all_processes,
    )


def pmap_placement() -> Placement:
    """Classic data parallelism: every device holds the whole state and a share of the batch."""

    def local_rows(batch_size: int) -> tuple[int, int]:
        _check_divides(batch_size, jax.device_count(), "the devices")
        share = batch_size // jax.process_count()
        return jax.process_index() * share, (jax.process_index() + 1) * share

    def first(x: jax.Array) -> np.ndarray:
        return np.asarray(x.addressable_shards[0].data).reshape(x.shape[1:])

    def own_rows(x: jax.Array) -> np.ndarray:
        shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate([np.asarray(shard.data).reshape(-1, *x.shape[2:]) for shard in shards])

    def compile_step(step: Step, returns_state: bool) -> Step:
        return jax.pmap(step, axis_name=PMAP_AXIS, donate_argnums=(0,) if returns_state else ())

    def batch(arrays: dict[str, np.ndarray]) -> Tree:
        devices = jax.local_device_count()
        return {name: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]) for name, x in arrays.items()}

    def abstract(state: Tree) -> Tree:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)

    return Placement(
        rules=None,
        reduce=partial(jax.lax.psum, axis_name=PMAP_AXIS),
        local_rows=local_rows,
        create=lambda make: flax.jax_utils.replicate(jax.jit(make)()),
        place=flax.jax_utils.replicate,
        gather=lambda state: jax.tree.map(first, state),
        abstract=abstract,
        compile=compile_step,
        batch=batch,
        read=lambda metrics: jax.tree.map(first, metrics),
        rows=lambda outputs: _of_all_processes(jax.tree.map(own_rows, outputs)),
    )


def _of_all_processes(outputs: Tree) -> Tree:
    if jax.process_count() == 1:
        return jax.device_get(outputs)
    return jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), outputs)


def _check_divides(batch_size: int, parts: int, what: str) -> None:
    if batch_size % parts:
        raise InputError(f"a batch of {batch_size} rows cannot be split over {what} ({parts}): use a multiple of {parts}")
