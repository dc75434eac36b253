"""GPT-2 as Hugging Face publishes it: its config.json and the names of its tensors."""

from collections.abc import Collection
from typing import Any

from flaxllm.errors import InputError
from flaxllm.models.gpt import Config
from flaxllm.pretrained.config_file import ACTIVATIONS, Keys, activation_name, common_keys, labels_of, special_tokens
from flaxllm.pretrained.names import Names, Rule, linear, norm

MODEL_TYPES = ("gpt2",)
ARCHITECTURES = {
    "GPT2Model": None,
    "GPT2LMHeadModel": "causal-lm",
    "GPT2ForSequenceClassification": "sequence-classification",
    "GPT2ForTokenClassification": "token-classification",
    "GPT2ForQuestionAnswering": "question-answering",
}


def read_config(keys: Keys, names: Collection[str]) -> Config:
    keys.only("scale_attn_weights", True)
    keys.only("scale_attn_by_inverse_layer_idx", False)
    keys.only("add_cross_attention", False)
    keys.only("tie_word_embeddings", True)
    d_model = keys.integer("n_embd")
    return Config(
        vocab_size=keys.integer("vocab_size"),
        max_len=keys.integer("n_positions"),
        num_layers=keys.integer("n_layer"),
        num_heads=keys.integer("n_head"),
        head_dim=keys.quotient("n_embd", "n_head"),
        d_model=d_model,
        d_mlp=keys.integer("n_inner", 4 * d_model),
        activation=keys.choice("activation_function", ACTIVATIONS, "gelu_new"),
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        dropout=keys.number("resid_pdrop", 0.1),
        attention_dropout=keys.number("attn_pdrop", 0.1),
        init_stddev=keys.number("initializer_range", 0.02),
        labels=labels_of(keys),
        **special_tokens(keys),
    )


def write_config(config: Config, head: str | None) -> dict[str, Any]:
    if config.window is not None or config.num_heads * config.head_dim != config.d_model:
        raise InputError(
            "a GPT-2 checkpoint holds no banded attention and heads that span the width: this model has window "
            f"{config.window} and {config.num_heads} heads of {config.head_dim} at width {config.d_model}"
        )
    return common_keys(config) | {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_len,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_embd": config.d_model,
        "n_inner": config.d_mlp,
        "activation_function": activation_name(config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "initializer_range": config.init_stddev,
    }


def names(config: Config, head: str | None) -> Names:
    rules = [
        Rule("embedding/tokens", "transformer.wte.weight"),
        Rule("embedding/positions", "transformer.wpe.weight"),
        *norm("final_norm", "transformer.ln_f"),
        *norm("layers/attention_norm", "transformer.h.{layer}.ln_1"),
        *norm("layers/mlp_norm", "transformer.h.{layer}.ln_2"),
        *linear("layers/attention/out", "transformer.h.{layer}.attn.c_proj", inputs_first=True),
        *linear("layers/mlp/up", "transformer.h.{layer}.mlp.c_fc", inputs_first=True),
        *linear("layers/mlp/down", "transformer.h.{layer}.mlp.c_proj", inputs_first=True),
    ]
    for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
        projections = tuple(f"layers/attention/{name}/{ours}" for name in ("query", "key", "value"))
        rules.append(Rule(projections, f"transformer.h.{{layer}}.attn.c_attn.{theirs}", inputs_first=True))
    if head == "sequence-classification":
        rules += linear("head/out", "score", bias=False)
    elif head in ("token-classification", "question-answering"):
        rules += linear("head/out", "classifier" if head == "token-classification" else "qa_outputs")
    return Names(
        tuple(rules),
        prefix="transformer.",
        buffers=(r"transformer\.h\.\d+\.attn\.(masked_)?bias$",),
        heads=(r"score\.", r"classifier\.", r"qa_outputs\."),
        tied={"lm_head.weight": "transformer.wte.weight"},
    )

