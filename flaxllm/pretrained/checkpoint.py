"""A checkpoint as data: its config and its tensors by the names it has for them, opened without reading any of them.

The order in which a folder's weights are looked for is that of `open_checkpoint`; each file format has a reader of its
own that gives `Tensor`s.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flaxllm.data.hub import resolve
from flaxllm.data.json_file import brief, read_object
from flaxllm.errors import InputError
from flaxllm.pretrained.safetensors_file import Pending, read_safetensors, write_safetensors
from flaxllm.pretrained.tensor import Tensor

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_WEIGHTS, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MAX_SHARD_BYTES = 5 * 10**9

# Those of the second kind are fetched from the hub only where there are none of the first, as many models have both.
_WANTED = (CONFIG, "model*.safetensors", INDEX)
_WANTED_TORCH = (CONFIG, "pytorch_model*.bin", TORCH_INDEX)

_INDEX_SUFFIX = ".index.json"
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
_WRITTEN = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_PARTIAL = ".partial"


class Checkpoint(NamedTuple):
    path: Path  # the folder, or the .gguf file
    config: dict[str, Any]  # the content of config.json
    tensors: dict[str, Tensor]  # by the checkpoint's own names, in the order of its files


def open_checkpoint(path_or_id: str | Path) -> Checkpoint:
    """What a checkpoint holds. The tensors are not read until their `read` is called.

    `path_or_id` is a folder, a file in it (.safetensors, .bin, the index of a sharded one), a .gguf file, or the id of a
    model on the hub ("org/name", and a revision after an "@"). In a folder the weights are the first there is of
    model.safetensors, its index, a lone *.safetensors, a lone *.gguf, pytorch_model.bin, its index.

    Raises:
      InputError: there is no such checkpoint, or it is not whole, or a file is not what its format asks for. One sentence
        that names the file, and the tensor where it is one tensor's fault.
    """
    path = resolve(path_or_id, _WANTED)
    if path.is_dir():
        names = _listing(path)
        if not any(name.endswith((".safetensors", ".gguf", INDEX)) for name in names):
            path = resolve(path_or_id, _WANTED_TORCH)
            names = _listing(path)
        path = path / _weights_among(names, path)
    if path.suffix == ".gguf":
        from flaxllm.pretrained.gguf_file import open_gguf

        return open_gguf(path)
    tensors = _read_index(path) if path.name.endswith(_INDEX_SUFFIX) else _read_file(path)
    config = path.parent / CONFIG
    if not config.exists():
        raise InputError(f"{path.parent} has no {CONFIG}, which says what model the weights are of: put it beside them")
    return Checkpoint(path.parent, read_object(config), tensors)


def write_checkpoint(
    directory: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Pending],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write config.json and model.safetensors (or its shards, none larger than asked unless by one tensor, and an index).

    `tensors` are (shape, dtype, read) by name; each is read when it is written, and one at a time. The new files get
    their names only when all of them are on the disk; those of a checkpoint that was there before go then, and not
    earlier, so that `read` may read from it.

    Raises:
      InputError: the folder cannot be written, a tensor is not what its shape and dtype say, or from `read`.
    """
    directory = Path(directory)
    shards = _shards(tensors, max_shard_bytes)
    texts = {CONFIG: dict(config)} | ({INDEX: _index(shards)} if len(shards) > 1 else {})
    texts = {name: json.dumps(content, indent=2) + "\n" for name, content in texts.items()}
    # The last name of all is that by which readers find the others.
    names = [*shards, CONFIG, INDEX] if len(shards) > 1 else [CONFIG, WEIGHTS]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            for name, part in shards.items():
                write_safetensors(_partial(directory, name), part, {"format": "pt"})
            for name, text in texts.items():
                _partial(directory, name).write_text(text, encoding="utf-8")
            _put_in_place(directory, names)
        finally:
            for name in names:
                _partial(directory, name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{directory} cannot be written ({error.strerror}): check the folder and its disk") from error


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): check the folder") from error


