"""Marian's config.json and the names in its files: what is read of them, what is refused, and what is written."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flaxllm import from_pretrained, nn
from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.models.transformer import PRESETS, Config
from flaxllm.pretrained.config_file import Keys
from flaxllm.pretrained.save import save_pretrained
from flaxllm.pretrained.transformer import read_config, write_config

TINY = dict(
    vocab_size=40, num_layers=1, num_decoder_layers=2, num_heads=2, num_decoder_heads=2, head_dim=8, d_model=16, d_mlp=20,
    d_decoder_mlp=24, attention_bias=True, interleaved_positions=False, norm_eps=1e-5, decoder_start_token=39, pad_token=39,
)  # fmt: skip
# As in the published config.json of an OPUS-MT model, but smaller.
OPUS = {
    "model_type": "marian", "vocab_size": 40, "decoder_vocab_size": 40, "d_model": 16, "max_position_embeddings": 512,
    "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 20, "decoder_ffn_dim": 24, "activation_function": "swish", "scale_embedding": True,
    "static_position_embeddings": True, "normalize_before": False, "normalize_embedding": False,
    "add_final_layer_norm": False, "add_bias_logits": False, "decoder_start_token_id": 39, "pad_token_id": 39,
    "eos_token_id": 0, "bos_token_id": 0, "encoder_layerdrop": 0.0, "dropout": 0.1, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "is_encoder_decoder": True,
}  # fmt: skip
BIAS = ("final_logits_bias",)


def read(values: dict, names: tuple[str, ...] = BIAS, **changes) -> Config:
    return read_config(Keys(values | changes, "config.json"), names)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(output_bias=True, activation="silu", num_decoder_heads=4, eos_token=0, scale_embedding=False),
        dict(source_vocab_size=30, dropout=0.3, attention_dropout=0.2, activation_dropout=0.1),
        dict(source_vocab_size=50, tied=False, activation="gelu", max_len=77),
    ],
)
def test_what_is_written_is_read_again(changes):
    config = Config(**TINY | changes)
    assert read(write_config(config, "seq2seq-lm"), BIAS if config.output_bias else ()) == config


def test_a_published_config_is_read():
    config = read(OPUS)
    assert (config.encoder.num_layers, config.encoder.num_heads, config.encoder.head_dim, config.encoder.d_mlp) == (2, 2, 8, 20)
    assert (config.decoder.num_layers, config.decoder.num_heads, config.decoder.head_dim, config.decoder.d_mlp) == (1, 4, 4, 24)
    assert (config.activation, config.scale_embedding, config.interleaved_positions) == ("silu", True, False)
    assert (config.source_vocab_size, config.tied, config.output_bias) == (None, True, True)
    assert (config.pad_token, config.decoder_start_token, config.eos_token, config.max_len) == (39, 39, 0, 512)
    assert not read(OPUS, names=()).output_bias


def test_each_language_may_have_its_own_table():
    config = read(OPUS, share_encoder_decoder_embeddings=False, decoder_vocab_size=50)
    assert (config.source_vocab_size, config.vocab_size, config.tied) == (40, 50, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalize_before": True}, "normalize_before True, which flaxllm does not compute"),
        ({"normalize_embedding": True}, "normalize_embedding True"),
        ({"add_final_layer_norm": True}, "add_final_layer_norm True"),
        ({"static_position_embeddings": False}, "static_position_embeddings False"),
        ({"encoder_layerdrop": 0.1}, "encoder_layerdrop 0.1"),
        ({"decoder_layerdrop": 0.1}, "decoder_layerdrop 0.1"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder False"),
        ({"decoder_vocab_size": 50}, "share_encoder_decoder_embeddings with tables that differ"),
        ({"tie_word_embeddings": False}, "share_encoder_decoder_embeddings with tables that differ"),
        ({"encoder_attention_heads": 3}, "d_model 16, which its encoder_attention_heads 3 does not divide"),
        ({"decoder_attention_heads": 3}, "3 decoder heads, which do not divide"),
        ({"decoder_start_token_id": None}, "no key 'decoder_start_token_id', which a marian needs"),
        ({"activation_function": "gelu_10"}, "activation_function 'gelu_10', which is not known"),
    ],
)
def test_a_config_that_is_not_computed_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        read(OPUS, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_bias": False}, "its attention_bias is False and would have to be True"),
        ({"interleaved_positions": True}, "its interleaved_positions is True"),
        ({"norm_eps": 1e-6}, "its norm_eps is 1e-06 and would have to be 1e-05"),
        ({"head_dim": 4}, "its width of all heads is 8 and would have to be 16"),
        ({"tied": False}, "its tied is False and would have to be True"),
    ],
)
def test_what_a_marian_checkpoint_cannot_hold_is_not_written(change, message):
    with pytest.raises(InputError, match=message):
        write_config(Config(**TINY | change), "seq2seq-lm")
    with pytest.raises(InputError, match="cannot hold this model"):
        write_config(PRESETS["transformer-base"], "seq2seq-lm")


def test_old_files_repeat_the_embedding_and_hold_the_sinusoids(tmp_path):
    model = build("transformer", {**TINY, "output_bias": True})
    params = model.init(jax.random.PRNGKey(0))
    save_pretrained(tmp_path, model, params)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["final_logits_bias"].shape == (1, 40)
    table = tensors.pop("model.shared.weight")
    repeated = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    sinusoids = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
    tensors |= {name: table for name in repeated} | {name: np.zeros((512, 16), np.float32) for name in sinusoids}
    save_file(tensors, tmp_path / "model.safetensors")
    again, loaded = from_pretrained(tmp_path)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    base, loaded = from_pretrained(tmp_path, head="base")
    assert set(nn.flatten(loaded)) == set(nn.flatten(params)) - {"head/bias"}
    save_pretrained(tmp_path / "base", base, loaded)
    assert "shared.weight" in load_file(tmp_path / "base" / "model.safetensors")
