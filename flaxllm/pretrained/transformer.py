"""Marian's models as Hugging Face publishes them: the Transformer of 2017 with more biases (Junczys-Dowmunt et al. 2018)."""

from collections.abc import Collection
from typing import Any

from flaxllm.errors import InputError
from flaxllm.models.transformer import Config
from flaxllm.pretrained.config_file import ACTIVATIONS, Keys, activation_name, common_keys, labels_of, special_tokens
from flaxllm.pretrained.names import Names, Rule, linear, norm

MODEL_TYPES = ("marian",)
ARCHITECTURES = {"MarianModel": None, "MarianMTModel": "seq2seq-lm"}
_NORM_EPS = 1e-5  # fixed: the config has no key for it
_BIAS = "final_logits_bias"


def read_config(keys: Keys, names: Collection[str]) -> Config:
    keys.only("is_decoder", False)
    keys.only("is_encoder_decoder", True)
    keys.only("normalize_before", False)
    keys.only("normalize_embedding", False)
    keys.only("add_final_layer_norm", False)
    keys.only("static_position_embeddings", True)
    keys.only("encoder_layerdrop", 0, 0.0)
    keys.only("decoder_layerdrop", 0, 0.0)
    vocab_size, target_size, has_one_table = _vocabularies(keys)
    return Config(
        vocab_size=target_size,
        source_vocab_size=None if has_one_table else vocab_size,
        max_len=keys.integer("max_position_embeddings", 1024),
        num_layers=keys.integer("encoder_layers"),
        num_decoder_layers=keys.integer("decoder_layers"),
        num_heads=keys.integer("encoder_attention_heads"),
        num_decoder_heads=keys.integer("decoder_attention_heads"),
        head_dim=keys.quotient("d_model", "encoder_attention_heads"),
        d_model=keys.integer("d_model"),
        d_mlp=keys.integer("encoder_ffn_dim"),
        d_decoder_mlp=keys.integer("decoder_ffn_dim"),
        activation=keys.choice("activation_function", ACTIVATIONS, "gelu"),
        attention_bias=True,
        output_bias=_BIAS in names,
        scale_embedding=keys.switch("scale_embedding", False),
        interleaved_positions=False,
        tied=keys.switch("tie_word_embeddings", True),
        norm_eps=_NORM_EPS,
        dropout=keys.number("dropout", 0.1),
        attention_dropout=keys.number("attention_dropout", 0.0),
        activation_dropout=keys.number("activation_dropout", 0.0),
        decoder_start_token=keys.integer("decoder_start_token_id"),
        labels=labels_of(keys),
        **special_tokens(keys),
    )


def _vocabularies(keys: Keys) -> tuple[int, int, bool]:
    """The sizes of the source's and of the target's, and whether they are one."""
    vocab_size = keys.integer("vocab_size")
    target_size = keys.integer("decoder_vocab_size", vocab_size)
    shared = keys.switch("share_encoder_decoder_embeddings", True)
    if shared and (target_size != vocab_size or not keys.switch("tie_word_embeddings", True)):
        raise InputError(
            f"{keys.file} has share_encoder_decoder_embeddings with tables that differ: expected tie_word_embeddings true "
            f"and a decoder_vocab_size of {vocab_size}"
        )
    return vocab_size, target_size, shared


def write_config(config: Config, head: str | None) -> dict[str, Any]:
    _check_form(config)
    shared, common = config.source_vocab_size is None, common_keys(config)
    return common | {
        "model_type": "marian",
        "vocab_size": config.vocab_size if shared else config.source_vocab_size,
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": shared,
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.max_len,
        "encoder_layers": config.encoder.num_layers,
        "decoder_layers": config.decoder.num_layers,
        "encoder_attention_heads": config.encoder.num_heads,
        "decoder_attention_heads": config.decoder.num_heads,
        "d_model": config.d_model,
        "encoder_ffn_dim": config.encoder.d_mlp,
        "decoder_ffn_dim": config.decoder.d_mlp,
        "activation_function": activation_name(config.activation),
        "scale_embedding": config.scale_embedding,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "decoder_start_token_id": config.decoder_start_token,
        "forced_eos_token_id": common["eos_token_id"],
    }


def _check_form(config: Config) -> None:
    """Refuse what a checkpoint of this kind cannot say."""
    is_and_must = {
        "width of all heads": (config.num_heads * config.head_dim, config.d_model),
        "attention_bias": (config.attention_bias, True),
        "interleaved_positions": (config.interleaved_positions, False),
        "norm_eps": (config.norm_eps, _NORM_EPS),
        "tied": (config.tied, config.tied or config.source_vocab_size is None),
    }
    for name, (value, must) in is_and_must.items():
        if value != must:
            raise InputError(f"a Marian checkpoint cannot hold this model: its {name} is {value} and would have to be {must}")


def names(config: Config, head: str | None) -> Names:
    source, target = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
    if config.source_vocab_size is None:
        table = "model.shared.weight"
        rules, tied = [Rule("embedding/tokens", table)], {source: table, target: table}
    else:
        table = target
        rules, tied = [Rule("embedding/tokens", target), Rule("embedding/source_tokens", source)], {}
    rules += _stack_rules("encoder") + _stack_rules("decoder")
    if config.tied:
        tied["lm_head.weight"] = table
    elif head == "seq2seq-lm":
        rules.append(Rule("head/table", "lm_head.weight"))
    if head == "seq2seq-lm" and config.output_bias:
        rules.append(Rule("head/bias", _BIAS, row=True))
    return Names(
        tuple(rules),
        prefix="model.",
        buffers=(r"model\.(en|de)coder\.embed_positions\.weight$",),
        heads=(r"lm_head\.", rf"{_BIAS}$"),
        tied=tied,
    )


def _stack_rules(stack: str) -> list[Rule]:
    layer = f"model.{stack}.layers.{{layer}}"
    attentions = {"attention": "self_attn"} | ({"cross_attention": "encoder_attn"} if stack == "decoder" else {})
    rules = [
        *linear(f"{stack}/layers/mlp/up", f"{layer}.fc1"),
        *linear(f"{stack}/layers/mlp/down", f"{layer}.fc2"),
        *norm(f"{stack}/layers/mlp_norm", f"{layer}.final_layer_norm"),
    ]
    for ours, theirs in attentions.items():
        rules += norm(f"{stack}/layers/{ours}_norm", f"{layer}.{theirs}_layer_norm")
        for projection in ("query", "key", "value", "out"):
            part = "out_proj" if projection == "out" else f"{projection[0]}_proj"
            rules += linear(f"{stack}/layers/{ours}/{projection}", f"{layer}.{theirs}.{part}")
    return rules
