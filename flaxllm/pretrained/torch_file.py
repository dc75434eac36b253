"""Weights that torch saved (`.bin`), through torch's own weights-only loader, which runs nothing that a file holds."""

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flaxllm.data.json_file import brief
from flaxllm.errors import InputError
from flaxllm.pretrained.safetensors_file import DTYPES
from flaxllm.pretrained.tensor import Tensor


def read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name, in its order. Their bytes stay on the disk until they are read.

    Files from before torch 1.6 are in memory as a whole.

    Raises:
      InputError: torch is not installed, or the file is damaged or holds anything but tensors by name.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path} can be read by torch only, which is not installed: install it, or save the checkpoint as safetensors "
            "where it is"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever torch and its unpickler find wrong; their advice is to run the file's code
        raise InputError(
            f"{path} is damaged or holds more than tensors ({type(error).__name__}): fetch it again, or use safetensors"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}: expected tensors by name")
    return {name: _tensor(path, name, value) for name, value in state.items()}


def _tensor(path: Path, name: Any, value: Any) -> Tensor:
    import torch

    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise InputError(f"{path} holds a {type(value).__name__} under {brief(name)}: expected tensors by name")
    value = value.detach()
    kind = str(value.dtype).removeprefix("torch.")
    dtype = next((dtype for dtype in DTYPES.values() if dtype.name == kind), None)
    if dtype is None or value.layout != torch.strided or value.is_meta:
        form = "without values, on torch's device meta" if value.is_meta else f"{value.layout} of {kind}"
        raise InputError(f"{path}: tensor {brief(name)} is {form}: expected a dense one of a known dtype")
    return Tensor(tuple(value.shape), dtype, path, partial(_read, value, dtype))


def _read(value: Any, dtype: np.dtype) -> np.ndarray:
    import torch

    value = value.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    data = value.reshape(-1).view(torch.uint8).numpy()  # as bytes, because numpy lacks some of the dtypes
    return data.view(dtype).reshape(tuple(value.shape))
