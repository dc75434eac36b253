"""One small model of each family, with no parameter at its usual start, and what it reads."""

from functools import cache

import jax
import numpy as np

from flaxllm.models import Model, build
from models.support import loud

VOCAB, ROWS, LENGTH, TARGET = 30, 2, 6, 5
_SIZES = dict(vocab_size=VOCAB, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=24)
MODELS = {
    "bert": build("bert", _SIZES | dict(max_len=16)),
    "gpt": build("gpt", _SIZES | dict(max_len=16)),
    "llama": build("llama", _SIZES | dict(num_kv_heads=1, attention_bias=True, attention_out_bias=True)),
    "t5": build("t5", _SIZES | dict(num_decoder_layers=3, num_buckets=8, max_distance=20)),
    "transformer": build("transformer", _SIZES | dict(attention_bias=True, output_bias=True)),
}
PAIRS = ("t5", "transformer")  # which read a source and a target
SUMS = ("gpt", "llama", "t5")  # whose residual stream no norm cuts


@cache
def parameters(name: str) -> dict:
    return loud(MODELS[name])


def model_and_params(name: str) -> tuple[Model, dict]:
    return MODELS[name], parameters(name)


def inputs(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {"tokens": rng.integers(0, VOCAB, (ROWS, LENGTH))}
    return made | {"decoder_tokens": rng.integers(0, VOCAB, (ROWS, TARGET))} if name in PAIRS else made


def stack(name: str) -> str:
    """Where in the taps' names the stack begins that writes."""
    return "decoder/" if name in PAIRS else ""


def in_float64(params: dict) -> dict:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def layer_norm(params: dict, x: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return params["scale"] * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) + params["bias"]


def rms_norm(params: dict, x: np.ndarray, eps: float) -> np.ndarray:
    return params["scale"] * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
