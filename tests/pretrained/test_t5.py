"""T5's config.json and the names in its files: what is read of them, what is refused, and what is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flaxllm import from_pretrained, nn
from flaxllm.errors import InputError
from flaxllm.models import Model, build
from flaxllm.models.t5 import PRESETS, Config
from flaxllm.pretrained.config_file import Keys
from flaxllm.pretrained.families import family_of
from flaxllm.pretrained.save import save_pretrained
from flaxllm.pretrained.t5 import read_config, write_config

TINY = dict(vocab_size=40, num_layers=1, num_decoder_layers=2, num_heads=2, head_dim=6, d_model=16, d_mlp=20)
BASE = {"model_type": "t5", "vocab_size": 40, "d_model": 16, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_heads": 2}
TABLE = ("lm_head.weight",)


def read(values: dict, names: tuple[str, ...] = (), **changes) -> Config:
    return read_config(Keys(values | changes, "config.json"), names)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(num_decoder_layers=None),
        dict(activation="gelu_tanh", gated=True, tied=False, scale_output=False, bos_token=3, eos_token=(2, 5)),
        dict(activation="gelu", gated=True, scale_output=False, eos_token=None, pad_token=None, decoder_start_token=4),
        dict(activation="silu", tied=False, num_buckets=12, max_distance=30, norm_eps=1e-5, init_factor=0.5),
        dict(activation="gelu", dropout=0.2, attention_dropout=0.2, classifier_dropout=0.3, labels=("a", "b", "c")),
    ],
)
def test_what_is_written_is_read_again(changes):
    config = Config(**TINY | changes)
    assert read(write_config(config, "seq2seq-lm"), () if config.tied else TABLE) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_written(preset):
    proj = "relu" if preset.startswith("t5-") and "v1.1" not in preset else "gated-gelu"
    assert write_config(PRESETS[preset], "seq2seq-lm")["feed_forward_proj"] == proj


@pytest.mark.parametrize(
    ("values", "has_table", "tied", "scaled"),
    [
        ({}, False, True, True),  # version 1.0
        ({}, True, True, True),  # its files may repeat the embedding
        ({"tie_word_embeddings": False}, True, False, False),  # version 1.1
        ({"tie_word_embeddings": False}, False, True, False),  # transformers 5 ties what is not there
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, True, False, False),  # 1.1, written by transformers 5
        ({"model_type": "mt5", "tie_word_embeddings": False}, True, False, False),
        ({"model_type": "mt5"}, True, False, False),
        ({"model_type": "mt5"}, False, True, False),
    ],
)
def test_tables_are_tied_and_logits_scaled_as_in_transformers(values, has_table, tied, scaled):
    config = read(BASE, TABLE if has_table else (), **values)
    assert (config.tied, config.scale_output) == (tied, scaled)


@pytest.mark.parametrize(
    ("values", "activation", "gated"),
    [
        ({}, "relu", False),
        ({"model_type": "mt5"}, "gelu_tanh", True),
        ({"feed_forward_proj": "gelu"}, "gelu", False),
        ({"feed_forward_proj": "gated-gelu"}, "gelu_tanh", True),
        ({"feed_forward_proj": "gated-silu"}, "silu", True),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "is_gated_act": True}, "gelu", True),
    ],
)
def test_the_mlp_is_read_from_its_name(values, activation, gated):
    config = read(BASE, **values)
    assert (config.activation, config.gated) == (activation, gated)


def test_what_a_config_leaves_out_is_as_in_transformers():
    config = read(BASE)
    assert (config.num_decoder_layers, config.decoder_depth, config.num_buckets, config.max_distance) == (None, 2, 32, 128)
    assert (config.pad_token, config.eos_token, config.decoder_start_token) == (0, 1, 0)
    assert (config.dropout, config.attention_dropout, config.classifier_dropout) == (0.1, 0.1, 0.0)
    assert read(BASE, n_positions=2048, num_decoder_layers=3).max_len == 2048


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-relu6"}, "feed_forward_proj 'gated-relu6', which is not known"),
        ({"is_decoder": True}, "is_decoder True, which flaxllm does not compute"),
        ({"d_kv": None}, "no key 'd_kv', which a t5 needs"),
        ({"num_heads": "two"}, "num_heads 'two': expected a whole number"),
    ],
)
def test_a_config_that_is_not_computed_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        read(BASE, **change)
    with pytest.raises(InputError, match="model_type 'umt5', no model of flaxllm: did you mean 'mt5'"):
        family_of(Keys({"model_type": "umt5"}, "config.json"))


def test_two_rates_of_dropout_cannot_be_written():
    with pytest.raises(InputError, match="attention_dropout is 0.0 and its dropout 0.1; make them equal"):
        write_config(Config(**TINY, attention_dropout=0.0), "seq2seq-lm")


@pytest.fixture(scope="module")
def saved() -> tuple[Model, dict]:
    model = build("t5", TINY)
    return model, model.init(jax.random.PRNGKey(0))


def test_old_files_repeat_the_embedding_and_have_a_bias_that_nothing_uses(saved, tmp_path):
    model, params = saved
    save_pretrained(tmp_path, model, params)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors.pop("shared.weight")
    tensors |= {name: table for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")}
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    save_file(tensors | {unused: np.zeros((32, 2), np.float32)}, tmp_path / "model.safetensors")
    again, loaded = from_pretrained(tmp_path)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("head", ["sequence-classification", "token-classification", "question-answering", "encoder", "base"])
def test_a_language_model_goes_into_every_head(saved, tmp_path, head):
    model, params = saved
    save_pretrained(tmp_path, model, params)
    other, loaded = from_pretrained(tmp_path, head=head, labels=("sad", "glad", "mad"))
    flat = nn.flatten(loaded)
    assert ("decoder/final_norm/scale" in flat) == (head not in ("encoder", "token-classification"))
    assert ("head/out/kernel" in flat) == (head not in ("encoder", "base"))
    for path in set(flat) & set(nn.flatten(params)):
        np.testing.assert_array_equal(flat[path], nn.flatten(params)[path])
    save_pretrained(tmp_path / "again", other, loaded)
    prefixed = head in ("sequence-classification", "token-classification")
    assert ("transformer.shared.weight" in load_file(tmp_path / "again" / "model.safetensors")) == prefixed
    back, base = from_pretrained(tmp_path / "again", head="encoder")
    jax.tree.map(np.testing.assert_array_equal, base["encoder"], params["encoder"])
    assert back.apply(base, jnp.ones((1, 3), jnp.int32)).hidden.shape == (1, 3, 16)
