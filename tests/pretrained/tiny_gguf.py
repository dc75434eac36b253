"""Small GGUF files for the tests: sound ones by the gguf package's own writer, and any that can be told by bytes."""

import json
import struct
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from safetensors.numpy import load_file

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(
    folder: Path, path: Path, kind: GGMLQuantizationType = GGMLQuantizationType.F32, extra: dict[str, np.ndarray] | None = None
) -> Path:
    """A Hugging Face folder as a GGUF file, made as llama.cpp's converter makes it; matrices get the format `kind`."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    architecture = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_rope_dimension_count(config["head_dim"])
    if config["rope_parameters"]["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(config["rope_parameters"]["rope_type"]))
        writer.add_rope_scaling_factor(config["rope_parameters"]["factor"])
    writer.add_token_list([f"token {i}" for i in range(config["vocab_size"])])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, tensor in tensors.items():
        stem, end = name.rsplit(".", 1)
        layer, stem = (f"blk.{stem.split('.')[2]}.", stem.split(".", 3)[3]) if ".layers." in stem else ("", stem)
        if architecture == "llama" and NAMES[stem] in heads:
            tensor = permuted(tensor, heads[NAMES[stem]])
        _add(writer, f"{layer}{NAMES[stem]}.{end}", tensor, kind if tensor.ndim > 1 else GGMLQuantizationType.F32)
    for name, tensor in (extra or {}).items():
        _add(writer, name, tensor, GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, tensor: np.ndarray, kind: GGMLQuantizationType) -> None:
    writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)


def permuted(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Each head's rows so that those which rotate as a pair, half a head apart before, are neighbours."""
    rows = len(tensor) // heads
    order = [head * rows + pair + side * rows // 2 for head in range(heads) for pair in range(rows // 2) for side in range(2)]
    return tensor[order]


# What a model of two tiny layers says; strings, whole numbers and floats are written as such.
METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 16,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 12,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}
TENSORS = {
    "token_embd.weight": (8, 3), "output_norm.weight": (8,), "blk.0.attn_norm.weight": (8,), "blk.0.ffn_norm.weight": (8,),
    "blk.0.attn_q.weight": (8, 8), "blk.0.attn_k.weight": (8, 4), "blk.0.attn_v.weight": (8, 4), "blk.0.attn_output.weight": (8, 8),
    "blk.0.ffn_gate.weight": (8, 12), "blk.0.ffn_up.weight": (8, 12), "blk.0.ffn_down.weight": (12, 8),
}  # fmt: skip


def tell(
    metadata: dict = METADATA,
    tensors: dict[str, tuple[int, ...]] | list = TENSORS,
    offsets: dict[str, int] | None = None,
    kinds: dict[str, int] | None = None,
    magic: bytes = b"GGUF",
    version: int = 3,
    rest: int = 4096,
) -> bytes:
    """The bytes of a GGUF file that says this, with `rest` zeros after its header."""
    listed = list(tensors.items()) if isinstance(tensors, dict) else tensors
    parts = [magic, struct.pack("<IQQ", version, len(listed), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(value)]
    offset = 0
    for name, sizes in listed:
        where, kind = (offsets or {}).get(name, offset), (kinds or {}).get(name, 0)
        parts += [_string(name), struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, where)]
        offset += (4 * int(np.prod(sizes)) + 31) // 32 * 32
    header = b"".join(parts)
    return header + bytes(-len(header) % 32 + rest)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: str | int | float | list[str]) -> bytes:
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
