"""Ranges of a file read straight into arrays. Files of weights are not mapped into memory, where each page that was read
would count as the process's own beside the arrays made of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import numpy as np

from flaxllm.data.json_file import brief
from flaxllm.errors import InputError

Stamp = tuple[int, int]


@contextmanager
def opened(path: Path) -> Iterator[FileIO]:
    """The file, to be read.

    Raises:
      InputError: it cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the file") from error


@contextmanager
def opened_again(path: Path, before: Stamp, tensor: str) -> Iterator[FileIO]:
    """The file, to read a tensor of it.

    Raises:
      InputError: it cannot be read, or is no longer the one that had this stamp.
    """
    with opened(path) as file:
        if stamp(file) != before:
            raise InputError(f"{path} was changed after it was opened, before its tensor {brief(tensor)} was read: load it again")
        yield file


def stamp(file: FileIO) -> Stamp:
    """Size in bytes and time of the last change in ns: what tells that a file is still the one it was."""
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_mtime_ns


def fill(file: FileIO, array: np.ndarray, path: Path) -> None:
    """Fill a contiguous array with the bytes that come next.

    Raises:
      InputError: the file has fewer.
    """
    rest = memoryview(bytes_of(array))
    while len(rest):  # a system reads 2 GiB at most in one call
        count = file.readinto(rest)
        if not count:
            raise InputError(f"{path} ended while it was read: leave it alone while it loads, and load it again")
        rest = rest[count:]


def bytes_of(array: np.ndarray) -> np.ndarray:
    """The same memory; ml_dtypes' arrays do not give it to others by themselves."""
    return array.reshape(-1).view(np.uint8)
