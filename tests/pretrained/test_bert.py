"""Names and configs of BERT's checkpoints; what the loaded models compute is compared in tests/parity."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flaxllm import from_pretrained, nn, save_pretrained
from flaxllm.errors import InputError
from flaxllm.models import Model, bert, build, preset
from flaxllm.models.heads import LABELS
from parity.case import FIXTURES

TOKENS = jnp.array([[3, 9, 11, 4]])
KINDS = {"bert": "pretraining_silu", "roberta": "roberta_masked_lm_packed", "distilbert": "distilbert_masked_lm_left_padding"}

Tensors = dict[str, np.ndarray]


def checkpoint(
    folder: Path, of: str, change: Callable[[Tensors], Tensors] = lambda tensors: tensors, **keys: object
) -> Path:
    """A checkpoint that transformers wrote, with other tensors and other keys in its config (None: without the key)."""
    source = FIXTURES / "bert" / of
    config = {**json.loads((source / "config.json").read_text()), **keys}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    save_file(change(load_file(source / "model.safetensors")), folder / "model.safetensors")
    return folder


def renamed(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    for old, new in names.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def test_the_names_of_old_files_are_known(tmp_path):
    def aged(tensors: Tensors) -> Tensors:
        tensors = renamed(tensors, {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"})
        table = tensors["bert.embeddings.word_embeddings.weight"]
        bias = tensors.pop("cls.predictions.bias")
        return tensors | {
            "cls.predictions.decoder.bias": bias,
            "cls.predictions.decoder.weight": table,
            "bert.embeddings.position_ids": np.arange(32)[None],
        }

    old, new = tmp_path / "old", FIXTURES / "bert" / KINDS["bert"]
    params = from_pretrained(checkpoint(old, KINDS["bert"], aged))[1]
    assert any(name.endswith("gamma") for name in load_file(old / "model.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, params, from_pretrained(new)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_its_head_and_one_without_prefixes_are_the_same(tmp_path, kind, caplog):
    with_head = from_pretrained(FIXTURES / "bert" / KINDS[kind])[1]
    base = from_pretrained(FIXTURES / "bert" / KINDS[kind], head="base")[1]
    assert "head" in with_head and "head" not in base
    bare = checkpoint(tmp_path / "bare", KINDS[kind], lambda tensors: renamed(tensors, {f"{kind}.": ""}))
    with caplog.at_level(logging.WARNING, "flaxllm"):
        again = from_pretrained(bare, head="base")[1]
    assert "left out" in caplog.text and "embeddings" not in caplog.text
    jax.tree.map(np.testing.assert_array_equal, again, base)


def test_a_masked_language_model_with_a_pooler_gives_the_pooled_output(tmp_path):
    folder = checkpoint(tmp_path / "published", KINDS["bert"], architectures=["BertForMaskedLM"])
    model, params = from_pretrained(folder)
    assert (model.head, model.config.pooler) == ("masked-lm", True)
    expected_model, expected = from_pretrained(FIXTURES / "bert" / KINDS["bert"])
    np.testing.assert_array_equal(model.apply(params, TOKENS).pooled, expected_model.apply(expected, TOKENS).pooled)
    assert from_pretrained(FIXTURES / "bert" / "masked_lm")[0].config.pooler is False


def test_a_new_classifier_brings_the_pooler_that_the_checkpoint_has_not():
    model, params = from_pretrained(FIXTURES / "bert" / "masked_lm", head="sequence-classification")
    assert set(params) == {"embedding", "layers", "pooler", "head"}
    assert model.apply(params, TOKENS).logits.shape == (1, 2)
    old = from_pretrained(FIXTURES / "bert" / "masked_lm")[1]
    jax.tree.map(np.testing.assert_array_equal, params["layers"], old["layers"])


def test_half_a_head_is_no_new_one(tmp_path):
    def beheaded(tensors: Tensors) -> Tensors:
        return {name: tensor for name, tensor in tensors.items() if "pooler" not in name}

    folder = checkpoint(tmp_path / "half", "sequence_classification", beheaded)
    with pytest.raises(InputError, match=r"lacks 'bert.pooler.dense.weight', .* the checkpoint is not whole"):
        from_pretrained(folder, head="sequence-classification")


def test_an_untied_vocabulary_is_read_and_written(tmp_path):
    rng = np.random.default_rng(0)
    own = {
        "cls.predictions.decoder.weight": rng.normal(size=(48, 8)).astype(np.float32),
        "cls.predictions.decoder.bias": rng.normal(size=48).astype(np.float32),
    }
    folder = checkpoint(tmp_path / "untied", "masked_lm", lambda tensors: tensors | own, tie_word_embeddings=False)
    model, params = from_pretrained(folder)
    np.testing.assert_array_equal(params["head"]["vocabulary"]["kernel"].T, own["cls.predictions.decoder.weight"])
    np.testing.assert_array_equal(params["head"]["vocabulary"]["bias"], own["cls.predictions.decoder.bias"])
    save_pretrained(tmp_path / "again", model, params)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(again[name].tobytes() == tensor.tobytes() for name, tensor in own.items())
    assert from_pretrained(tmp_path / "again")[0] == model


VARIANTS = {
    "bert": dict(num_token_types=3, activation="relu", classifier_dropout=0.3, norm_eps=1e-6),
    "roberta": dict(position_offset=5, pad_token=4, num_token_types=1, transform_activation="gelu", activation="relu"),
    "xlm-roberta": dict(position_offset=2, pad_token=1, num_token_types=2, bos_token=0, eos_token=(2, 3)),
    "camembert": dict(position_offset=2, pad_token=1, num_token_types=1, dropout=0.2, attention_dropout=0.3),
    "distilbert": dict(num_token_types=0, classifier_dropout=0.4, span_dropout=0.2, tied=False, activation="gelu_tanh"),
}


def tiny(variant: str, head: str | None, **changes: object) -> Model:
    sizes = dict(vocab_size=30, max_len=8, num_layers=2, num_heads=2, head_dim=4, d_model=8, d_mlp=12, pooler=False)
    return build("bert", {"variant": variant, **sizes, "labels": ("yes", "no", "?"), **VARIANTS[variant], **changes}, head)


def values(model: Model) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), nn.abstract(model.param_specs()))


SAVED = [tiny(variant, head) for variant in VARIANTS for head in (None, *bert.heads(tiny(variant, None).config))]


@pytest.mark.parametrize("model", SAVED, ids=lambda model: f"{model.config.variant}-{model.head}")
def test_a_saved_model_is_read_back_as_it_was(tmp_path, model):
    params = values(model)
    save_pretrained(tmp_path, model, params)
    again, reread = from_pretrained(tmp_path)
    assert again.head == model.head
    # A pooler that a head brought along is the model's own from then on; a span head has no use for names of classes.
    labels = {"labels": LABELS} if model.head == "question-answering" else {}
    assert vars(again.config) == vars(model.config) | {"pooler": "pooler" in params} | labels
    jax.tree.map(np.testing.assert_array_equal, reread, params)


@pytest.mark.parametrize("name", bert.PRESETS)
def test_presets_can_be_written_as_checkpoints(tmp_path, name):
    model = preset(name, vocab_size=7, num_layers=1, max_len=4, d_model=4, num_heads=2, head_dim=2, d_mlp=4)
    save_pretrained(tmp_path, model, values(model))
    assert from_pretrained(tmp_path)[0] == model


@pytest.mark.parametrize(
    ("of", "keys", "message"),
    [
        ("masked_lm", {"is_decoder": True}, "is_decoder True, which flaxllm does not compute: only False"),
        ("masked_lm", {"add_cross_attention": True}, "add_cross_attention True"),
        ("masked_lm", {"position_embedding_type": "relative_key"}, "'relative_key', .* only 'absolute' can be loaded"),
        ("masked_lm", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("masked_lm", {"hidden_act": "gelo"}, "hidden_act 'gelo', which is not known: did you mean 'gelu'"),
        ("masked_lm", {"hidden_size": None}, "no key 'hidden_size', which a bert needs: add it"),
        ("masked_lm", {"num_attention_heads": 3}, "hidden_size 8, which its num_attention_heads 3 does not divide"),
        ("masked_lm", {"architectures": ["BertLMHeadModel"]}, "architecture 'BertLMHeadModel', which is not known"),
        ("distilbert_base_sinusoidal", {"dim": None}, "no key 'dim', which a distilbert needs: add it"),
    ],
)
def test_a_config_that_is_not_computed_is_refused(tmp_path, of, keys, message):
    with pytest.raises(InputError, match=message):
        from_pretrained(checkpoint(tmp_path / "changed", of, **keys))


def test_what_a_config_leaves_out_is_what_transformers_takes_for_it(tmp_path):
    left_out = dict.fromkeys((
        "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "initializer_range",
        "pad_token_id", "bos_token_id", "eos_token_id", "type_vocab_size",
    ))  # fmt: skip
    config = from_pretrained(checkpoint(tmp_path / "bert", "masked_lm", **left_out))[0].config
    assert (config.activation, config.dropout, config.attention_dropout, config.norm_eps) == ("gelu", 0.1, 0.1, 1e-12)
    assert (config.num_token_types, config.pad_token, config.bos_token, config.position_offset) == (2, 0, None, 0)
    left_out.pop("type_vocab_size")
    config = from_pretrained(checkpoint(tmp_path / "roberta", "roberta_masked_lm_packed", **left_out))[0].config
    assert (config.pad_token, config.bos_token, config.eos_token) == (1, 0, 2)
    assert (config.position_offset, config.max_len) == (2, 30)


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("bert", {"position_offset": 2}, "a bert checkpoint cannot hold this model: its position_offset is 2 and would .* 0"),
        ("bert", {"num_token_types": 0}, "num_token_types is 0 and would have to be 1"),
        ("bert", {"transform_activation": "tanh"}, "transform_activation is tanh and would have to be relu"),
        ("bert", {"head_dim": 3}, "width of all heads is 6 and would have to be 8"),
        ("roberta", {"pad_token": 1}, "its pad_token is 1 and would have to be 4; change it, or the variant"),
        ("roberta", {"transform_activation": "relu"}, "transform_activation is relu and would have to be gelu"),
        ("distilbert", {"norm_eps": 1e-5}, "norm_eps is 1e-05 and would have to be 1e-12"),
        ("distilbert", {"pooler": True}, "pooler is True and would have to be False"),
        ("distilbert", {"num_token_types": 2}, "num_token_types is 2 and would have to be 0"),
    ],
)
def test_what_a_checkpoint_cannot_say_is_not_written(tmp_path, variant, change, message):
    model = tiny(variant, "masked-lm", **change)
    with pytest.raises(InputError, match=message):
        save_pretrained(tmp_path, model, values(model))
    assert not list(tmp_path.iterdir())
