"""Models from the checkpoints that people have: a folder, a hub id or a GGUF file."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models import Model, build
from flaxllm.nn import Param
from flaxllm.parallel import make_mesh
from flaxllm.parallel.mesh import param_spec
from flaxllm.pretrained.checkpoint import Checkpoint, open_checkpoint
from flaxllm.pretrained.config_file import Keys
from flaxllm.pretrained.families import FAMILIES, family_of, head_of
from flaxllm.pretrained.match import Match, Place, check_whole, match
from flaxllm.pretrained.names import as_theirs, fused_axis

BASE = "base"  # the head's name for the model without one

_log = logging.getLogger("flaxllm")
_ALIGNMENT = 64  # bytes: an array that starts at a multiple of it is handed to jax on the CPU without a copy
_STRIPE = 128  # rows that are transposed at a time: what stays in the processor's cache
_CACHE_LINE = 64  # bytes
_THREADS = 2  # that read and write tensors on the host: each has one of them in memory, and more were not faster

# Writes a tensor in the checkpoint's layout into its place: (path, layer, tensor, inputs_first).
Write = Callable[[str, int | None, np.ndarray, bool], None]


def from_pretrained(
    path: str | Path,
    head: str | None = None,
    dtype: DTypeLike | None = None,
    mesh: Mesh | str | None = None,
    labels: Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
    key: nn.Key | None = None,
) -> tuple[Model, dict]:
    """The model of a Hugging Face folder, a hub id or a `.gguf` file, and its parameters.

    `head` is the checkpoint's own unless named; "base" takes the model without one. A head that the checkpoint has not
    is started afresh if it is named, with `labels` for its classes (those of the config otherwise), from `key`; a
    warning says so. `config` has keys for what config.json lacks or gets wrong, such as the model_type that old files do
    not name. `dtype` is the checkpoint's own unless given. With a `mesh` (or its text, such as "fsdp:8")
    parameters are split by their logical axes. Tensors are read into their places one at a time, or two at a time where
    the places are on the host: that much is in memory beside the parameters.

    Raises:
      InputError: the path, the config or a tensor is not what it must be.
    """
    checkpoint = open_checkpoint(path)
    checkpoint = checkpoint._replace(config=checkpoint.config | dict(config or {}))
    model = model_of(checkpoint, head, labels)
    specs = nn.flatten(model.param_specs())
    names = FAMILIES[model.family].names(model.config, model.head)
    found = match(checkpoint, specs, names)
    new = check_whole(checkpoint, specs, found, new_head=head not in (None, BASE))
    _check_tied(checkpoint, found)
    dtypes = _dtypes(checkpoint, found, new, dtype)
    if mesh is None and jax.default_backend() == "cpu":
        write, params = _host_places({path: specs[path] for path in specs if path not in new}, dtypes)
        threads = _THREADS
    else:
        mesh = make_mesh(mesh) if isinstance(mesh, str) else mesh
        write, params = _device_places(specs, dtypes, mesh)
        threads = 1
    _write_all(checkpoint, found, specs, write, threads)
    loaded = params()
    if new:
        head_specs = nn.unflatten({path: specs[path] for path in new})
        loaded |= nn.flatten(nn.init(head_specs, jax.random.PRNGKey(0) if key is None else key, dtypes[new[0]]))
    _report(checkpoint, model, found.dropped, new)
    return model, nn.unflatten(loaded)


def model_of(checkpoint: Checkpoint, head: str | None = None, labels: Sequence[str] | None = None) -> Model:
    """The model that a checkpoint's config describes; `head` and `labels` as for `from_pretrained`."""
    keys = Keys(checkpoint.config, f"{checkpoint.path}/config.json" if checkpoint.path.is_dir() else str(checkpoint.path))
    family = family_of(keys)
    if keys.get("quantization_config", None) is not None:
        raise InputError(f"{keys.file} describes a quantized model (quantization_config): load the original weights, or a GGUF")
    config = FAMILIES[family].read_config(keys, checkpoint.tensors.keys())
    depth = max(config.num_layers, getattr(config, "num_decoder_layers", None) or 0)
    held = len(checkpoint.tensors)
    if depth > held:
        raise InputError(f"{keys.file} says that there are {depth} layers, but the checkpoint has {held} tensors")
    if labels is not None:
        config = dataclasses.replace(config, labels=tuple(labels))
    chosen = head_of(keys, family) if head is None else None if head == BASE else head
    return build(family, vars(config), chosen)


def _dtypes(checkpoint: Checkpoint, found: Match, new: list[str], dtype: DTypeLike | None) -> dict[str, Any]:
    """The dtype of each parameter: the one asked for, or else the one that holds all its layers' tensors."""
    dtypes: dict[str, Any] = {}
    for name, place in found.places.items():
        its = checkpoint.tensors[name].dtype if dtype is None else _floating(dtype)
        dtypes |= {path: jnp.promote_types(dtypes.get(path, its), its) for path in place.rule.paths}
    dtypes |= dict.fromkeys(new, jnp.result_type(*set(dtypes.values())))
    return {path: jax.dtypes.canonicalize_dtype(its) for path, its in dtypes.items()}


