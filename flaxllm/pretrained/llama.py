"""Llama, Mistral, Qwen2, Qwen3 and SmolLM2 (which is a llama) as Hugging Face publishes them."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from flaxllm.data.json_file import brief
from flaxllm.errors import InputError
from flaxllm.models.llama import UNSCALED, Config
from flaxllm.pretrained.config_file import ACTIVATIONS, Keys, activation_name, common_keys, labels_of, special_tokens
from flaxllm.pretrained.names import Names, Rule, linear, norm

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_CLASSES = {
    "Model": None,
    "ForCausalLM": "causal-lm",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
ARCHITECTURES = {name.capitalize() + end: head for name in MODEL_TYPES for end, head in _CLASSES.items()}

# What transformers takes where a config.json does not say.
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
_DEFAULTS = {
    "llama": _TOKENS,
    "mistral": _TOKENS | {"sliding_window": 4096, "num_key_value_heads": 8},
    "qwen2": {"sliding_window": 4096, "max_window_layers": 28, "num_key_value_heads": 32},
    "qwen3": {"sliding_window": 4096, "max_window_layers": 28, "num_key_value_heads": 32, "head_dim": 128},
}
_SLIDING = {"full_attention": False, "sliding_attention": True}
_MAX_LAYERS = 10**4  # of which each is listed

# The rope_type of a config.json to our kind of scaling, and the keys of its turns there.
_SCALINGS = {"default": UNSCALED, "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
_TURNS = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}
_YARN_TURNS = {"beta_slow": 1.0, "beta_fast": 32.0}  # as its paper has them


def read_config(keys: Keys, names: Collection[str]) -> Config:
    kind = keys.model_type
    keys = dataclasses.replace(keys, values={**_DEFAULTS[kind], **keys.values})
    keys.only("pretraining_tp", 1)
    num_heads = keys.integer("num_attention_heads")
    head_dim = keys.integer("head_dim", None)
    biased = kind in ("llama", "qwen3") and keys.switch("attention_bias", False)
    return Config(
        vocab_size=keys.integer("vocab_size"),
        max_len=keys.integer("max_position_embeddings"),
        num_layers=keys.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=keys.integer("num_key_value_heads", num_heads),
        head_dim=keys.quotient("hidden_size", "num_attention_heads") if head_dim is None else head_dim,
        d_model=keys.integer("hidden_size"),
        d_mlp=keys.integer("intermediate_size"),
        activation=keys.choice("hidden_act", ACTIVATIONS, "silu"),
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        attention_bias=biased or kind == "qwen2",
        attention_out_bias=biased,
        mlp_bias=kind == "llama" and keys.switch("mlp_bias", False),
        head_norm=kind == "qwen3",
        tied=keys.switch("tie_word_embeddings", False),
        attention_dropout=keys.number("attention_dropout", 0.0),
        init_stddev=keys.number("initializer_range", 0.02),
        labels=labels_of(keys),
        **_read_window(keys),
        **_read_rope(keys),
        **special_tokens(keys),
    )


def _read_window(keys: Keys) -> dict[str, Any]:
    """The fields `window` and `windowed`."""
    window, num_layers = keys.integer("sliding_window", None), keys.integer("num_hidden_layers")
    qwen = keys.model_type in ("qwen2", "qwen3")
    if window is None or keys.model_type == "llama" or (qwen and not keys.switch("use_sliding_window", False)):
        return {}
    if not qwen:
        return {"window": window}
    if not 1 <= num_layers <= _MAX_LAYERS:
        raise InputError(f"{keys.file} has num_hidden_layers {brief(num_layers)}: expected 1 to {_MAX_LAYERS}")
    first = keys.integer("max_window_layers")
    default = ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]
    types = keys.get("layer_types", default)
    if not isinstance(types, list) or len(types) != num_layers or not all(name in [*_SLIDING] for name in types):
        raise InputError(
            f"{keys.file} has the layer_types {brief(types)}: expected 'full_attention' or 'sliding_attention' for each of its "
            f"{num_layers} layers"
        )
    windowed = _shortest_cycle([_SLIDING[name] for name in types])
    return {"window": window, "windowed": windowed} if any(windowed) else {}


def _shortest_cycle(pattern: list[bool]) -> tuple[bool, ...]:
    """What the pattern repeats; the shorter it is, the fewer layers are compiled."""
    lengths = (n for n in range(1, len(pattern) + 1) if len(pattern) % n == 0)
    return next(tuple(pattern[:n]) for n in lengths if pattern[:n] * (len(pattern) // n) == pattern)


def _read_rope(keys: Keys) -> dict[str, Any]:
    """The fields of the rotation. transformers 5 writes rope_parameters; before, rope_theta stood beside rope_scaling."""
    section = "rope_scaling" if keys.get("rope_scaling", None) else "rope_parameters"
    values = keys.get(section, {})
    if not isinstance(values, Mapping) or any(isinstance(value, Mapping) for value in values.values()):
        raise InputError(f"{keys.file} has {section} {values!r}: expected one object with a rope_type, for all layers alike")
    values = {**values, "rope_type": values.get("rope_type") or values.get("type") or "default"}
    rope = Keys({"model_type": keys.model_type, **values}, f"the {section} of {keys.file}")
    _check_rope(keys, rope)
    rope_type = rope.get("rope_type")
    fields = {
        "rope_base": rope.number("rope_theta", keys.number("rope_theta", 10_000.0)),
        "rope_scaling": _SCALINGS[rope_type],
    }
    if rope_type != "default":
        fields["rope_factor"] = rope.number("factor")
    if rope_type in _TURNS:
        outer = keys.integer("original_max_position_embeddings", None)
        inner = rope.integer("original_max_position_embeddings", keys.integer("max_position_embeddings"))
        slow, fast = (rope.number(name, *_default_turns(name)) for name in _TURNS[rope_type])
        fields |= {
            "rope_original_len": inner if outer is None else outer,
            "rope_slow_turns": slow,
            "rope_fast_turns": fast,
        }
    return fields


def _check_rope(keys: Keys, rope: Keys) -> None:
    """Refuse what the rotation here does not do."""
    rope.only("rope_type", *_SCALINGS)
    for where in (keys, rope):
        where.only("partial_rotary_factor", 1.0)
    rope.only("truncate", True)
    for name in ("attention_factor", "mscale", "mscale_all_dim"):
        if rope.get(name, None) is not None:
            raise InputError(f"{rope.file} has {name}, which flaxllm does not compute: only the paper's own can be loaded")


def _default_turns(name: str) -> tuple[float, ...]:
    return (_YARN_TURNS[name],) if name in _YARN_TURNS else ()


def write_config(config: Config, head: str | None) -> dict[str, Any]:
    """A config.json of the first of `MODEL_TYPES` that can say what this model is. It has no place for `dropout`."""
    kind = _model_type(config)
    rope = _rope_parameters(config)
    return common_keys(config) | _window_keys(config, kind) | {
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_len,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_mlp,
        "hidden_act": activation_name(config.activation),
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        # What transformers before version 5 reads in place of it.
        "rope_theta": config.rope_base,
        "rope_scaling": None if config.rope_scaling == UNSCALED else rope,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.init_stddev,
    }


def _model_type(config: Config) -> str:
    biases = (config.attention_bias, config.attention_out_bias, config.mlp_bias)
    one_bias = config.attention_bias == config.attention_out_bias
    can_say = {
        "llama": not config.head_norm and one_bias and config.window is None and config.d_model % config.num_heads == 0,
        "mistral": not config.head_norm and not any(biases) and all(config.windowed),
        "qwen2": not config.head_norm and biases == (True, False, False),
        "qwen3": config.head_norm and one_bias and not config.mlp_bias,
    }
    for kind in MODEL_TYPES:
        if can_say[kind]:
            return kind
    asked = ", ".join(f"{name} {getattr(config, name)}" for name in (
        "attention_bias", "attention_out_bias", "mlp_bias", "head_norm", "window", "windowed"))  # fmt: skip
    raise InputError(
        f"none of the checkpoints {', '.join(MODEL_TYPES)} can hold a model with {asked}: change these fields to those of one"
    )


def _window_keys(config: Config, kind: str) -> dict[str, Any]:
    if kind == "llama":
        return {}
    if kind == "mistral":
        return {"sliding_window": config.window}
    windowed = config.windowed if config.window else (False,)
    windowed *= config.num_layers // len(windowed)
    return {
        "use_sliding_window": any(windowed),
        "sliding_window": config.window,
        "max_window_layers": windowed.index(True) if any(windowed) else config.num_layers,
        "layer_types": ["sliding_attention" if banded else "full_attention" for banded in windowed],
    }


def _rope_parameters(config: Config) -> dict[str, Any]:
    rope_type = next(theirs for theirs, ours in _SCALINGS.items() if ours == config.rope_scaling)
    rope: dict[str, Any] = {"rope_type": rope_type, "rope_theta": config.rope_base}
    if rope_type != "default":
        rope["factor"] = config.rope_factor
    if rope_type in _TURNS:
        slow, fast = _TURNS[rope_type]
        rope["original_max_position_embeddings"] = config.rope_original_len
        rope |= {slow: config.rope_slow_turns, fast: config.rope_fast_turns}
    return rope


def names(config: Config, head: str | None) -> Names:
    # Of the classes for question answering, only Mistral's calls the model "model".
    old = head == "question-answering" and _model_type(config) != "mistral"
    base, other = ("transformer", "model") if old else ("model", "transformer")
    layer, attention = f"{base}.layers.{{layer}}", f"{base}.layers.{{layer}}.self_attn"
    rules = [
        Rule("embedding/tokens", f"{base}.embed_tokens.weight"),
        *norm("final_norm", f"{base}.norm", bias=False),
        *norm("layers/attention_norm", f"{layer}.input_layernorm", bias=False),
        *norm("layers/mlp_norm", f"{layer}.post_attention_layernorm", bias=False),
        *linear("layers/attention/query", f"{attention}.q_proj", config.attention_bias),
        *linear("layers/attention/key", f"{attention}.k_proj", config.attention_bias),
        *linear("layers/attention/value", f"{attention}.v_proj", config.attention_bias),
        *linear("layers/attention/out", f"{attention}.o_proj", config.attention_out_bias),
    ]
    for name in ("gate", "up", "down"):
        rules += linear(f"layers/mlp/{name}", f"{layer}.mlp.{name}_proj", config.mlp_bias)
    if config.head_norm:
        for name, theirs in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
            rules += norm(f"layers/attention/{name}", f"{attention}.{theirs}", bias=False)
    if head == "causal-lm" and not config.tied:
        rules.append(Rule("head/table", "lm_head.weight"))
    elif head in ("sequence-classification", "token-classification"):
        rules += linear("head/out", "score", bias=head == "token-classification")
    elif head == "question-answering":
        rules += linear("head/out", "qa_outputs")
    return Names(
        tuple(rules),
        prefix=f"{base}.",
        aliases=((rf"^{other}\.", f"{base}."),),
        buffers=(rf"{base}\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq$",),
        heads=(r"lm_head\.", r"score\.", r"qa_outputs\."),
        tied={"lm_head.weight": f"{base}.embed_tokens.weight"} if config.tied else {},
    )
