"""Checkpoints that are complete and verified, or not used at all.

orbax writes them, asynchronously, and gives each its name only when all of it is on disk. It restores a flipped bit
without a word, so that beside the arrays stand digests of our own, taken before the writing and compared after the
reading.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32

from flaxllm.errors import InputError

Metadata = dict[str, Any]
Tree = Any

DAMAGED = "damaged-"


class Checkpoints:
    """The checkpoints in one directory, of which the last `keep` are kept. Use it in a `with` block.

    A checkpoint is a tree and its metadata, a json-able dict. Every process calls every method. With `keep=None`
    the directory belongs to somebody else: nothing in it is changed.
    """

    def __init__(self, directory: Path, keep: int | None):
        self._directory = directory
        self._owned = keep is not None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=self._owned, cleanup_tmp_directories=self._owned, read_only=not self._owned
        )
        self._manager = ocp.CheckpointManager(directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def save(self, step: int, state: Tree, metadata: Metadata) -> None:
        """Begin to write a checkpoint; the state may be given away as soon as this returns. A step is written once."""
        if step in self._manager.all_steps():
            return
        record = {"metadata": metadata, "arrays": describe(state)}
        signed = {"record": record, "sha256": _sha256(record)}
        parts = ocp.args.Composite(state=ocp.args.PyTreeSave(state), record=ocp.args.JsonSave(signed))
        self._manager.save(step, args=parts, force=True)

    def wait(self) -> None:
        """Return when all that was saved is on disk."""
        self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        return sorted(self._manager.all_steps())

    def notes(self, key: str) -> list[Any]:
        """What the metadata of each checkpoint has under `key`, of those whose record is whole, in order."""
        records = (self._agreed(lambda: self._read_record(step)) for step in self.steps())
        return [record["metadata"][key] for record in records if not isinstance(record, Exception)]

    def read(self, step: int, abstract: Tree) -> Tree:
        """The arrays of one checkpoint, verified.

        Raises:
          InputError: it is damaged.
        """
        record = self._agreed(lambda: self._read_record(step))
        state = record
        if not isinstance(record, Exception):
            state = self._agreed(lambda: self._read_state(step, abstract, record["arrays"]))
        if isinstance(state, Exception):
            raise InputError(f"checkpoint {self._directory / str(step)} is damaged ({_reason(state)}): take fewer, or train on")
        return state

    def restore(
        self, abstract: Tree, accept: Callable[[Metadata], None], report: Callable[[str], None]
    ) -> tuple[int, Tree, Metadata] | None:
        """The step, state and metadata of the last good checkpoint; None if there is none.

        `abstract` is the state, or a dict of some of its fields: it has the shapes, and the shardings to restore to
        (numpy arrays where it has none). `accept` may raise InputError for a checkpoint that belongs to another run. A
        damaged checkpoint is reported, put aside under another name, and passed over.

        Raises:
          InputError: from `accept`, or where what was saved lacks a tensor of `abstract`, or has it in another shape.
        """
        for step in reversed(self.steps()):
            record = self._agreed(lambda: self._read_record(step))
            state = None
            if not isinstance(record, Exception):
                accept(record["metadata"])
                _check_same_arrays(record["arrays"], describe_shapes(abstract), self._directory / str(step))
                state = self._agreed(lambda: self._read_state(step, abstract, record["arrays"]))
            problem = next((x for x in (record, state) if isinstance(x, Exception)), None)
            if problem is None:
                return step, state, record["metadata"]
            self._put_aside(step, problem, report)
        return None

    def _read_record(self, step: int) -> dict:
        signed = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
        if signed["sha256"] != _sha256(signed["record"]):
            raise ValueError("its record does not have the digest it was written with")
        return signed["record"]

    def _read_state(self, step: int, abstract: Tree, arrays: dict) -> Tree:
        how = jax.tree.map(_restore_args, abstract)
        wanted = ocp.args.PyTreeRestore(abstract, restore_args=how, partial_restore=True)
        state = self._manager.restore(step, args=ocp.args.Composite(state=wanted)).state
        for path, found in describe(state).items():
            if found != arrays[path]:
                raise ValueError(f"{path} does not have the digest it was written with")
        return state

    def _agreed(self, read: Callable[[], Any]) -> Any:
        """What `read` gives, or the exception it raises; an exception in one process is one in all of them."""
        try:
            found = read()
        except Exception as error:  # whatever orbax, tensorstore or json find wrong with a damaged file
            found = error
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(np.array(isinstance(found, Exception)))
            if failed.any() and not isinstance(found, Exception):
                return ValueError(f"process {int(np.argmax(failed))} could not read it")
        return found

    def _put_aside(self, step: int, problem: Exception, report: Callable[[str], None]) -> None:
        place = self._directory / str(step)
        aside = place.with_name(f"{DAMAGED}{step}")
        reason = _reason(problem)
        if not self._owned:
            report(f"checkpoint {place} is damaged ({reason}): going on with the one before it")
            return
        report(f"checkpoint {place} is damaged ({reason}): put aside as {aside.name}, going on with the one before it")
        if jax.process_index() == 0:
            _rename(place, aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("put a checkpoint aside")
        self._manager.reload()


def _reason(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0][:200]


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if leaf.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)


def describe(state: Tree) -> dict[str, dict]:
    """Shape, dtype and digest of each array by its path (json-able)."""
    digests = {path: int(value) for path, value in _paths(jax.device_get(_digests(state))).items()}
    return {path: facts | {"digest": digests[path]} for path, facts in describe_shapes(state).items()}


def describe_shapes(state: Tree) -> dict[str, dict]:
    return {path: {"shape": list(x.shape), "dtype": str(x.dtype)} for path, x in _paths(state).items()}


@jax.jit
def _digests(state: Tree) -> Tree:
    return jax.tree.map(digest, state)


def digest(x: Array) -> UInt32[Array, ""]:
    """The sum modulo 2^32 of each element's bits, mixed with its place.

    A sum of integers does not depend on the order, and so not on how the array is split. The mixing can be undone, so
    that another value of one element always gives another sum.
    """
    width = max(8 * x.dtype.itemsize, 8)
    bits = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, f"uint{min(width, 32)}")
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return _mix(bits.astype(jnp.uint32) + place * jnp.uint32(0x9E3779B1)).sum(dtype=jnp.uint32)


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """The last step of MurmurHash3 (Appleby 2011): every bit of the input moves about half of the output's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _paths(tree: Tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _check_same_arrays(saved: dict, wanted: dict, place: Path) -> None:
    shapes = {path: {key: facts[key] for key in ("shape", "dtype")} for path, facts in saved.items()}
    for path in sorted(wanted):
        if shapes.get(path) != wanted.get(path):
            before, now = (_shape_text(tree.get(path)) for tree in (shapes, wanted))
            raise InputError(
                f"checkpoint {place} was written by a run with another model or optimizer ({path}: {before} there, "
                f"{now} here): change the config back, or start anew in another --workdir"
            )


def _shape_text(facts: dict | None) -> str:
    return "nothing" if facts is None else f"{facts['dtype']}{facts['shape']}"


def _rename(place: Path, aside: Path) -> None:
    number = 0
    while aside.exists():
        number += 1
        aside = aside.with_name(f"{aside.name.partition('.')[0]}.{number}")
    place.rename(aside)


def _sha256(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
