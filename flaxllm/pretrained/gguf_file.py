"""A GGUF file of the Llama family as if it were a Hugging Face checkpoint: a config.json out of its metadata, and its
tensors by Hugging Face's names and in its layout, dequantized where they are quantized.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flaxllm.data.gguf_metadata import read_header
from flaxllm.data.json_file import brief
from flaxllm.errors import InputError, did_you_mean
from flaxllm.nn.rotary import RotaryScaling, rotary_frequencies
from flaxllm.pretrained.byte_ranges import opened, stamp
from flaxllm.pretrained.checkpoint import Checkpoint
from flaxllm.pretrained.config_file import Keys
from flaxllm.pretrained.gguf_tensors import Stored, layout, read_tensor
from flaxllm.pretrained.tensor import Tensor

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TENSOR_NAME = re.compile(r"(?:blk\.(\d{1,6})\.)?(\w+)\.(weight|bias)")
_EMBEDDING, _OUTPUT, _ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"

# What is known of how attention and its rotation go; anything else that is said of them is refused.
_ATTENTION_KEYS = {
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
}  # fmt: skip
# What may be said besides, each with the one value that changes nothing here.
_NEUTRAL = {
    "attention.causal": True,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    "expert_count": 0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
}
# Of Llama 3.1 to 3.3, whose files hold the factors of all frequencies in place of these numbers.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def open_gguf(path: Path) -> Checkpoint:
    """The checkpoint in a GGUF file, of the architecture llama (with SmolLM2, and Mistral without its window, which such
    files do not hold), qwen2 or qwen3.

    F16, BF16, F32 and F64 keep their dtype, and what the gguf package dequantizes becomes float32.

    Raises:
      InputError: the file is no GGUF, is damaged or cut short, or holds a model, a format or a size that is not known
        here. The tensors' `read` raises it where the file has changed since.
    """
    with opened(path) as file:
        before = stamp(file)
    header = read_header(path)
    keys, architecture = _keys(path, header.metadata)
    stored = layout(path, header, size=before[0])
    read = partial(read_tensor, path, before)
    config = _config(keys, architecture, stored, read)
    paired = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors: dict[str, Tensor] = {}
    for tensor in stored.values():
        if tensor.name == _ROPE_FACTORS:
            continue
        name, order = _their_name(tensor.name), _order(path, tensor, paired if architecture == "llama" else {})
        if name in tensors:
            raise InputError(f"{path} holds the tensor {brief(name)} under two names: fetch or write it again")
        tensors[name] = Tensor(tensor.shape, tensor.dtype, path, partial(read, tensor, order))
    return Checkpoint(path, config, tensors)


def _keys(path: Path, metadata: Mapping[str, Any]) -> tuple[Keys, str]:
    """The metadata, as keys to be read one by one, and the architecture that it names."""
    values = {key: f"a list of {len(value)}" if isinstance(value, list) else value for key, value in metadata.items()}
    architecture = Keys(values, str(path)).get("general.architecture")
    if architecture not in ARCHITECTURES:
        known = did_you_mean(architecture, ARCHITECTURES)
        raise InputError(f"{path} holds a model of the architecture {brief(architecture)}, none of flaxllm's: {known}")
    keys = Keys({**values, "model_type": architecture}, str(path))
    if keys.integer("split.count", 1) > 1:
        raise InputError(f"{path} is one of {keys.integer('split.count')} files of a model: merge them into one first")
    return keys, architecture


def _their_name(name: str) -> str:
    """Hugging Face's name; one that is not known is left as it is."""
    found = _TENSOR_NAME.fullmatch(name)
    if not found or found[2] not in _NAMES:
        return name
    layer = "" if found[1] is None else f"model.layers.{int(found[1])}."
    return f"{layer}{_NAMES[found[2]]}.{found[3]}"


