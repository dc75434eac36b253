"""The config.json of the Llama family: what is read of it, what is refused, and which kind is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import from_pretrained, nn
from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.models.llama import PRESETS, Config
from flaxllm.pretrained.checkpoint import open_checkpoint, write_checkpoint
from flaxllm.pretrained.config_file import Keys
from flaxllm.pretrained.llama import ARCHITECTURES, names, read_config, write_config
from flaxllm.pretrained.save import save_pretrained

TINY = dict(vocab_size=48, max_len=64, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=8, d_model=16, d_mlp=24)
BASE = {
    "model_type": "llama", "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
QWEN = BASE | {"model_type": "qwen2", "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 5}

KINDS = {
    "llama": dict(attention_bias=True, attention_out_bias=True, mlp_bias=True, tied=True),
    "mistral": dict(window=7),
    "qwen2": dict(attention_bias=True, window=7, windowed=(False, True, True, True)),
    "qwen3": dict(head_norm=True, window=7, windowed=(False, True)),
}


def read(values: dict, **changes) -> Config:
    return read_config(Keys(values | changes, "config.json"), ())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rope",
    [
        {},
        dict(rope_scaling="linear", rope_factor=3.0, rope_base=1e5),
        dict(rope_scaling="llama3", rope_factor=8.0, rope_original_len=32),
        dict(rope_scaling="yarn", rope_factor=2.0, rope_original_len=32, rope_fast_turns=32.0),
    ],
)
def test_what_is_written_is_read_again(kind, rope):
    config = Config(**TINY, **KINDS[kind], **rope, eos_token=(2, 3), pad_token=0, labels=("a", "b", "c"))
    written = write_config(config, "causal-lm")
    assert written["model_type"] == kind
    assert read(written) == config
    old = {name: value for name, value in written.items() if name != "rope_parameters"}
    assert read(old) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_written(preset):
    kind = {"l": "llama", "m": "mistral", "s": "llama"}.get(preset[0], preset[:5])
    assert write_config(PRESETS[preset], "causal-lm")["model_type"] == kind


def test_the_older_spellings_of_the_rotation_are_read():
    scaled = read(BASE, rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2})
    assert (scaled.rope_base, scaled.rope_scaling, scaled.rope_factor) == (500.0, "linear", 2.0)
    assert read(BASE).rope_base == 10_000.0
    both = read(BASE, rope_theta=1.5, rope_parameters={"rope_type": "default", "rope_theta": 7.0})
    assert (both.rope_base, both.rope_scaling) == (7.0, "none")


def test_original_lengths_come_from_the_scaling_or_from_beside_it():
    yarn = {"rope_type": "yarn", "factor": 2.0}
    assert read(BASE, rope_scaling=yarn).rope_original_len == 64
    assert read(BASE, rope_scaling=yarn | {"original_max_position_embeddings": 32}).rope_original_len == 32
    assert read(BASE, rope_scaling=yarn, original_max_position_embeddings=16).rope_original_len == 16
    assert (read(BASE, rope_scaling=yarn).rope_slow_turns, read(BASE, rope_scaling=yarn).rope_fast_turns) == (1.0, 32.0)


@pytest.mark.parametrize(
    ("change", "window", "windowed"),
    [
        ({}, 5, (True,)),
        ({"use_sliding_window": False}, None, (True,)),
        ({"sliding_window": None}, None, (True,)),
        ({"max_window_layers": 0}, 5, (True,)),
        ({"max_window_layers": 1}, 5, (False, True, True, True)),
        ({"max_window_layers": 28}, None, (True,)),
        ({"max_window_layers": -(10**30)}, 5, (True,)),
        ({"max_window_layers": 10**30}, None, (True,)),
        ({"layer_types": ["full_attention", "sliding_attention"] * 2}, 5, (False, True)),
    ],
)
def test_the_windows_of_qwen_are_read(change, window, windowed):
    config = read(QWEN | {"max_window_layers": 0} | change)
    assert (config.window, config.windowed) == (window, windowed)


def test_a_window_is_mistrals_own_unless_its_config_says_otherwise():
    mistral = BASE | {"model_type": "mistral", "num_key_value_heads": 4}
    assert read(mistral).window == 4096
    assert read(mistral, sliding_window=None).window is None
    assert read(BASE, sliding_window=5).window is None


def test_each_kind_has_its_own_biases_norms_and_defaults():
    wide = BASE | {"num_attention_heads": 32, "hidden_size": 128}
    llama, mistral, qwen2, qwen3 = (read(wide, model_type=kind) for kind in ("llama", "mistral", "qwen2", "qwen3"))
    assert not (llama.attention_bias or llama.attention_out_bias or llama.mlp_bias or llama.head_norm or llama.tied)
    assert (qwen2.attention_bias, qwen2.attention_out_bias, qwen2.head_norm) == (True, False, False)
    assert (qwen3.attention_bias, qwen3.head_norm, qwen3.head_dim) == (False, True, 128)
    assert (llama.head_dim, llama.num_kv_heads, llama.norm_eps, llama.activation) == (4, 32, 1e-6, "silu")
    assert (mistral.num_kv_heads, qwen2.num_kv_heads, read(wide, num_key_value_heads=None).num_kv_heads) == (8, 32, 32)
    assert (mistral.bos_token, mistral.eos_token, qwen2.bos_token) == (1, 2, None)
    assert read(BASE, attention_bias=True).attention_out_bias and not read(BASE, attention_bias=True).mlp_bias


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "config.json has no key 'hidden_size', which a llama needs"),
        ({"num_attention_heads": 3}, "hidden_size 16, which its num_attention_heads 3 does not divide"),
        ({"pretraining_tp": 2}, "pretraining_tp 2, which flaxllm does not compute: only 1"),
        ({"hidden_act": "relu6"}, "hidden_act 'relu6', which is not known: did you mean 'relu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5, which flaxllm does not compute: only 1.0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "the rope_scaling of config.json has rope_type 'dynamic', which"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "the rope_parameters of config.json has rope_type 'longrope', which"),
        ({"rope_scaling": {"type": "linear"}}, "the rope_scaling of config.json has no key 'factor'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "has no key 'low_freq_factor'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "has mscale, which flaxllm does not compute"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "has truncate False, which"),
        ({"rope_scaling": "linear"}, "has rope_scaling 'linear': expected one object with a rope_type"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "expected one object with a rope_type, for all layers"),
    ],
)
def test_what_is_not_computed_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        read(BASE | change)


@pytest.mark.parametrize("depth", [10**30, 10**9, 0, -3])
def test_a_depth_that_cannot_be_is_refused_before_its_layers_are_listed(depth):
    with pytest.raises(InputError, match=f"^config.json has num_hidden_layers {depth}: expected 1 to 10000"):
        read(QWEN, num_hidden_layers=depth)


@pytest.mark.parametrize(
    "types", [["full_attention"] * 3, ["full_attention", "chunked_attention"] * 2, "full_attention", [["full_attention"]] * 4]
)
def test_layer_types_that_are_not_known_are_refused(types):
    with pytest.raises(InputError, match="expected 'full_attention' or 'sliding_attention' for each of its 4 layers"):
        read(QWEN, layer_types=types)


@pytest.mark.parametrize(
    "fields",
    [
        dict(window=7, windowed=(False, True)),
        dict(attention_bias=True, mlp_bias=True),
        dict(attention_out_bias=True),
        dict(head_norm=True, mlp_bias=True),
        dict(head_norm=True, attention_bias=True),
        dict(attention_bias=True, attention_out_bias=True, window=7),
    ],
)
def test_a_model_that_no_checkpoint_can_hold_is_refused(fields):
    with pytest.raises(InputError, match="none of the checkpoints llama, mistral, qwen2, qwen3 can hold a model with"):
        write_config(Config(**TINY, **fields), "causal-lm")


def test_a_width_that_its_heads_do_not_divide_is_written_as_mistral():
    config = Config(**TINY | {"d_model": 18})
    assert write_config(config, "causal-lm")["model_type"] == "mistral"
    assert read(write_config(config, "causal-lm")) == config


def test_older_names_buffers_and_heads_of_a_checkpoint_are_known(tmp_path):
    """Llama's class for question answering calls the model "transformer"; files of 2023 hold the frequencies."""
    model = build("llama", TINY)
    params = model.init(jax.random.PRNGKey(0))
    save_pretrained(tmp_path / "new", model, params)
    saved = open_checkpoint(tmp_path / "new")
    old = {name.replace("model.", "transformer."): (t.shape, t.dtype, t.read) for name, t in saved.tensors.items()}
    frequencies = np.ones(4, np.float32)
    old["transformer.layers.1.self_attn.rotary_emb.inv_freq"] = ((4,), frequencies.dtype, lambda: frequencies)
    write_checkpoint(tmp_path / "old", saved.config, old)
    jax.tree.map(np.testing.assert_array_equal, from_pretrained(tmp_path / "old")[1], params)
    base, trunk = from_pretrained(tmp_path / "old", head="base")
    assert base.head is None and "head" not in trunk


