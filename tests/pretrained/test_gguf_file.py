import dataclasses
import json
import math
import os
import struct
import tracemalloc
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import real_weights
from flaxllm import from_pretrained, generate, load_tokenizer, nn
from flaxllm.errors import InputError
from flaxllm.pretrained.gguf_file import open_gguf
from pretrained.tiny_gguf import METADATA, TENSORS, tell, write_gguf

PARITY = Path(__file__).parents[1] / "parity" / "fixtures" / "llama"


@pytest.mark.parametrize(
    "case",
    ["llama", "llama_tied_one_key_head", "llama_biases_gelu_eps", "llama_wide_heads", "llama_linear_scaling", "qwen2_tied",
     "qwen3", "qwen3_biases_left_padding", "mistral_no_window"],
)  # fmt: skip
def test_a_gguf_gives_the_model_that_it_was_made_of(case, tmp_path):
    expected_model, expected = from_pretrained(PARITY / case)
    model, params = from_pretrained(write_gguf(PARITY / case, tmp_path / "a.gguf"))
    unsaid = dict(activation=expected_model.config.activation, norm_eps=expected_model.config.norm_eps)
    assert dataclasses.replace(model.config, **unsaid) == expected_model.config
    assert model.config.norm_eps == pytest.approx(expected_model.config.norm_eps, rel=1e-6)
    assert model.head == "causal-lm"
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F16, np.float16), (Kind.BF16, ml_dtypes.bfloat16), (Kind.F32, np.float32)])
def test_floating_point_tensors_keep_their_dtype(kind, dtype, tmp_path):
    tensors = open_gguf(write_gguf(PARITY / "qwen3", tmp_path / "a.gguf", kind)).tensors
    for name, original in load_file(PARITY / "qwen3" / "model.safetensors").items():
        wanted = dtype if original.ndim > 1 else np.float32
        read = tensors[name].read()
        assert tensors[name].dtype == read.dtype == wanted and tensors[name].shape == read.shape == original.shape
        np.testing.assert_array_equal(read, original.astype(wanted))


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory) -> Path:
    """A model whose rows hold whole blocks of every quantized format."""
    folder = tmp_path_factory.mktemp("wide")
    config = json.loads((PARITY / "llama" / "config.json").read_text()) | {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    rng = np.random.default_rng(0)
    layer = {name: (256, 256) for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.o_proj", "self_attn.q_proj")}
    layer |= {"self_attn.k_proj": (128, 256), "self_attn.v_proj": (128, 256), "input_layernorm": (256,), "post_attention_layernorm": (256,)}
    shapes = {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (48, 256), "model.norm.weight": (256,), "lm_head.weight": (48, 256)}
    save_file({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0"])
def test_quantized_tensors_are_what_the_gguf_package_makes_of_them(kind, wide_folder, tmp_path):
    quantize, dequantize = gguf.quants.quantize, gguf.quants.dequantize
    tensors = open_gguf(write_gguf(wide_folder, tmp_path / "a.gguf", Kind[kind])).tensors
    for name, original in load_file(wide_folder / "model.safetensors").items():
        expected = dequantize(quantize(original, Kind[kind]), Kind[kind]) if original.ndim > 1 else original
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name].read(), expected)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS"])
def test_formats_that_the_package_only_reads_are_read(kind, tmp_path):
    """No writer of them is at hand, but any bytes are a tensor; their scales are half-precision numbers, kept finite here."""
    elements, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    raw = np.random.default_rng(0).integers(0, 60, (6, 512 // elements * size), np.uint8)
    path = tmp_path / "a.gguf"
    data = tell(
        tensors={"token_embd.weight": (8, 3), "output.weight": (512, 6)}, kinds={"output.weight": Kind[kind].value}, rest=96
    )
    path.write_bytes(data + raw.tobytes())
    stored = open_gguf(path).tensors["lm_head.weight"]
    np.testing.assert_array_equal(stored.read(), gguf.quants.dequantize(raw, Kind[kind]))


def test_a_large_tensor_is_dequantized_in_parts(tmp_path):
    rows = np.random.default_rng(0).normal(size=(4000, 512)).astype(np.float32)
    quantized = gguf.quants.quantize(rows, Kind.Q8_0)
    data = tell(tensors={"token_embd.weight": (512, 4000)}, kinds={"token_embd.weight": Kind.Q8_0.value}, rest=0)
    (tmp_path / "a.gguf").write_bytes(data + quantized.tobytes())
    tensor = open_gguf(tmp_path / "a.gguf").tensors["model.embed_tokens.weight"]
    tracemalloc.start()
    read = tensor.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(read, gguf.quants.dequantize(quantized, Kind.Q8_0))
    assert peak < rows.nbytes + 2**22


def llama3_factors(head_dim: int, factor: float, base: float, original_len: int = 8192) -> np.ndarray:
    """As llama.cpp's converter writes them: by what each frequency is divided."""
    factors = []
    for i in range(head_dim // 2):
        wavelength = 2 * math.pi * base ** (2 * i / head_dim)
        smooth = min(max((original_len / wavelength - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama_3_is_found_in_its_factors(factor, wide_folder, tmp_path):
    factors = {"rope_freqs.weight": llama3_factors(64, factor, 10_000.0)}
    config = from_pretrained(write_gguf(wide_folder, tmp_path / "a.gguf", extra=factors))[0].config
    assert (config.rope_scaling, config.rope_factor, config.rope_original_len) == ("llama3", factor, 8192)
    assert (config.rope_slow_turns, config.rope_fast_turns) == (1.0, 4.0)


@pytest.mark.parametrize("factors", [llama3_factors(64, 8.0, 10_000.0, 4096), np.ones(31, np.float32), np.full(32, np.nan, np.float32)])
def test_factors_of_another_scaling_are_refused(factors, wide_folder, tmp_path):
    path = write_gguf(wide_folder, tmp_path / "a.gguf", extra={"rope_freqs.weight": factors})
    with pytest.raises(InputError, match="a tensor rope_freqs.weight that is not of Llama 3.1 to 3.3"):
        open_gguf(path)


def test_yarn_scaling_is_read(tmp_path):
    scaling = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.original_context_length": 8}
    (tmp_path / "a.gguf").write_bytes(tell({**METADATA, **scaling}))
    config = from_pretrained(tmp_path / "a.gguf")[0].config
    assert (config.rope_scaling, config.rope_factor, config.rope_original_len) == ("yarn", 4.0, 8)


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        from_pretrained(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def without(key: str) -> dict:
    return {name: value for name, value in METADATA.items() if name != key}


REFUSED = {
    "is damaged or cut short": b"",
    "is no GGUF file: it starts with b'PK": b"PK\x03\x04" + bytes(100),
    "is GGUF of version 1: expected 2 or 3": tell(version=1),
    "is GGUF of version 50331648: expected 2 or 3, little-endian": tell(version=3 << 24),
    "has no key 'general.architecture'": tell(without("general.architecture")),
    "the architecture 'gemma3', none of flaxllm's: expected one of: llama, qwen2, qwen3": tell(
        {**METADATA, "general.architecture": "gemma3"}
    ),
    "has no key 'llama.attention.head_count', which a llama needs": tell(without("llama.attention.head_count")),
    "has no key 'llama.attention.layer_norm_rms_epsilon'": tell(without("llama.attention.layer_norm_rms_epsilon")),
    "has llama.feed_forward_length 'many': expected a whole number": tell({**METADATA, "llama.feed_forward_length": "many"}),
    "has llama.block_count 'a list of 1': expected a whole number": tell({**METADATA, "llama.block_count": ["a"]}),
    "has llama.attention.head_count 0: expected 1 or more": tell({**METADATA, "llama.attention.head_count": 0}),
    "has llama.block_count 4000000000, but only 11 tensors": tell({**METADATA, "llama.block_count": 4_000_000_000}),
    "is one of 3 files of a model: merge them": tell({**METADATA, "split.count": 3}),
    "has general.alignment 24: expected a power of 2": tell({**METADATA, "general.alignment": 24}),
    "has llama.expert_count 8, which flaxllm does not compute: only 0": tell({**METADATA, "llama.expert_count": 8}),
    "has llama.rope.dimension_count 2, which flaxllm does not compute: only 4": tell({**METADATA, "llama.rope.dimension_count": 2}),
    "has 'llama.attention.sliding_window' 4096, which flaxllm does not compute": tell(
        {**METADATA, "llama.attention.sliding_window": 4096}
    ),
    "has 'llama.rope.scaling.alpha' 2.0, which flaxllm does not compute": tell({**METADATA, "llama.rope.scaling.alpha": 2.0}),
    "has llama.rope.scaling.type 'longrope', which flaxllm does not compute": tell({**METADATA, "llama.rope.scaling.type": "longrope"}),
    "holds no tensor token_embd.weight: it is no language model": tell(tensors={"output_norm.weight": (8,)}),
    "a.gguf has 'blk.0.ssm_a.weight', which": tell(tensors={**TENSORS, "blk.0.ssm_a.weight": (4,)}),
    "lacks 'model.layers.0.mlp.up_proj.weight'": tell(tensors={k: v for k, v in TENSORS.items() if "ffn_up" not in k}),
    "has model.norm.weight of shape [9]: expected [8]": tell(tensors={**TENSORS, "output_norm.weight": (9,)}),
    "tensor 'blk.0.attn_q.weight' has 6 rows: expected a multiple of 4, for 2 heads": tell(
        tensors={**TENSORS, "blk.0.attn_q.weight": (8, 6)}
    ),
    "tensor 'output_norm.weight' has the sizes [0]": tell(tensors={**TENSORS, "output_norm.weight": (0,)}),
    "tensor 'output_norm.weight' has the sizes [1, 1, 1, 1, 8]": tell(tensors={**TENSORS, "output_norm.weight": (1, 1, 1, 1, 8)}),
    "tensor 'token_embd.weight' has the sizes [9223372036854775807, 3]": tell(tensors={"token_embd.weight": (2**63 - 1, 3)}),
    "the first a multiple of 32 (Q8_0)": tell(kinds={"blk.0.ffn_up.weight": 8}),
    "tensor 'blk.0.ffn_up.weight' has the format number 15, which the gguf package cannot dequantize": tell(
        kinds={"blk.0.ffn_up.weight": 15}
    ),
    "tensor 'blk.0.ffn_up.weight' has the format number 999, which": tell(kinds={"blk.0.ffn_up.weight": 999}),
    "tensor 'blk.0.ffn_up.weight' overlaps tensor 'blk.0.ffn_gate.weight'": tell(offsets={"blk.0.ffn_up.weight": 1024}),
    "tensor 'blk.0.ffn_down.weight' ends at byte": tell(offsets={"blk.0.ffn_down.weight": 2**40}),
    "holds the tensor 'output_norm.weight' twice": tell(tensors=[*TENSORS.items(), ("output_norm.weight", (8,))]),
    "holds the tensor 'model.layers.0.mlp.up_proj.weight' under two names": tell(
        tensors={**TENSORS, "blk.00.ffn_up.weight": (8, 12)}
    ),
    "the key 'llama.block_count' is there twice": tell({**METADATA, "llama.block_counT": 1}).replace(b"counT", b"count"),
    "reaches beyond the end": tell()[:20] + struct.pack("<Q", 2**60) + tell()[28:],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_read_is_said_in_one_sentence(message, tmp_path):
    assert message in refusal(tmp_path / "a.gguf", REFUSED[message])


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(InputError, match="cannot be read"):
            open_gguf(path)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    whole = tell(rest=0) + bytes(sum((4 * math.prod(sizes) + 31) // 32 * 32 for sizes in TENSORS.values()))
    (tmp_path / "a.gguf").write_bytes(whole)
    from_pretrained(tmp_path / "a.gguf")
    for size in range(4, len(whole), 41):
        assert "cut short" in refusal(tmp_path / "a.gguf", whole[:size])


def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(tell())
    tensor = open_gguf(path).tensors["model.norm.weight"]
    tensor.read()
    os.utime(path, ns=(0, 0))
    with pytest.raises(InputError, match="was changed after it was opened, before its tensor 'output_norm.weight' was read"):
        tensor.read()


EXTREMES = [0, 1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63, 2**64 - 1]
SOUND = tell({**METADATA, "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0})
HEADER = len(SOUND) - 4096


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, HEADER),
            st.one_of(
                st.sampled_from([struct.pack("<Q", n) for n in EXTREMES] + [struct.pack("<Q", n)[:4] for n in EXTREMES]),
                st.binary(min_size=1, max_size=8),
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    size=st.one_of(st.just(len(SOUND)), st.integers(0, len(SOUND))),
)
def test_a_mutated_file_is_loaded_or_refused_and_asks_for_no_great_memory(changes, size, tmp_path_factory):
    data = bytearray(SOUND)
    for at, new in changes:
        data[at : at + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(data[:size])
    tracemalloc.start()
    try:
        from_pretrained(path)
    except InputError as error:
        assert str(path) in str(error) or "the llama config" in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**24


@pytest.fixture(scope="module")
def smollm2() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "fixtures" / "smollm2.npz") as arrays:
        return dict(arrays)


def test_smollm2_reads_as_the_gguf_packages_own_reader_has_it():
    path = real_weights.smollm2_gguf()
    checkpoint = open_gguf(path)
    reader = gguf.GGUFReader(path)
    assert len(checkpoint.tensors) == len(reader.tensors) == 272
    theirs = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors[-30:]}
    for name, ours in {
        "output_norm.weight": "model.norm.weight",
        "blk.9.ffn_down.weight": "model.layers.9.mlp.down_proj.weight",
        "blk.9.attn_v.weight": "model.layers.9.self_attn.v_proj.weight",
    }.items():
        np.testing.assert_array_equal(checkpoint.tensors[ours].read(), theirs[name])


@pytest.mark.slow
def test_smollm2_has_the_next_token_of_transformers_and_says_paris(smollm2):
    model, params = from_pretrained(real_weights.smollm2_gguf())
    assert nn.count(model.param_specs()) == 134_515_008
    tokens = jnp.asarray(smollm2["tokens"])
    logits = jax.jit(lambda params: model.unembed(params, model.apply(params, tokens).hidden[:, -1])[0])(params)
    assert np.abs(logits[smollm2["kept"]] - smollm2["logits"]).max() <= 1e-4
    assert int(logits.argmax()) == smollm2["kept"][0]
    tokenizer = load_tokenizer(real_weights.smollm2_gguf())
    np.testing.assert_array_equal(tokenizer(str(smollm2["prompt"])).tokens, smollm2["tokens"])
    written = generate(model, params, tokens, max_new_tokens=6, temperature=0, tokenizer=tokenizer)
    assert str(smollm2["prompt"]) + written.texts[0] == str(smollm2["text"])
    assert " Paris." in str(smollm2["text"])