def _weights_among(names: list[str], folder: Path) -> str:
    """The name of the file through which to read the weights of a folder that holds `names`."""
    safetensors, gguf = ([name for name in names if name.endswith(suffix)] for suffix in (".safetensors", ".gguf"))
    lone = [name for name in safetensors if not _SHARD.fullmatch(name)]
    candidates = [WEIGHTS, INDEX]
    if len(safetensors) == 1:
        candidates += lone
    if not safetensors and len(gguf) == 1:
        candidates += gguf
    found = next((name for name in [*candidates, TORCH_WEIGHTS, TORCH_INDEX] if name in names), None)
    if found is None and safetensors and not lone:
        raise InputError(f"{folder} holds {brief(safetensors)} but no {INDEX}, which says what is in which: fetch it too")
    if found is None and (safetensors or gguf):
        raise InputError(f"{folder} holds {brief(safetensors or gguf)}: name the file to open")
    if found is None:
        names = ", ".join((WEIGHTS, INDEX, "a .gguf file", TORCH_WEIGHTS, TORCH_INDEX))
        raise InputError(f"{folder} holds no weights: expected one of {names}")
    return found


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".bin":
        from flaxllm.pretrained.torch_file import read_torch

        return read_torch(path)
    raise InputError(f"{path} is no checkpoint: expected a folder, or a file that ends in .safetensors, .gguf or .bin")


def _read_index(path: Path) -> dict[str, Tensor]:
    """The tensors of all the files that an index names."""
    where = _weight_map(path)
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(where.values())):
        if not (path.parent / file).exists():
            raise InputError(f"{path.parent} lacks {file}, which {path.name} names: fetch it too")
        for name, tensor in _read_file(path.parent / file).items():
            if name in tensors:
                raise InputError(
                    f"tensor {brief(name)} is in both {tensors[name].file} and {tensor.file}: fetch the two and their index again"
                )
            tensors[name] = tensor
    for name, file in where.items():
        if name not in tensors or tensors[name].file.name != file:
            raise InputError(f"{path.parent / file} lacks the tensor {brief(name)}, which {path.name} has there: fetch both")
    return tensors


def _weight_map(path: Path) -> dict[str, str]:
    """The file of each tensor, as an index says; none but those beside the index are accepted."""
    where = read_object(path).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise InputError(f"{path} has the weight_map {brief(where)}: expected the file of each tensor by its name")
    for name, file in where.items():
        beside = isinstance(file, str) and file.endswith((".safetensors", ".bin")) and Path(file).name == file
        if not beside or not file.isprintable():
            raise InputError(f"{path} has tensor {brief(name)} in {brief(file)}: expected a .safetensors or .bin file beside it")
    return where


def _shards(tensors: Mapping[str, Pending], max_bytes: int) -> dict[str, dict[str, Pending]]:
    """The tensors of each file by its name, filled in order."""
    parts: list[dict[str, Pending]] = [{}]
    room = max_bytes
    for name, pending in tensors.items():
        size = _size(pending)
        if parts[-1] and size > room:
            parts.append({})
            room = max_bytes
        parts[-1][name] = pending
        room -= size
    if len(parts) == 1:
        return {WEIGHTS: parts[0]}
    return {f"model-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, start=1)}


def _size(pending: Pending) -> int:
    shape, dtype, _ = pending
    return math.prod(shape) * dtype.itemsize


def _index(shards: Mapping[str, Mapping[str, Pending]]) -> dict[str, Any]:
    total = sum(_size(pending) for part in shards.values() for pending in part.values())
    weight_map = {name: file for file, part in shards.items() for name in part}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _partial(directory: Path, name: str) -> Path:
    """Where a file is while it is being written: under a name that no reader looks for."""
    return directory / f"{name}{_PARTIAL}"


def _put_in_place(directory: Path, names: list[str]) -> None:
    """Give the new files their names and remove the old ones'. Whenever it is stopped, no mix of the two can be opened."""
    for entry in (WEIGHTS, INDEX):
        (directory / entry).unlink(missing_ok=True)
    for name in names:
        _partial(directory, name).replace(directory / name)
    for name in os.listdir(directory):
        if _WRITTEN.fullmatch(name.removesuffix(_PARTIAL)) and name not in names:
            (directory / name).unlink()
