"""T5 as Hugging Face publishes it: versions 1.0 and 1.1, Flan-T5 and mT5.

As in transformers 5, `tie_word_embeddings` says whether hidden states are scaled before the logits, unless its own
`scale_decoder_outputs` does, and mT5 never scales; the logits have a table of their own where a file has one.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from flaxllm.errors import InputError
from flaxllm.models.t5 import ENCODER_HEADS, Config
from flaxllm.pretrained.config_file import ACTIVATIONS, Keys, activation_name, common_keys, labels_of, special_tokens
from flaxllm.pretrained.names import Names, Rule, linear, norm

MODEL_TYPES = ("t5", "mt5")
ARCHITECTURES = {
    f"{model}{end}": head
    for model in ("T5", "MT5")
    for end, head in {
        "Model": None,
        "ForConditionalGeneration": "seq2seq-lm",
        "WithLMHeadModel": "seq2seq-lm",  # what the class was called in the first files
        "EncoderModel": "encoder",
        "ForSequenceClassification": "sequence-classification",
        "ForTokenClassification": "token-classification",
        "ForQuestionAnswering": "question-answering",
    }.items()
}
_TOKENS = {"pad_token_id": 0, "eos_token_id": 1}  # what transformers takes where a config.json does not say
_PREFIXED_HEADS = ("sequence-classification", "token-classification")
_GATED = "gated-"
# The mlp by the value of feed_forward_proj: its activation, and whether it is gated.
_MLPS = {
    **{name: (activation, False) for name, activation in ACTIVATIONS.items()},
    **{f"{_GATED}{name}": (activation, True) for name, activation in ACTIVATIONS.items()},
    "gated-gelu": ("gelu_tanh", True),
}


def read_config(keys: Keys, names: Collection[str]) -> Config:
    keys.only("is_decoder", False)
    keys = dataclasses.replace(keys, values={**_TOKENS, **keys.values})
    is_mt5 = keys.model_type == "mt5"
    activation, gated = keys.choice("feed_forward_proj", _MLPS, "gated-gelu" if is_mt5 else "relu")
    says_tied = keys.switch("tie_word_embeddings", True)
    scale_output = False if is_mt5 else keys.switch("scale_decoder_outputs", says_tied)
    return Config(
        vocab_size=keys.integer("vocab_size"),
        max_len=keys.integer("n_positions", 512),
        num_layers=keys.integer("num_layers"),
        num_decoder_layers=keys.integer("num_decoder_layers", None),
        num_heads=keys.integer("num_heads"),
        head_dim=keys.integer("d_kv"),
        d_model=keys.integer("d_model"),
        d_mlp=keys.integer("d_ff"),
        activation=keys.choice("dense_act_fn", ACTIVATIONS, activation_name(activation)),
        gated=keys.switch("is_gated_act", gated),
        tied="lm_head.weight" not in names or (says_tied and scale_output),
        scale_output=scale_output,
        num_buckets=keys.integer("relative_attention_num_buckets", 32),
        max_distance=keys.integer("relative_attention_max_distance", 128),
        norm_eps=keys.number("layer_norm_epsilon", 1e-6),
        dropout=keys.number("dropout_rate", 0.1),
        attention_dropout=keys.number("dropout_rate", 0.1),
        classifier_dropout=keys.number("classifier_dropout", 0.0),
        init_factor=keys.number("initializer_factor", 1.0),
        decoder_start_token=keys.integer("decoder_start_token_id", 0),
        labels=labels_of(keys),
        **special_tokens(keys),
    )


def write_config(config: Config, head: str | None) -> dict[str, Any]:
    """mT5 computes what version 1.1 does, and is written as such."""
    if config.attention_dropout != config.dropout:
        raise InputError(
            f"a T5 checkpoint has one rate of dropout: this model's attention_dropout is {config.attention_dropout} and its "
            f"dropout {config.dropout}; make them equal"
        )
    activation = activation_name(config.activation)
    return common_keys(config) | {
        "model_type": "t5",
        "is_encoder_decoder": head not in ENCODER_HEADS,
        "vocab_size": config.vocab_size,
        "n_positions": config.max_len,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_model": config.d_model,
        "d_ff": config.d_mlp,
        "feed_forward_proj": _GATED + activation.removesuffix("_new") if config.gated else activation,
        "dense_act_fn": activation,
        "is_gated_act": config.gated,
        "tie_word_embeddings": config.tied,
        "scale_decoder_outputs": config.scale_output,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.norm_eps,
        "dropout_rate": config.dropout,
        "classifier_dropout": config.classifier_dropout,
        "initializer_factor": config.init_factor,
        "decoder_start_token_id": config.decoder_start_token,
    }


def names(config: Config, head: str | None) -> Names:
    prefix = "transformer." if head in _PREFIXED_HEADS else ""
    table = f"{prefix}shared.weight"
    tied = {f"{prefix}{stack}.embed_tokens.weight": table for stack in ("encoder", "decoder")}
    rules = [Rule("embedding/tokens", table), *_stack_rules("encoder", f"{prefix}encoder", config)]
    if head not in ENCODER_HEADS:
        rules += _stack_rules("decoder", f"{prefix}decoder", config)
    if head == "seq2seq-lm" and not config.tied:
        rules.append(Rule("head/table", "lm_head.weight"))
    elif head == "sequence-classification":
        rules += linear("head/inner", "classification_head.dense") + linear("head/out", "classification_head.out_proj")
    elif head in ("token-classification", "question-answering"):
        rules += linear("head/out", "classifier" if head == "token-classification" else "qa_outputs")
    return Names(
        tuple(rules),
        prefix=prefix,
        aliases=() if prefix else ((r"^transformer\.", ""),),
        buffers=(rf"{prefix}decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
        heads=(
            r"lm_head\.", r"classification_head\.", r"classifier\.", r"qa_outputs\.",
            *((rf"{prefix}decoder\.",) if head in ENCODER_HEADS else ()),
        ),
        tied=tied | ({"lm_head.weight": table} if config.tied else {}),
    )  # fmt: skip


def _stack_rules(ours: str, theirs: str, config: Config) -> list[Rule]:
    """The sub-layers of a block are numbered: attention, in a decoder cross-attention, and the mlp."""
    block = f"{theirs}.block.{{layer}}.layer"
    attentions = [("attention", "0", "SelfAttention")]
    if ours == "decoder":
        attentions.append(("cross_attention", "1", "EncDecAttention"))
    first = f"{theirs}.block.0.layer.0.SelfAttention"
    rules = [
        Rule(f"{ours}/relative_bias", f"{first}.relative_attention_bias.weight"),
        *norm(f"{ours}/final_norm", f"{theirs}.final_layer_norm", bias=False),
    ]
    for name, number, part in attentions:
        rules += norm(f"{ours}/layers/{name}_norm", f"{block}.{number}.layer_norm", bias=False)
        for projection in ("query", "key", "value", "out"):
            rules += linear(f"{ours}/layers/{name}/{projection}", f"{block}.{number}.{part}.{projection[0]}", bias=False)
    mlp = f"{block}.{len(attentions)}"
    rules += norm(f"{ours}/layers/mlp_norm", f"{mlp}.layer_norm", bias=False)
    projections = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if config.gated else {"up": "wi", "down": "wo"}
    for projection, part in projections.items():
        rules += linear(f"{ours}/layers/mlp/{projection}", f"{mlp}.DenseReluDense.{part}", bias=False)
    return rules
