"""Extractive question answering, by the definitions of SQuAD's own evaluation scripts (evaluate-v1.1.py, evaluate-v2.0.py).

An answer is normalised before it is compared: lower case, no ASCII punctuation, no articles (a, an, the), single spaces. It is
compared with each reference, and the best comparison counts.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from flaxllm.errors import InputError
from flaxllm.metrics.inputs import check_pairs

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`exact_match` and `f1` of SQuAD 1.1, 0 to 100 (Rajpurkar et al. 2016, section 6.1).

    A reference is the list of a question's true answers, one at least.

    Raises:
      InputError: there are not as many predictions as references, or a question has no answer.
    """
    check_pairs(predictions, references)
    unanswered = next((index for index, answers in enumerate(references) if not len(answers)), None)
    if unanswered is not None:
        raise InputError(f"question {unanswered} has no answer, which SQuAD 1.1 does not have: use squad_v2")
    return {
        "exact_match": 100 * float(np.mean(_best(_exact, predictions, references))),
        "f1": 100 * float(np.mean(_best(_f1, predictions, references))),
    }


def squad_v2(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    no_answer_scores: Sequence[float] | np.ndarray | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """The figures of SQuAD 2.0 by the names of its script, 0 to 100 (Rajpurkar et al. 2018, section 5).

    A reference is the list of a question's true answers, empty where it has none; the prediction "" says that it has none.
    With `no_answer_scores`, a question whose score is above `threshold` counts as predicted to have none, and `best_exact` and
    `best_f1` are the figures at the thresholds that suit each of them best, `best_exact_thresh` and `best_f1_thresh`.

    `exact` and `f1` are over all questions, with `HasAns_` before them over those that have an answer, if any, and with
    `NoAns_` over the others.

    Raises:
      InputError: there are not as many predictions or scores as references.
    """
    check_pairs(predictions, references)
    answered = np.array([len(answers) > 0 for answers in references])
    answers = [[text for text in texts if _normalised(text)] or [""] for texts in references]
    raw = {"exact": _best(_exact, predictions, answers), "f1": _best(_f1_or_agreement, predictions, answers)}
    judged, best = raw, {}
    if no_answer_scores is not None:
        check_pairs(no_answer_scores, references)
        scores = np.asarray(no_answer_scores, np.float64)
        judged = {name: np.where(scores > threshold, ~answered, values) for name, values in raw.items()}
        empty = np.array([not prediction for prediction in predictions])
        for name, values in raw.items():
            best[f"best_{name}"], best[f"best_{name}_thresh"] = _at_best_threshold(values, scores, answered, empty)
    sides = {"": np.full(len(answered), True), "HasAns_": answered, "NoAns_": ~answered}
    return {
        side + name: 100 * float(np.mean(values[of_side]))
        for side, of_side in sides.items()
        if of_side.any()
        for name, values in judged.items()
    } | best


def _at_best_threshold(values: np.ndarray, scores: np.ndarray, answered: np.ndarray, empty: np.ndarray) -> tuple[float, float]:
    """The best sum of values there is when the questions of the lowest scores are answered and no others, as a percentage."""
    order = np.argsort(scores, kind="stable")
    gains = np.where(answered, values, np.where(empty, 0.0, -1.0))[order]  # over not answering
    sums = np.concatenate([[0.0], np.cumsum(gains)]) + np.sum(~answered)
    best = int(np.argmax(sums))
    return 100 * float(sums[best]) / len(values), float(scores[order][best - 1]) if best else 0.0


def _best(compare: Callable[[str, str], float], predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    return np.array([max(compare(p, text) for text in texts) for p, texts in zip(predictions, references)], np.float64)


def _exact(prediction: str, reference: str) -> float:
    return float(_normalised(prediction) == _normalised(reference))


def _f1(prediction: str, reference: str) -> float:
    predicted, true = _normalised(prediction).split(), _normalised(reference).split()
    common = sum((Counter(predicted) & Counter(true)).values())
    return 2 * common / (len(predicted) + len(true)) if common else 0.0


def _f1_or_agreement(prediction: str, reference: str) -> float:
    """Version 2.0's F1, where two answers without a word agree."""
    if not _normalised(prediction) or not _normalised(reference):
        return _exact(prediction, reference)
    return _f1(prediction, reference)


def _normalised(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