def test_rules_name_every_parameter_once():
    for head in set(ARCHITECTURES.values()):
        for fields in KINDS.values():
            model = build("llama", {**TINY, **fields}, head)
            paths = [path for rule in names(model.config, head).rules for path in rule.paths]
            assert sorted(paths) == sorted(nn.flatten(model.param_specs()))


@pytest.mark.parity
@pytest.mark.parametrize("head", ["causal-lm", "question-answering"])
@pytest.mark.parametrize("rope", ["none", "linear", "llama3", "yarn"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_what_is_saved_and_computes_the_same(kind, rope, head, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the live comparison needs the [parity] extra")
    import torch

    fields = dict(rope_scaling=rope, rope_factor=2.0, rope_original_len=32) if rope != "none" else {}
    model = build("llama", {**TINY, **KINDS[kind], **fields, "init_stddev": 0.3}, head)
    params = model.init(jax.random.PRNGKey(0))
    save_pretrained(tmp_path, model, params)
    auto = {"causal-lm": "AutoModelForCausalLM", "question-answering": "AutoModelForQuestionAnswering"}[head]
    theirs = getattr(transformers, auto).from_pretrained(tmp_path, attn_implementation="eager").eval()
    tokens = np.random.default_rng(0).integers(0, 48, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens))
    output = model.apply(params, jnp.asarray(tokens))
    found = model.unembed(params, output.hidden) if head == "causal-lm" else output.logits[..., 0]
    expected = (expected.logits if head == "causal-lm" else expected.start_logits).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
