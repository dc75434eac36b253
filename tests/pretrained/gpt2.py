"""A tiny GPT-2 checkpoint written with the safetensors library, to be changed and loaded."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WIDTH, HEADS, HEAD_DIM, LAYERS, VOCAB, LENGTH = 8, 2, 4, 3, 20, 16
CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": VOCAB,
    "n_positions": LENGTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_embd": WIDTH,
    "resid_pdrop": 0.0,
    "attn_pdrop": 0.0,
}


def tensors(seed: int = 0, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Every tensor of the file, as transformers names and shapes them."""
    shapes = {"wte.weight": (VOCAB, WIDTH), "wpe.weight": (LENGTH, WIDTH), "ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    for i in range(LAYERS):
        for name, ins, outs in (("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4), ("mlp.c_proj", 4, 1)):
            shapes[f"h.{i}.{name}.weight"] = (ins * WIDTH, outs * WIDTH)
            shapes[f"h.{i}.{name}.bias"] = (outs * WIDTH,)
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{name}.weight": (WIDTH,), f"h.{i}.{name}.bias": (WIDTH,)}
    rng = np.random.default_rng(seed)
    return {f"transformer.{name}": rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write(folder: Path, changed: dict | None = None, without: tuple[str, ...] = (), **config: object) -> dict[str, np.ndarray]:
    """A checkpoint in `folder` with some tensors changed or added, some left out, and config keys set."""
    held = {name: array for name, array in (tensors() | (changed or {})).items() if name not in without}
    folder.mkdir(exist_ok=True)
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return held
