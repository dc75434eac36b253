"""The safetensors format: a file is read by the ranges of its checked header, and written one tensor after the other.

A file is the length of its header (8 bytes, little-endian), the header (a JSON object with the dtype, the shape and the
range of bytes of each tensor), and the tensors' bytes without a gap (huggingface/safetensors on GitHub, "Format").

Its own library is not used, because by default it maps files into memory (peak memory is then twice the weights), has no
float8 for numpy, and writes only what is in memory as a whole.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from flaxllm.data.json_file import brief, parse_object
from flaxllm.errors import InputError
from flaxllm.pretrained.byte_ranges import Stamp, bytes_of, fill, opened, opened_again, stamp
from flaxllm.pretrained.tensor import Tensor

# Whole bytes an element only: numpy has no array of what is packed tighter (F4, F6_E2M3, F6_E3M2).
DTYPES: dict[str, np.dtype] = {
    code: np.dtype(dtype)
    for code, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "U16": np.uint16,
        "I16": np.int16,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "U32": np.uint32,
        "I32": np.int32,
        "F32": np.float32,
        "U64": np.uint64,
        "I64": np.int64,
        "F64": np.float64,
        "C64": np.complex64,
    }.items()
}

# What is to be written, as (shape, dtype, read); `read` is called once, when its turn comes.
Pending = tuple[tuple[int, ...], np.dtype, Callable[[], np.ndarray]]

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 64  # numpy's
_MAX_SIZE = 2**63
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class _Entry(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    begin: int  # in bytes after the header
    end: int


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in the order in which they lie in it; none is read yet.

    Raises:
      InputError: the file cannot be read, is cut short or goes on after its tensors, or its header is not what the
        format asks for. The tensors' `read` raises it where the file has changed since, or holds what its dtype cannot.
    """
    with opened(path) as file:
        now = stamp(file)
        header, start = _read_header(file, path)
    entries = [_entry(path, name, fields) for name, fields in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_layout(path, entries, size=now[0] - start)
    return {
        entry.name: Tensor(entry.shape, entry.dtype, path, partial(_read, path, entry, start, now)) for entry in entries
    }


def write_safetensors(path: Path, tensors: Mapping[str, Pending], metadata: Mapping[str, str]) -> None:
    """Write a file, with one tensor at a time in memory. It is on the disk when this returns.

    Wider dtypes come first, so that every tensor begins at a multiple of its element's size; otherwise the order is kept.

    Raises:
      InputError: a dtype or a name is not the format's, an array is not as its (shape, dtype) says, or from `read`.
      OSError: the file cannot be written.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1][1].itemsize)
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    end = 0
    for name, (shape, dtype, _) in ordered:
        if dtype not in _CODES or name == _METADATA:
            raise InputError(f"{path} cannot hold a tensor {brief(name)} of {dtype}: expected one of {', '.join(DTYPES)}")
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # the tensors begin at a multiple of the widest element's size
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name, pending in ordered:
            file.write(_checked_bytes(path, name, pending))
        file.flush()
        os.fsync(file.fileno())


def _checked_bytes(path: Path, name: str, pending: Pending) -> memoryview:
    shape, dtype, read = pending
    array = np.asarray(read())
    if array.shape != tuple(shape) or array.dtype != dtype:
        raise InputError(
            f"{path}: tensor {brief(name)} came as {array.dtype}{list(array.shape)}: expected {dtype}{list(shape)}"
        )
    return memoryview(bytes_of(np.ascontiguousarray(array)))


def _read(path: Path, entry: _Entry, start: int, before: Stamp) -> np.ndarray:
    with opened_again(path, before, entry.name) as file:
        file.seek(start + entry.begin)
        array = np.empty(entry.shape, entry.dtype)
        fill(file, array, path)
    if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
        raise InputError(f"{path}: tensor {brief(entry.name)} is of booleans, but has bytes other than 0 and 1: fetch it again")
    return array


def _read_header(file: FileIO, path: Path) -> tuple[dict[str, Any], int]:
    """The header, without its metadata, and the byte at which it ends."""
    size = stamp(file)[0]
    if size < _LENGTH_BYTES:
        raise InputError(f"{path} has {size} bytes, too few for safetensors: fetch it again")
    first = np.empty(_LENGTH_BYTES, np.uint8)
    fill(file, first, path)
    if first.tobytes() == b"version ":
        raise InputError(f"{path} is a Git LFS pointer and not the weights: fetch them with `git lfs pull`")
    length = int.from_bytes(first.tobytes(), "little")
    if length > size - _LENGTH_BYTES:
        raise InputError(
            f"{path} says that its header has {length} bytes, but has {size} in all: it is cut short or not safetensors, "
            "fetch it again"
        )
    if length > _MAX_HEADER_BYTES:
        raise InputError(f"{path} has a header of {length} bytes: the format allows {_MAX_HEADER_BYTES} at most")
    text = np.empty(length, np.uint8)
    fill(file, text, path)
    header = parse_object(text.tobytes(), f"the header of {path}")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path} has the metadata {brief(metadata)}: expected strings by name")
    return header, _LENGTH_BYTES + length


def _entry(path: Path, name: str, fields: Any) -> _Entry:
    """What the header says of one tensor, checked by itself."""
    where = f"{path}: tensor {brief(name)}"
    if _HALF_PAIR.search(name):
        raise InputError(f"{where} has half of a surrogate pair in its name, which is no text: fetch the file again")
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise InputError(f"{where} is described by {brief(fields)}: expected its dtype, shape and data_offsets")
    code, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise InputError(f"{where} has the dtype {brief(code)}: expected one of {', '.join(DTYPES)}")
    dtype = DTYPES[code]
    if not _is_shape(shape, dtype.itemsize):
        raise InputError(
            f"{where} has the shape {brief(shape)}: expected at most {_MAX_DIMENSIONS} whole numbers that memory could hold"
        )
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(f"{where} has the data_offsets {brief(offsets)}: expected its first byte and the one after its last")
    begin, end = offsets
    size = math.prod(shape) * dtype.itemsize
    if size != end - begin:
        raise InputError(
            f"{where} is {code}{brief(shape)}, which takes {size} bytes, but its data_offsets {offsets} hold {end - begin}: the "
            "header is damaged, fetch the file again"
        )
    return _Entry(name, tuple(shape), dtype, begin, end)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < _MAX_SIZE for number in value)


def _is_shape(value: Any, itemsize: int) -> bool:
    """Whether numpy can have such an array: an empty one, too, is refused where its other dimensions are too large."""
    if not _are_counts(value) or len(value) > _MAX_DIMENSIONS:
        return False
    return math.prod(number for number in value if number) * itemsize < _MAX_SIZE


def _check_layout(path: Path, entries: list[_Entry], size: int) -> None:
    """The tensors' ranges, in order, must cover the `size` bytes that follow the header: no hole, nothing twice."""
    at, before = 0, "the header"
    for entry in entries:
        name = brief(entry.name)
        if entry.end > size:
            raise InputError(
                f"{path}: tensor {name} ends at byte {entry.end} after the header, but {size} bytes follow it: the file is "
                "cut short, fetch it again"
            )
        if entry.begin != at:
            how = "overlaps" if entry.begin < at else "leaves a hole after"
            raise InputError(
                f"{path}: tensor {name} {how} {before}, as it begins at byte {entry.begin} and not at {at}: the header is "
                "damaged, fetch the file again"
            )
        at, before = entry.end, f"tensor {name}"
    if at != size:
        raise InputError(f"{path} goes on for {size - at} bytes after {before}: it is damaged, fetch it again")
