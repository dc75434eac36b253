"""Classes of texts: those that a model was trained for, or any that are named (Yin et al. 2019)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxllm.data.encoding import check_texts
from flaxllm.data.json_file import brief
from flaxllm.errors import InputError, did_you_mean
from flaxllm.pipelines.loaded import Loaded, encode, listed, logits, run, softmax

_FUNCTIONS = {"softmax": softmax, "sigmoid": lambda x: 1 / (1 + np.exp(-x.astype(np.float64))), "none": lambda x: x}
_OF_PROBLEM = {"regression": "none", "multi_label_classification": "sigmoid", "single_label_classification": "softmax"}

Text = str | Mapping[str, str]


def text_classification(
    at: Loaded,
    inputs: Text | Sequence[Text],
    *,
    top_k: int | None = 0,
    function_to_apply: str | None = None,
    truncation: bool = False,
) -> dict | list:
    """The likeliest label of each text, or of each pair `{"text": ..., "text_pair": ...}`, as `{"label": ..., "score": ...}`.

    With `top_k` each has a list of so many labels, of all where it is None. `function_to_apply` makes scores of logits:
    "softmax", "sigmoid" or "none"; unless given, what the config's problem_type asks for, or else "sigmoid" for one class and
    "softmax" for several. As in transformers, a text alone gives a list, though it be of one label.
    """
    single = isinstance(inputs, str | Mapping)
    given = [_parts(text, number) for number, text in enumerate([inputs] if single else inputs)]
    encoded = [encode(at, *parts, number, truncation) for number, parts in enumerate(given)]
    labels = at.model.config.labels
    default = _OF_PROBLEM.get(at.config.get("problem_type"), "softmax" if len(labels) > 1 else "sigmoid")
    name = function_to_apply or default
    if name not in _FUNCTIONS:
        raise InputError(f"function_to_apply cannot be {name!r}: {did_you_mean(name, _FUNCTIONS)}")
    if top_k is not None and top_k < 0:
        raise InputError(f"top_k is {top_k}: expected a number of labels, or None for all")
    results = []
    for (row,) in run(at, logits, encoded):
        scores = _FUNCTIONS[name](row)
        best = [{"label": labels[index], "score": float(scores[index])} for index in np.argsort(-scores, kind="stable")]
        results.append(best[0] if top_k == 0 else best[:top_k])
    if not single:
        return results
    return results if top_k == 0 and isinstance(inputs, str) else results[0]


def _parts(given: Any, number: int) -> tuple[str, str | None]:
    """A text and, of a pair, the other one."""
    parts = dict(given) if isinstance(given, Mapping) else {"text": given}
    text, pair = parts.pop("text", None), parts.pop("text_pair", None)
    if parts or not isinstance(text, str) or not isinstance(pair, str | None):
        raise InputError(f'text {number} is {brief(given)}: expected a string, or {{"text": ..., "text_pair": ...}}')
    return text, pair


def zero_shot_classification(
    at: Loaded,
    sequences: str | Sequence[str],
    candidate_labels: str | Sequence[str] = (),
    *,
    hypothesis_template: str = "This example is {}.",
    multi_label: bool = False,
    truncation: bool = False,
) -> dict | list[dict]:
    """How well each of the `candidate_labels` (or of a string's, between commas) fits a text, the best first, by a model of
    natural language inference: whether the text entails the template with the label in it.

    The scores of a text add up to 1 (a softmax over entailment); with `multi_label` each is of its label alone (entailment
    against contradiction). Gives `{"sequence": ..., "labels": [...], "scores": [...]}`.

    Raises:
      InputError: there are no labels, no place for them in the template, or no class of the model is entailment.
    """
    texts = listed(sequences)
    labels = candidate_labels.split(",") if isinstance(candidate_labels, str) else list(candidate_labels)
    check_texts(labels, "candidate label")
    labels = [label.strip() for label in labels if label.strip()]
    if not labels:
        raise InputError("zero-shot-classification has no labels to choose from: give candidate_labels=['sport', 'politics']")
    if "{}" not in hypothesis_template:
        raise InputError(f"hypothesis_template is {hypothesis_template!r}: expected {{}} in it, in the label's place")
    entailment = _entailment(at.model.config.labels)
    encoded = [
        encode(at, text, hypothesis_template.replace("{}", label), number, truncation, cuts="only_first")
        for number, text in enumerate(texts)
        for label in labels
    ]
    classes = np.array([row for (row,) in run(at, logits, encoded)]).reshape(len(texts), len(labels), -1)
    if multi_label or len(labels) == 1:
        scores = softmax(classes[:, :, [-1 if entailment == 0 else 0, entailment]])[..., 1]
    else:
        scores = softmax(classes[:, :, entailment])
    results = []
    for text, of in zip(texts, scores):
        order = np.argsort(-of, kind="stable")
        results.append({"sequence": text, "labels": [labels[i] for i in order], "scores": of[order].tolist()})
    return results[0] if isinstance(sequences, str) else results


def _entailment(labels: tuple[str, ...]) -> int:
    for index, label in enumerate(labels):
        if label.lower().startswith("entail"):
            return index
    raise InputError(
        f"this model has the labels {brief(list(labels))}, and none begins with 'entail': zero-shot-classification needs a model "
        "of natural language inference, whose config names it"
    )
