"""BERT, RoBERTa (with XLM-RoBERTa and CamemBERT) and DistilBERT as Hugging Face publishes them."""

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

from flaxllm.errors import InputError
from flaxllm.models.bert import VARIANTS, VOCABULARY_HEADS, Config, has_pooler
from flaxllm.pretrained.config_file import ACTIVATIONS, Keys, activation_name, common_keys, labels_of, special_tokens
from flaxllm.pretrained.names import Names, Rule, linear, norm

MODEL_TYPES = VARIANTS
_CLASSES = {
    "Model": None,
    "ForMaskedLM": "masked-lm",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
ARCHITECTURES = {
    "BertForPreTraining": "pretraining",
    "BertForNextSentencePrediction": "next-sentence",
    **{
        model + end: head
        for model in ("Bert", "Roberta", "XLMRoberta", "Camembert", "DistilBert")
        for end, head in _CLASSES.items()
    },
}

# What transformers takes where a config.json does not say.
_TOKENS = {"pad_token_id": 0}
_ROBERTA_TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_DISTILBERT_NORM_EPS = 1e-12  # fixed: its config has no key for it


class _Form(NamedTuple):
    """What sets the names of one kind of checkpoint apart. `layers`, and `layer` in them: where the parts of a layer are;
    `transform`, `transform_norm`, `bias` and `decoder`: the head of a vocabulary; `sequence`: that of a sequence."""

    base: str
    layers: str
    layer: dict[str, str]
    transform: str
    transform_norm: str
    bias: str
    decoder: str
    sequence: dict[str, str]


_LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_BERT = _Form(
    base="bert",
    layers="encoder.layer",
    layer=_LAYER,
    transform="cls.predictions.transform.dense",
    transform_norm="cls.predictions.transform.LayerNorm",
    bias="cls.predictions.bias",
    decoder="cls.predictions.decoder",
    sequence={"head/out": "classifier"},
)
_ROBERTA = _Form(
    base="roberta",
    layers="encoder.layer",
    layer=_LAYER,
    transform="lm_head.dense",
    transform_norm="lm_head.layer_norm",
    bias="lm_head.bias",
    decoder="lm_head.decoder",
    sequence={"head/inner": "classifier.dense", "head/out": "classifier.out_proj"},
)
_DISTILBERT = _Form(
    base="distilbert",
    layers="transformer.layer",
    layer={
        "attention/query": "attention.q_lin",
        "attention/key": "attention.k_lin",
        "attention/value": "attention.v_lin",
        "attention/out": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "mlp/up": "ffn.lin1",
        "mlp/down": "ffn.lin2",
        "mlp_norm": "output_layer_norm",
    },
    transform="vocab_transform",
    transform_norm="vocab_layer_norm",
    bias="vocab_projector.bias",
    decoder="vocab_projector",
    sequence={"head/inner": "pre_classifier", "head/out": "classifier"},
)


def _form(variant: str) -> _Form:
    return {"bert": _BERT, "distilbert": _DISTILBERT}.get(variant, _ROBERTA)


def read_config(keys: Keys, names: Collection[str]) -> Config:
    variant = keys.model_type
    form = _form(variant)
    keys.only("is_decoder", False)
    keys.only("add_cross_attention", False)
    keys.only("position_embedding_type", "absolute")
    keys.only("pruned_heads", {})
    keys = dataclasses.replace(keys, values={**(_ROBERTA_TOKENS if form is _ROBERTA else _TOKENS), **keys.values})
    offset = keys.integer("pad_token_id") + 1 if form is _ROBERTA else 0
    return Config(
        variant=variant,
        vocab_size=keys.integer("vocab_size"),
        max_len=keys.integer("max_position_embeddings") - offset,
        position_offset=offset,
        pooler=any(name.endswith("pooler.dense.weight") for name in names),
        tied=keys.switch("tie_word_embeddings", True),
        init_stddev=keys.number("initializer_range", 0.02),
        labels=labels_of(keys),
        **special_tokens(keys),
        **(_read_distilbert(keys) if form is _DISTILBERT else _read_bert(keys, form)),
    )


def _read_bert(keys: Keys, form: _Form) -> dict[str, Any]:
    activation = keys.choice("hidden_act", ACTIVATIONS, "gelu")
    return {
        "num_layers": keys.integer("num_hidden_layers"),
        "num_heads": keys.integer("num_attention_heads"),
        "head_dim": keys.quotient("hidden_size", "num_attention_heads"),
        "d_model": keys.integer("hidden_size"),
        "d_mlp": keys.integer("intermediate_size"),
        "num_token_types": keys.integer("type_vocab_size", 2),
        "activation": activation,
        "transform_activation": "gelu" if form is _ROBERTA and activation != "gelu" else None,
        "norm_eps": keys.number("layer_norm_eps", 1e-12),
        "dropout": keys.number("hidden_dropout_prob", 0.1),
        "attention_dropout": keys.number("attention_probs_dropout_prob", 0.1),
        "classifier_dropout": keys.number("classifier_dropout", None),
    }


def _read_distilbert(keys: Keys) -> dict[str, Any]:
    """Its sinusoidal positions need no key: they are in the checkpoint like learned ones."""
    return {
        "num_layers": keys.integer("n_layers"),
        "num_heads": keys.integer("n_heads"),
        "head_dim": keys.quotient("dim", "n_heads"),
        "d_model": keys.integer("dim"),
        "d_mlp": keys.integer("hidden_dim"),
        "num_token_types": 0,
        "activation": keys.choice("activation", ACTIVATIONS, "gelu"),
        "norm_eps": _DISTILBERT_NORM_EPS,
        "dropout": keys.number("dropout", 0.1),
        "attention_dropout": keys.number("attention_dropout", 0.1),
        "classifier_dropout": keys.number("seq_classif_dropout", 0.2),
        "span_dropout": keys.number("qa_dropout", 0.1),
    }


def write_config(config: Config, head: str | None) -> dict[str, Any]:
    form = _form(config.variant)
    _check_form(config, head, form)
    shared = common_keys(config) | {
        "model_type": config.variant,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_len + config.position_offset,
        "initializer_range": config.init_stddev,
        "tie_word_embeddings": config.tied,
    }
    if form is _DISTILBERT:
        classifier_dropout = config.dropout if config.classifier_dropout is None else config.classifier_dropout
        return shared | {
            "n_layers": config.num_layers,
            "n_heads": config.num_heads,
            "dim": config.d_model,
            "hidden_dim": config.d_mlp,
            "activation": activation_name(config.activation),
            "dropout": config.dropout,
            "attention_dropout": config.attention_dropout,
            "seq_classif_dropout": classifier_dropout,
            "qa_dropout": config.span_dropout,
        }
    return shared | {
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_mlp,
        "type_vocab_size": config.num_token_types,
        "hidden_act": activation_name(config.activation),
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "classifier_dropout": config.classifier_dropout,
    }


def _check_form(config: Config, head: str | None, form: _Form) -> None:
    """Refuse what a checkpoint of this kind cannot say."""
    is_and_must = {"width of all heads": (config.num_heads * config.head_dim, config.d_model)}
    if form is _DISTILBERT:
        is_and_must["pooler"] = (config.pooler, False)
        is_and_must["num_token_types"] = (config.num_token_types, 0)
        is_and_must["norm_eps"] = (config.norm_eps, _DISTILBERT_NORM_EPS)
    else:
        is_and_must["num_token_types"] = (config.num_token_types, max(config.num_token_types, 1))
        is_and_must["span_dropout"] = (config.span_dropout, 0.0)
    if form is _ROBERTA:
        is_and_must["pad_token"] = (config.pad_token, config.position_offset - 1)
    else:
        is_and_must["position_offset"] = (config.position_offset, 0)
    if head in VOCABULARY_HEADS:
        transform = config.transform_activation or config.activation
        is_and_must["transform_activation"] = (transform, "gelu" if form is _ROBERTA else config.activation)
    for name, (value, must) in is_and_must.items():
        if value != must:
            raise InputError(
                f"a {config.variant} checkpoint cannot hold this model: its {name} is {value} and would have to be {must}; "
                "change it, or the variant"
            )


def names(config: Config, head: str | None) -> Names:
    form = _form(config.variant)
    word_embeddings = f"{form.base}.embeddings.word_embeddings.weight"
    rules = [
        Rule("embedding/tokens", word_embeddings),
        Rule("embedding/positions", f"{form.base}.embeddings.position_embeddings.weight"),
        *norm("embedding/norm", f"{form.base}.embeddings.LayerNorm"),
    ]
    if config.num_token_types:
        rules.append(Rule("embedding/token_types", f"{form.base}.embeddings.token_type_embeddings.weight"))
    for ours, theirs in form.layer.items():
        layer = norm if ours.endswith("norm") else linear
        rules += layer(f"layers/{ours}", f"{form.base}.{form.layers}.{{layer}}.{theirs}")
    if has_pooler(config, head):
        rules += linear("pooler", f"{form.base}.pooler.dense")
    for ours, theirs in _classifier(form, head).items():
        rules += linear(ours, theirs)
    tied = {f"{form.decoder}.weight": word_embeddings} if config.tied else {}
    if head in VOCABULARY_HEADS:
        rules += linear("head/transform", form.transform) + norm("head/norm", form.transform_norm)
        if config.tied:
            rules.append(Rule("head/vocabulary/bias", form.bias))
            tied |= {f"{form.decoder}.bias": form.bias} if form.bias != f"{form.decoder}.bias" else {}
        else:
            rules += linear("head/vocabulary", form.decoder)
    return Names(
        tuple(rules),
        prefix=f"{form.base}.",
        aliases=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
        buffers=(rf"{form.base}\.embeddings\.(position_ids|token_type_ids)$",),
        heads=(r"cls\.", r"lm_head\.", r"vocab_\w+\.", r"(pre_)?classifier\.", r"qa_outputs\."),
        tied=tied,
    )


def _classifier(form: _Form, head: str | None) -> dict[str, str]:
    """The dense layers of a head with few classes."""
    return {
        "sequence-classification": form.sequence,
        "token-classification": {"head/out": "classifier"},
        "question-answering": {"head/out": "qa_outputs"},
        "next-sentence": {"head/out": "cls.seq_relationship"},
        "pretraining": {"head/out": "cls.seq_relationship"},
    }.get(head, {})
