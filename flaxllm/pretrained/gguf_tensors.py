"""The tensors of a GGUF file: where they lie, and their values, dequantized where they are quantized."""

import math
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from flaxllm.data.gguf_metadata import Header, TensorInfo
from flaxllm.data.json_file import brief
from flaxllm.errors import InputError
from flaxllm.pretrained.byte_ranges import Stamp, fill, opened_again

_FLOATS = {
    GGMLQuantizationType.F16: np.dtype(np.float16),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
    GGMLQuantizationType.F32: np.dtype(np.float32),
    GGMLQuantizationType.F64: np.dtype(np.float64),
}
_ALIGNMENT = 32  # bytes, unless the metadata says otherwise
_MAX_DIMENSIONS = 4
_MAX_SIZE = 2**63
_CHUNK_BYTES = 2**18  # that are dequantized at a time


class Stored(NamedTuple):
    """Where a tensor lies. `shape` has its rows first."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    begin: int
    size: int  # in bytes

    @property
    def dtype(self) -> np.dtype:
        """That of its values: its own for floating-point numbers, and float32 for what is quantized."""
        return _FLOATS.get(self.kind, np.dtype(np.float32))


def layout(path: Path, header: Header, size: int) -> dict[str, Stored]:
    """The tensors of a file of `size` bytes by name.

    Raises:
      InputError: a tensor is there twice, reaches beyond the file or over another, or its format or sizes are not known.
    """
    alignment = header.metadata.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise InputError(f"{path} has general.alignment {brief(alignment)}: expected a power of 2")
    start = header.end + -header.end % alignment
    stored: dict[str, Stored] = {}
    for info in header.tensors:
        if info.name in stored:
            raise InputError(f"{path} holds the tensor {brief(info.name)} twice: fetch or write it again")
        stored[info.name] = _stored(path, info, start, size)
    at, before = start, "the header"
    for tensor in sorted(stored.values(), key=lambda tensor: tensor.begin):
        if tensor.begin < at:
            raise InputError(f"{path}: tensor {brief(tensor.name)} overlaps {before}: it is damaged, fetch it again")
        at, before = tensor.begin + tensor.size, f"tensor {brief(tensor.name)}"
    return stored


def read_tensor(path: Path, before: Stamp, tensor: Stored, order: np.ndarray | None = None) -> np.ndarray:
    """The values of a tensor, with its rows in this order.

    Raises:
      InputError: the file cannot be read, or is no longer the one that had this stamp.
    """
    array = np.empty(tensor.shape, tensor.dtype)
    with opened_again(path, before, tensor.name) as file:
        file.seek(tensor.begin)
        if tensor.kind in _FLOATS:
            fill(file, array, path)
        else:
            _dequantize(file, path, tensor, array.reshape(-1, tensor.shape[-1]))
    return array if order is None else array[order]


def _dequantize(file: FileIO, path: Path, tensor: Stored, rows: np.ndarray) -> None:
    """Fill the rows part by part, so that nothing else of the tensor's size is in memory."""
    row_bytes = tensor.size // len(rows)
    step = max(1, _CHUNK_BYTES // row_bytes)
    raw = np.empty((min(step, len(rows)), row_bytes), np.uint8)
    for start in range(0, len(rows), step):
        part = raw[: len(rows) - start]
        fill(file, part, path)
        rows[start : start + step] = dequantize(part, tensor.kind)


def _stored(path: Path, info: TensorInfo, start: int, file_size: int) -> Stored:
    """Where one tensor lies, checked by itself."""
    where = f"{path}: tensor {brief(info.name)}"
    kind = _kind(info.kind)
    if kind is None:
        raise InputError(f"{where} has the format number {info.kind}, which the gguf package cannot dequantize: use another file")
    elements, block_bytes = GGML_QUANT_SIZES[kind]
    fits = 1 <= len(info.sizes) <= _MAX_DIMENSIONS and 1 <= math.prod(info.sizes) < _MAX_SIZE
    if not fits or info.sizes[0] % elements:
        raise InputError(
            f"{where} has the sizes {brief(list(info.sizes))}: expected 1 to {_MAX_DIMENSIONS} whole numbers that memory "
            f"could hold, the first a multiple of {elements} ({kind.name})"
        )
    begin, size = start + info.offset, math.prod(info.sizes) // elements * block_bytes
    if begin + size > file_size:
        raise InputError(
            f"{where} ends at byte {begin + size}, but the file has {file_size}: it is cut short, fetch it again"
        )
    return Stored(info.name, tuple(reversed(info.sizes)), kind, begin, size)


@lru_cache
def _kind(number: int) -> GGMLQuantizationType | None:
    """The format of this number, if its values can be had."""
    try:
        kind = GGMLQuantizationType(number)
        if kind not in _FLOATS:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ValueError, NotImplementedError):
        return None
    return kind
