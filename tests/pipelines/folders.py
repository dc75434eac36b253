"""Checkpoint folders of tiny models with random weights and tokenizers of their own, as people have them."""

from pathlib import Path

import jax

from flaxllm.data.tokenizer_makers import byte_level
from flaxllm.models import build
from flaxllm.pretrained import save_pretrained

_SIZES = dict(vocab_size=257, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=32)


def gpt_folder(folder: Path) -> Path:
    model = build("gpt", _SIZES | dict(max_len=128, bos_token=256, eos_token=256, init_stddev=0.4))
    save_pretrained(folder, model, model.init(jax.random.PRNGKey(0)), byte_level())
    return folder


def t5_folder(folder: Path) -> Path:
    model = build("t5", _SIZES | dict(eos_token=256, init_factor=3.0))
    save_pretrained(folder, model, model.init(jax.random.PRNGKey(0)), byte_level())
    return folder
