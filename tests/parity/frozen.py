"""What is written in a reference's folder, and how it is read with numpy alone."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Tensors = dict[str, np.ndarray]

ADAMW = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-6)
WEIGHT_DECAY = 0.01

# Where a gradient is 0 (a key's bias), AdamW makes `lr * error / eps` of its rounding error, which grows with the loss.
LOSS_SCALE = 0.03


def read_arrays(folder: Path) -> dict[str, Tensors]:
    """The groups of reference.npz, each by name."""
    groups: dict[str, Tensors] = {}
    with np.load(folder / "reference.npz") as arrays:
        for path in arrays.files:
            group, name = path.split("/", 1)
            groups.setdefault(group, {})[name] = arrays[path]
    return groups


def at_kept(output: Any, name: str, kept: Tensors) -> Any:
    """An output, numpy's or jax's, at the positions that are kept; one for a whole sequence has none, and is kept whole."""
    return output[tuple(kept["source" if name == "encoded" else "target"])] if output.ndim == 3 else output


def pack_step(weights: Tensors, gradients: Tensors, stepped: Tensors) -> Tensors:
    """By how many units in the last place torch's step lies from the formula's: small numbers, which compress well."""
    apart = [x.view(np.int32) - _first_step(weights[name], gradients[name]).view(np.int32) for name, x in stepped.items()]
    return {"names": np.array(list(stepped)), "apart": np.concatenate([x.ravel() for x in apart])}


def read_stepped(folder: Path, packed: Tensors) -> Tensors:
    """torch's parameters after the step, bit by bit: all that it trains."""
    weights, gradients = (load_file(folder / name) for name in ("model.safetensors", "gradients.safetensors"))
    firsts = {str(name): _first_step(weights[name], gradients[name]) for name in packed["names"]}
    parts = np.split(packed["apart"], np.cumsum([x.size for x in firsts.values()])[:-1])
    return {
        name: (first.view(np.int32) + part.reshape(first.shape)).view(np.float32)
        for (name, first), part in zip(firsts.items(), parts, strict=True)
    }


def _first_step(weights: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Loshchilov and Hutter 2019, algorithm 2, at t = 1: both moments are the gradient's own, so their factors go out."""
    weights, gradients = weights.astype(np.float64), gradients.astype(np.float64)
    kept = 1.0 - ADAMW["lr"] * WEIGHT_DECAY * (weights.ndim > 1)
    return (weights * kept - ADAMW["lr"] * gradients / (np.abs(gradients) + ADAMW["eps"])).astype(np.float32)