def _floating(dtype: DTypeLike) -> np.dtype:
    try:
        known = jnp.dtype(dtype)
    except TypeError as error:
        raise InputError(f"there is no dtype {dtype!r}: use 'float32', 'bfloat16' or 'float16'") from error
    if not jnp.issubdtype(known, jnp.floating):
        raise InputError(f"parameters cannot be {known}: use a floating-point dtype, such as 'float32' or 'bfloat16'")
    return known


def _host_places(specs: Mapping[str, Param], dtypes: Mapping[str, Any]) -> tuple[Write, Callable]:
    """Arrays on the host, which jax on the CPU takes over as they are."""
    arrays = {path: _aligned(param.shape, dtypes[path]) for path, param in specs.items()}

    def write(path: str, layer: int | None, tensor: np.ndarray, inputs_first: bool) -> None:
        array = arrays[path] if layer is None else arrays[path][layer]
        _copy(as_theirs(array, specs[path], inputs_first), tensor)

    return write, lambda: {path: jax.device_put(array, may_alias=True) for path, array in arrays.items()}


def _device_places(
    specs: Mapping[str, Param], dtypes: Mapping[str, Any], mesh: Mesh | None
) -> tuple[Write, Callable]:
    """Arrays on the devices, split over the mesh; a stacked one is made at once and filled layer by layer in place."""
    arrays: dict[str, Array] = {}

    def sharding(path: str, layered: bool) -> Any:
        if mesh is None:
            return jax.devices()[0]
        spec = param_spec(specs[path], mesh)
        return NamedSharding(mesh, PartitionSpec(*spec[1:]) if layered else spec)

    def write(path: str, layer: int | None, tensor: np.ndarray, inputs_first: bool) -> None:
        param = specs[path]
        host = _aligned(param.shape if layer is None else param.shape[1:], dtypes[path])
        _copy(as_theirs(host, param, inputs_first), tensor)
        if layer is None:
            arrays[path] = jax.device_put(host, sharding(path, layered=False))
            return
        if path not in arrays:
            arrays[path] = jnp.zeros(param.shape, dtypes[path], device=sharding(path, layered=False))
        arrays[path] = _set_layer(arrays[path], jax.device_put(host, sharding(path, layered=True)), layer)

    return write, lambda: arrays


@partial(jax.jit, donate_argnums=0)
def _set_layer(stacked: Array, tensor: Array, layer: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, tensor, layer, axis=0)


def _write_all(checkpoint: Checkpoint, found: Match, specs: Mapping[str, Param], write: Write, threads: int) -> None:
    """Read the tensors and write them to their places. Of several that fail it is the first whose error is raised, once no
    thread is at work any more."""

    def move(name: str, place: Place) -> None:
        _write_tensor(checkpoint.tensors[name].read(), place, specs, write)

    if threads == 1:  # here, and not in a thread of its own, because jax's settings may be this thread's alone
        for name, place in found.places.items():
            move(name, place)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(move, found.places.keys(), found.places.values()):
            pass


def _write_tensor(tensor: np.ndarray, place: Place, specs: Mapping[str, Param], write: Write) -> None:
    rule = place.rule
    parts = np.split(tensor, len(rule.paths), axis=fused_axis(rule, specs)) if len(rule.paths) > 1 else [tensor]
    for path, part in zip(rule.paths, parts, strict=True):
        write(path, place.layer, part, rule.inputs_first)


def _copy(place: np.ndarray, tensor: np.ndarray) -> None:
    if place.flags.c_contiguous:
        place[...] = tensor
        return
    # Rows a power of 2 apart would fall on each other in the cache: they are laid further apart before they are transposed.
    rows, columns = tensor.shape
    apart = np.empty((min(_STRIPE, rows), columns + _CACHE_LINE // place.itemsize), place.dtype)[:, :columns]
    for start in range(0, rows, _STRIPE):
        stripe = apart[: rows - start]
        stripe[...] = tensor[start : start + _STRIPE]
        place[start : start + _STRIPE] = stripe


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * jnp.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _check_tied(checkpoint: Checkpoint, found: Match) -> None:
    """A tensor that the config ties to another must be equal to it: else one of them would be lost."""
    for name, of in found.tied.items():
        first, second = (checkpoint.tensors[which].read() for which in (name, of))
        if not np.array_equal(first.view(np.uint8), second.view(np.uint8)):
            raise InputError(
                f"{checkpoint.tensors[name].file} has {name} and {of}, which its config.json ties, with different values: "
                "set tie_word_embeddings to false there to keep both"
            )


def _report(checkpoint: Checkpoint, model: Model, dropped: list[str], new: list[str]) -> None:
    head = model.head or BASE
    if dropped:
        _log.warning("%s: left out %s, which the head %r has no use for", checkpoint.path, ", ".join(dropped), head)
    if new:
        _log.warning("%s: the head %r is new, with random values: train it before use", checkpoint.path, head)