def _order(path: Path, tensor: Stored, paired: Mapping[str, int]) -> np.ndarray | None:
    """Where Hugging Face's rows lie. A file of the architecture llama has the two dimensions that rotate as a pair side by
    side in each head of `attn_q` and `attn_k`, as Su et al. have them; `paired` has the number of heads of each."""
    found = _TENSOR_NAME.fullmatch(tensor.name)
    heads = paired.get(found[2]) if found else None
    if heads is None:
        return None
    rows = tensor.shape[0]
    if rows % (2 * heads):
        raise InputError(
            f"{path}: tensor {brief(tensor.name)} has {rows} rows: expected a multiple of {2 * heads}, for {heads} heads"
        )
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _config(
    keys: Keys, architecture: str, stored: Mapping[str, Stored], read: Callable[[Stored], np.ndarray]
) -> dict[str, Any]:
    """What a config.json of this model says."""
    own = f"{architecture}."
    _check_known(keys, own)
    if _EMBEDDING not in stored:
        raise InputError(f"{keys.file} holds no tensor {_EMBEDDING}: it is no language model, or not whole")
    num_layers, num_heads = (_count(keys, own + name) for name in ("block_count", "attention.head_count"))
    if num_layers > len(stored):
        raise InputError(f"{keys.file} has {own}block_count {num_layers}, but only {len(stored)} tensors: fetch it again")
    width = _count(keys, own + "embedding_length")
    head_dim = keys.integer(own + "attention.key_length", width // num_heads)
    keys.only(own + "attention.value_length", head_dim)
    keys.only(own + "rope.dimension_count", head_dim)
    return {
        "model_type": architecture,
        "architectures": [ARCHITECTURES[architecture]],
        "vocab_size": stored[_EMBEDDING].shape[0],
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": _count(keys, own + "attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "hidden_size": width,
        "intermediate_size": keys.integer(own + "feed_forward_length"),
        "max_position_embeddings": keys.integer(own + "context_length"),
        "rms_norm_eps": keys.number(own + "attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope_parameters(keys, own, stored, head_dim, read),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_output.bias" in stored,
        "mlp_bias": "blk.0.ffn_down.bias" in stored,
        "tie_word_embeddings": _OUTPUT not in stored,
        "bos_token_id": keys.integer("tokenizer.ggml.bos_token_id", None),
        "eos_token_id": keys.integer("tokenizer.ggml.eos_token_id", None),
        "pad_token_id": keys.integer("tokenizer.ggml.padding_token_id", None),
    }


def _check_known(keys: Keys, own: str) -> None:
    for name, neutral in _NEUTRAL.items():
        keys.only(own + name, neutral)
    for key, value in keys.values.items():
        name = key.removeprefix(own)
        if key.startswith((f"{own}attention.", f"{own}rope.")) and name not in _ATTENTION_KEYS | _NEUTRAL.keys() and value:
            raise InputError(f"{keys.file} has {brief(key)} {brief(value)}, which flaxllm does not compute: use another file")


def _count(keys: Keys, name: str, *default: int) -> int:
    number = keys.integer(name, *default)
    if number < 1:
        raise InputError(f"{keys.file} has {name} {number}: expected 1 or more")
    return number


def _rope_parameters(
    keys: Keys, own: str, stored: Mapping[str, Stored], head_dim: int, read: Callable[[Stored], np.ndarray]
) -> dict[str, Any]:
    base = keys.number(own + "rope.freq_base", 10_000.0)
    kind, factor = keys.get(own + "rope.scaling.type", "none"), keys.number(own + "rope.scaling.factor", 1.0)
    if kind == "none" and keys.number(own + "rope.scale_linear", 1.0) not in (0.0, 1.0):
        kind, factor = "linear", keys.number(own + "rope.scale_linear")
    if kind not in ("none", "linear", "yarn") or (kind != "none" and _ROPE_FACTORS in stored):
        raise InputError(
            f"{keys.file} has {own}rope.scaling.type {brief(kind)}, which flaxllm does not compute: only 'none', or 'linear' "
            f"and 'yarn' without a tensor {_ROPE_FACTORS} can be loaded"
        )
    scaling = {} if kind == "none" else {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = _count(keys, own + "rope.scaling.original_context_length")
    if _ROPE_FACTORS in stored:
        scaling = _llama3_scaling(keys.file, base, head_dim, read(stored[_ROPE_FACTORS]))
    return {"rope_type": "default", "rope_theta": base, **scaling}


def _llama3_scaling(file: str, base: float, head_dim: int, factors: np.ndarray) -> dict[str, Any]:
    """The scaling of Llama 3.1 and later that divides the frequencies by these factors."""
    largest = float(factors.max())
    if base > 1.0 and math.isfinite(largest) and largest >= 1.0 and factors.shape == (head_dim / 2,):
        slow, fast, original_len = _LLAMA3.values()
        scaled = rotary_frequencies(head_dim, base, RotaryScaling("llama3", largest, int(original_len), slow, fast))
        if np.allclose(rotary_frequencies(head_dim, base), scaled * factors, rtol=1e-5, atol=0.0):
            return {"rope_type": "llama3", "factor": largest, **_LLAMA3}
    raise InputError(f"{file} has a tensor {_ROPE_FACTORS} that is not of Llama 3.1 to 3.3, the only ones that flaxllm computes")
