"""How often, or how closely, predicted labels and numbers agree with the true ones."""

import math
from collections.abc import Sequence

import numpy as np

from flaxllm.errors import InputError
from flaxllm.metrics.inputs import check_pairs, library

Labels = Sequence | np.ndarray  # labels [n], or for multi-label 0 and 1 [n, labels]


def accuracy(predictions: Labels, references: Labels) -> dict[str, float]:
    """The share of examples, 0 to 1, whose label is right; of multi-label ones, all of whose labels are.

    Raises:
      InputError: the two differ in shape, or hold nothing.
    """
    predictions, references = _arrays(predictions, references)
    right = predictions == references
    return {"accuracy": float(np.mean(right.all(axis=1) if right.ndim == 2 else right))}


def f1(predictions: Labels, references: Labels, average: str = "binary", positive: int | str = 1) -> dict[str, float]:
    """`f1`, `precision` and `recall`, 0 to 1 (van Rijsbergen 1979, chapter 7); 0 where one is 0 / 0.

    `average` is "binary" (of the label `positive` alone), "macro" (the mean over the labels) or "micro" (over all decisions
    at once); multi-label ones need one of the last two.

    Raises:
      InputError: the two differ in shape, hold nothing, or have labels that `average` does not take.
    """
    predictions, references = _arrays(predictions, references)
    score = library("sklearn.metrics").precision_recall_fscore_support
    try:
        scores = score(references, predictions, average=average, pos_label=positive, zero_division=0)
    except ValueError as error:
        raise InputError(f"there is no {average!r} f1 of these labels ({error}): choose another average") from error
    return {name: float(value) for name, value in zip(("precision", "recall", "f1"), scores)}


def matthews(predictions: Labels, references: Labels) -> dict[str, float]:
    """The correlation of predicted and true labels, -1 to 1 (Matthews 1975; Gorodkin 2004 for more than two); 0 where undefined.

    Raises:
      InputError: the two differ in shape, hold nothing, or are multi-label.
    """
    predictions, references = _arrays(predictions, references)
    if predictions.ndim != 1:
        raise InputError("matthews is of one label an example: for multi-label ones use accuracy or f1")
    _, kinds = np.unique([references, predictions], return_inverse=True)
    one_hot = np.eye(kinds.max() + 1)[kinds]
    true, predicted = one_hot - one_hot.mean(axis=1, keepdims=True)
    scale = math.sqrt(np.sum(true**2) * np.sum(predicted**2))
    return {"matthews_correlation": float(np.sum(true * predicted)) / scale if scale else 0.0}


def pearson(predictions: Labels, references: Labels) -> dict[str, float]:
    """The linear correlation of numbers, -1 to 1; nan where either side is constant.

    Raises:
      InputError: the two differ in length, hold nothing, or are no numbers.
    """
    return {"pearson": _correlation(*_numbers(predictions, references))}


def spearman(predictions: Labels, references: Labels) -> dict[str, float]:
    """The linear correlation of the numbers' ranks, those of equal numbers averaged, -1 to 1; nan where either side is constant.

    Raises:
      InputError: the two differ in length, hold nothing, or are no numbers.
    """
    ranks = library("scipy.stats").rankdata
    return {"spearman": _correlation(*map(ranks, _numbers(predictions, references)))}


def _arrays(predictions: Labels, references: Labels) -> tuple[np.ndarray, np.ndarray]:
    check_pairs(predictions, references)
    try:
        predictions, references = np.asarray(predictions), np.asarray(references)
    except ValueError as error:  # rows of unequal length
        raise InputError(f"the labels make no array ({error}): expected a label, or a row of 0 and 1, an example") from error
    if predictions.shape != references.shape or (predictions.dtype.kind == "U") != (references.dtype.kind == "U"):
        raise InputError(
            f"the predictions are {predictions.dtype}{list(predictions.shape)} and the references "
            f"{references.dtype}{list(references.shape)}: expected labels of one kind and shape"
        )
    return predictions, references


def _numbers(predictions: Labels, references: Labels) -> tuple[np.ndarray, np.ndarray]:
    predictions, references = _arrays(predictions, references)
    if predictions.ndim != 1 or predictions.dtype.kind not in "biuf":
        raise InputError(f"a correlation of {predictions.dtype}{list(predictions.shape)}: expected a number for each example")
    return predictions.astype(np.float64), references.astype(np.float64)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))
