"""Tiny random models with their tokenizers, and what their pipelines are asked: the same for this package and transformers."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from data.frozen_tokenizers import load, read
from flaxllm import nn
from flaxllm.models import build
from flaxllm.pretrained import save_pretrained

FIXTURES = Path(__file__).parent / "fixtures" / "pipelines.json"
SIZES = dict(num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=24)
TEXTS = ["The quick brown fox", "A class is an object; don't they'll say I'm late!", "No", "caf\u00e9 stra\u00dfe, \u8a9e\u8a9e end"]
LONG = "The quick brown fox jumps over the lazy dog and then sleeps for a very long while, as foxes of that kind would do."
ENTITIES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")
PREMISE = "The quick brown fox jumps"
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "So is mine."}, {"role": "user", "content": "The dog"}]

Call = tuple[tuple, dict[str, Any]]


class Case(NamedTuple):
    """A pipeline, and calls of it. `more` are keys of config.json that no model of ours keeps."""

    task: str
    family: str
    tokenizer: str
    calls: list[Call]
    head: str | None
    config: dict[str, Any] = {}
    more: dict[str, Any] = {}
    max_len: int | None = None  # the tokenizer's
    gain: float = 1.0
    chat: bool = False


def _calls(*calls: Any) -> list[Call]:
    return [(call[:-1], call[-1]) if isinstance(call, tuple) else ((call,), {}) for call in calls]


PAIR = {"text": TEXTS[0], "text_pair": TEXTS[1]}
_CLASSES = _calls(
    TEXTS[0], TEXTS, (TEXTS[1], dict(top_k=2)), (TEXTS, dict(top_k=None)), (TEXTS[0], dict(top_k=1)),
    (TEXTS[0], dict(function_to_apply="sigmoid", top_k=None)), (TEXTS, dict(function_to_apply="none")), PAIR,
    [PAIR, {"text": TEXTS[2], "text_pair": TEXTS[0]}], (PAIR, dict(top_k=3)),
)  # fmt: skip
_TOKENS = [
    ((TEXTS,), dict(aggregation_strategy=strategy, **ignored))
    for strategy in ("none", "simple", "first", "average", "max")
    for ignored in ({}, dict(ignore_labels=[]))
] + _calls(TEXTS[1])
_NLI = dict(labels=("contradiction", "neutral", "entailment"))
_LABELS = ["a dog", "quick", "late"]
_ZERO_SHOT = _calls(
    (PREMISE, dict(candidate_labels=_LABELS)), (TEXTS, dict(candidate_labels="a dog, quick,late")),
    (PREMISE, dict(candidate_labels=_LABELS, multi_label=True)), (PREMISE, dict(candidate_labels=["quick"])),
    ([PREMISE], dict(candidate_labels=_LABELS, hypothesis_template="It is {}, and {}!".replace("and {}", "no more"))),
)  # fmt: skip


def _masks(mask: str) -> list[Call]:
    one, two = f"The quick {mask} fox", f"The {mask} brown {mask} is here."
    return _calls(
        [one, f"{mask} is it"], (two, dict(top_k=2)), (one, dict(targets=["fox", "dog", "the"])), one,
    )  # fmt: skip


_PROMPTS = _calls(
    ("The quick", dict(max_new_tokens=6)), (["A class is", "The"], dict(max_new_tokens=6, return_full_text=False))
)  # fmt: skip

CASES = {
    "classes": Case("text-classification", "bert", "bert", _CLASSES, "sequence-classification", _NLI),
    "sentiment of roberta": Case(
        "sentiment-analysis", "bert", "roberta", _CLASSES[:4], "sequence-classification",
        dict(variant="roberta", num_token_types=1, position_offset=2, pad_token=1, pooler=False),
    ),
    "classes of gpt": Case("text-classification", "gpt", "gpt2", _CLASSES[:1], "sequence-classification", _NLI),
    "one class": Case("text-classification", "bert", "bert", _CLASSES[:3], "sequence-classification", dict(labels=("score",))),
    "regression": Case(
        "text-classification", "bert", "bert", _CLASSES[:3], "sequence-classification", _NLI, dict(problem_type="regression")
    ),
    "several labels": Case(
        "text-classification", "bert", "bert", _CLASSES[:4], "sequence-classification", _NLI,
        dict(problem_type="multi_label_classification"),
    ),
    "tokens": Case("token-classification", "bert", "bert_cased", _TOKENS, "token-classification", dict(labels=ENTITIES)),
    "tokens of roberta": Case(
        "ner", "bert", "roberta", _TOKENS, "token-classification",
        dict(variant="roberta", num_token_types=1, position_offset=2, pad_token=1, pooler=False, labels=ENTITIES),
    ),
    "tokens in windows": Case(
        "ner", "bert", "bert",
        [((LONG,), dict(aggregation_strategy=s, stride=n, ignore_labels=[])) for s in ("simple", "first") for n in (4, 9)],
        "token-classification", dict(labels=ENTITIES), max_len=20,
    ),
    "masks": Case("fill-mask", "bert", "bert", _masks("[MASK]"), "masked-lm"),
    "masks of roberta": Case(
        "fill-mask", "bert", "roberta", _masks("<mask>")[:2], "masked-lm",
        dict(variant="roberta", num_token_types=1, position_offset=2, pad_token=1, pooler=False),
    ),
    "features": Case("feature-extraction", "bert", "bert", _calls(TEXTS[0], TEXTS[1:3]), None),
    "features of gpt": Case("feature-extraction", "gpt", "gpt2", _calls(TEXTS[2:3]), None),
    "any labels": Case("zero-shot-classification", "bert", "bert", _ZERO_SHOT, "sequence-classification", _NLI),
    "any labels, entailment first": Case(
        "zero-shot-classification", "bert", "bert", _ZERO_SHOT[2:4], "sequence-classification", dict(labels=_NLI["labels"][::-1])
    ),
    "prompts": Case("text-generation", "gpt", "gpt2", _PROMPTS, "causal-lm", gain=2.0),
    "chats": Case(
        "text-generation", "llama", "qwen2",
        _calls((CHAT, dict(max_new_tokens=6)), ([CHAT, CHAT[:1]], dict(max_new_tokens=6, return_full_text=False))), "causal-lm",
        dict(num_kv_heads=2),
        gain=2.0, chat=True,
    ),
}  # fmt: skip


def write(case: Case, folder: Path) -> Path:
    """The case's checkpoint, as people have them."""
    tokenizer = dataclasses.replace(load(case.tokenizer), max_len=case.max_len or 64)
    template = read("qwen2/tokenizer_config.json").get("chat_template") if case.chat else None
    tokenizer = dataclasses.replace(tokenizer, chat_template=template)
    model = build(case.family, SIZES | dict(vocab_size=tokenizer.vocab_size, max_len=64) | case.config, head=case.head)
    specs = nn.flatten(model.param_specs())
    params = nn.unflatten({path: _draw(path, spec, case.gain) for path, spec in specs.items()})
    save_pretrained(folder, model, jax.tree.map(jax.device_put, params), tokenizer)
    config = json.loads((folder / "config.json").read_text()) | case.more
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _draw(path: str, spec: nn.Param, gain: float) -> np.ndarray:
    """A tensor that depends on its path."""
    x = np.random.default_rng([*path.encode()]).normal(size=spec.shape).astype(np.float32)
    if path.endswith("scale"):
        return 1.2 + 0.2 * x
    return x * np.float32(0.7 if spec.is_lookup else 1.6 * gain / np.sqrt(spec.fan_in) if spec.is_matrix else 0.3)


def asked(call: Call, task: str) -> tuple[tuple, dict[str, Any]]:
    """A call's arguments; what is written is the likeliest, as no draw is the same elsewhere."""
    inputs, options = call
    return inputs, options | (dict(do_sample=False) if task == "text-generation" else {})
