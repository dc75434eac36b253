import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from flaxllm import nn
from flaxllm.data import byte_level, load_tokenizer
from flaxllm.errors import InputError
from flaxllm.models import FAMILIES, build
from flaxllm.pretrained import convert, from_pretrained, save_pretrained
from flaxllm.pretrained.families import FAMILIES as NAMED
from pretrained import gpt2

# Marian's form of the Transformer; what is not named is published as its config class has it.
MARIAN = dict(attention_bias=True, output_bias=True, interleaved_positions=False, norm_eps=1e-5, eos_token=0)
PUBLISHED = {"transformer": FAMILIES["transformer"].Config(**MARIAN)}


def same_bytes(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_load_then_save_gives_every_tensor_back_byte_for_byte(dtype, tmp_path):
    held = gpt2.write(tmp_path / "first", gpt2.tensors(dtype=dtype))
    save_pretrained(tmp_path / "second", *from_pretrained(tmp_path / "first"))
    assert same_bytes(load_file(tmp_path / "second" / "model.safetensors"), held)
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert {name: config[name] for name in gpt2.CONFIG} == gpt2.CONFIG
    assert config["dtype"] == np.dtype(dtype).name


def test_a_model_without_a_head_is_saved_without_the_prefix(tmp_path):
    held = gpt2.write(tmp_path / "first")
    save_pretrained(tmp_path / "second", *from_pretrained(tmp_path / "first", head="base"))
    assert set(load_file(tmp_path / "second" / "model.safetensors")) == {name.removeprefix("transformer.") for name in held}
    assert json.loads((tmp_path / "second" / "config.json").read_text())["architectures"] == ["GPT2Model"]


def test_large_models_are_saved_in_shards(tmp_path):
    held = gpt2.write(tmp_path / "first")
    model, params = from_pretrained(tmp_path / "first")
    save_pretrained(tmp_path / "second", model, params, max_shard_bytes=3000)
    shards = sorted((tmp_path / "second").glob("model-*.safetensors"))
    assert len(shards) > 2 and all(shard.stat().st_size < 6000 for shard in shards)
    assert same_bytes({name: array for shard in shards for name, array in load_file(shard).items()}, held)
    jax.tree.map(np.testing.assert_array_equal, from_pretrained(tmp_path / "second")[1], params)


def test_a_model_split_over_a_mesh_is_saved_whole(tmp_path):
    held = gpt2.write(tmp_path / "first")
    save_pretrained(tmp_path / "second", *from_pretrained(tmp_path / "first", mesh="fsdp:4,model:2"))
    assert same_bytes(load_file(tmp_path / "second" / "model.safetensors"), held)


def test_a_model_made_here_comes_back_with_its_head_and_labels(tmp_path):
    fields = dict(vocab_size=20, max_len=16, num_layers=2, num_heads=2, head_dim=4, d_model=8, d_mlp=12)
    fields |= dict(labels=("no", "yes", "maybe"), eos_token=3, dropout=0.2, norm_eps=1e-4)
    model = build("gpt", fields, head="sequence-classification")
    params = model.init(jax.random.PRNGKey(0))
    save_pretrained(tmp_path, model, params)
    loaded, its_params = from_pretrained(tmp_path)
    assert loaded == model
    jax.tree.map(np.testing.assert_array_equal, its_params, params)


def test_a_span_head_has_two_labels_in_the_config_whatever_the_models_are(tmp_path):
    fields = dict(vocab_size=20, max_len=16, num_layers=2, num_heads=2, head_dim=4, d_model=8, d_mlp=12, labels=("a", "b", "c"))
    model = build("gpt", fields, head="question-answering")
    save_pretrained(tmp_path, model, model.init(jax.random.PRNGKey(0)))
    assert len(json.loads((tmp_path / "config.json").read_text())["id2label"]) == 2


def test_the_tokenizer_is_saved_beside(tmp_path):
    gpt2.write(tmp_path / "first")
    model, params = from_pretrained(tmp_path / "first")
    save_pretrained(tmp_path / "second", model, params, byte_level())
    np.testing.assert_array_equal(load_tokenizer(tmp_path / "second").encode("naïve"), byte_level().encode("naïve"))


def test_what_no_checkpoint_can_say_is_refused(tmp_path):
    model = build("gpt", dict(vocab_size=20, max_len=16, num_layers=2, num_heads=2, head_dim=4, d_model=8, d_mlp=12, window=4))
    with pytest.raises(InputError, match="holds no banded attention.*window 4"):
        save_pretrained(tmp_path / "out", model, model.init(jax.random.PRNGKey(0)))
    assert not (tmp_path / "out").exists()


def test_parameters_of_another_model_are_refused(tmp_path):
    gpt2.write(tmp_path / "first")
    model, params = from_pretrained(tmp_path / "first")
    with pytest.raises(InputError, match=r"\['layers/0/.*not in this model.*layers stacked"):
        save_pretrained(tmp_path / "out", model, {**params, "layers": {"0": params["layers"]}})
    with pytest.raises(InputError, match="final_norm/scale has shape"):
        save_pretrained(tmp_path / "out", model, {**params, "final_norm": {"scale": jnp.ones(3), "bias": jnp.ones(8)}})
    assert not (tmp_path / "out").exists()


def test_convert_changes_the_dtype_and_takes_the_tokenizer_along(tmp_path, caplog):
    held = gpt2.write(tmp_path / "first")
    convert(tmp_path / "first", tmp_path / "without")
    assert f"{tmp_path / 'first'} has no tokenizer, and so {tmp_path / 'without'} is without one" in caplog.text
    caplog.clear()
    byte_level().save(tmp_path / "first")
    convert(tmp_path / "first", tmp_path / "half", dtype="bfloat16")
    halves = {name: array.astype(ml_dtypes.bfloat16) for name, array in held.items()}
    assert same_bytes(load_file(tmp_path / "half" / "model.safetensors"), halves)
    assert load_tokenizer(tmp_path / "half").vocab_size == byte_level().vocab_size
    assert not (tmp_path / "without" / "tokenizer.json").exists() and not caplog.records


def test_a_damaged_tokenizer_stops_a_conversion(tmp_path):
    gpt2.write(tmp_path / "first")
    (tmp_path / "first" / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer.json"):
        convert(tmp_path / "first", tmp_path / "second")


def test_every_family_has_names_for_all_that_its_checkpoints_can_hold():
    assert set(FAMILIES) == set(NAMED)
    for family, module in NAMED.items():
        for architecture, head in module.ARCHITECTURES.items():
            config = PUBLISHED.get(family, FAMILIES[family].Config())
            assert module.write_config(config, head)["model_type"] in module.MODEL_TYPES
            specs = nn.flatten(FAMILIES[family].param_specs(config, head))
            ours = {path for rule in module.names(config, head).rules for path in rule.paths}
            assert ours == set(specs), f"{family} with the head {head} ({architecture})"
