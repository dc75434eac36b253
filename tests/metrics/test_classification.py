"""Classification metrics against their formulas, counted by hand or in float64."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxllm.errors import InputError
from flaxllm.metrics import accuracy, f1, matthews, pearson, spearman

pytest.importorskip("sklearn")

PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12)


def counts(pairs: list[tuple[int, int]], label: int) -> tuple[int, int, int, int]:
    """True and false positives, false and true negatives."""
    tp, fp, fn, tn = (sum(((p == label), (r == label)) == kind for p, r in pairs) for kind in KINDS)
    return tp, fp, fn, tn


KINDS = [(True, True), (True, False), (False, True), (False, False)]


def ratio(a: float, b: float) -> float:
    return a / b if b else 0.0


def test_accuracy_is_the_share_of_right_labels():
    assert accuracy([1, 0, 2, 2], [1, 1, 2, 0]) == {"accuracy": 0.5}
    assert accuracy(["a", "b", "b"], ["a", "b", "c"]) == {"accuracy": pytest.approx(2 / 3)}
    assert accuracy([[1, 0], [1, 1]], [[1, 0], [0, 1]]) == {"accuracy": 0.5}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(PAIRS)
def test_macro_f1_is_the_mean_over_the_labels_that_occur(pairs):
    each = []
    for label in {label for pair in pairs for label in pair}:
        tp, fp, fn, _ = counts(pairs, label)
        each.append((ratio(tp, tp + fp), ratio(tp, tp + fn), ratio(2 * tp, 2 * tp + fp + fn)))
    predictions, references = zip(*pairs)
    expected = dict(zip(("precision", "recall", "f1"), np.mean(each, axis=0)))
    assert f1(predictions, references, average="macro") == pytest.approx(expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(PAIRS)
def test_binary_f1_and_matthews_are_of_the_four_counts(pairs):
    pairs = [(p % 2, r % 2) for p, r in pairs]
    tp, fp, fn, tn = counts(pairs, 1)
    predictions, references = zip(*pairs)
    expected = {"precision": ratio(tp, tp + fp), "recall": ratio(tp, tp + fn), "f1": ratio(2 * tp, 2 * tp + fp + fn)}
    assert f1(predictions, references) == pytest.approx(expected)
    phi = ratio(tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert matthews(predictions, references) == {"matthews_correlation": pytest.approx(phi, abs=1e-12)}


def test_matthews_of_three_labels():
    # Gorodkin 2004: 4 of 5 are right; the labels occur 2, 2 and 1 times, and are predicted 1, 3 and 1 times.
    expected = (4 * 5 - (2 * 1 + 2 * 3 + 1 * 1)) / math.sqrt((25 - (4 + 4 + 1)) * (25 - (1 + 9 + 1)))
    assert matthews([0, 1, 1, 1, 2], [0, 0, 1, 1, 2])["matthews_correlation"] == pytest.approx(expected)
    assert matthews(["a", "b"], ["a", "b"])["matthews_correlation"] == pytest.approx(1)


def test_f1_of_a_label_by_its_name():
    assert f1(["y", "y", "n", "n"], ["y", "n", "y", "n"], positive="y")["f1"] == 0.5
    assert f1(["y", "y", "y", "n"], ["y", "n", "n", "n"], positive="n") == {
        "precision": 1.0, "recall": pytest.approx(1 / 3), "f1": 0.5,
    }  # fmt: skip


def test_multi_label_f1_counts_decisions_or_averages_labels():
    predictions, references = [[1, 1, 0], [0, 1, 0]], [[1, 0, 0], [1, 1, 0]]
    assert f1(predictions, references, average="micro")["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert f1(predictions, references, average="macro")["f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


NUMBERS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=12)


def correlation(x: list[float], y: list[float]) -> float:
    n = len(x)
    top = n * sum(a * b for a, b in zip(x, y)) - sum(x) * sum(y)
    bottom = (n * sum(a * a for a in x) - sum(x) ** 2) * (n * sum(b * b for b in y) - sum(y) ** 2)
    return top / math.sqrt(bottom) if bottom else math.nan


def ranks(values: tuple[int, ...]) -> list[float]:
    """One more than how many are smaller, and half a place for each other that is equal."""
    return [1 + sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(NUMBERS)
def test_correlations_are_of_the_numbers_and_of_their_ranks(pairs):
    x, y = zip(*pairs)
    assert pearson(x, y)["pearson"] == pytest.approx(correlation(x, y), nan_ok=True, abs=1e-12)
    assert spearman(x, y)["spearman"] == pytest.approx(correlation(ranks(x), ranks(y)), nan_ok=True, abs=1e-12)


def test_a_constant_has_no_correlation():
    constant = [0.1] * 3  # whose mean is not 0.1 in floats
    assert np.std(constant) > 0
    assert math.isnan(pearson(constant, range(3))["pearson"]) and math.isnan(spearman(range(3), constant)["spearman"])


WRONG = {
    "there are 2 predictions for 1 references": lambda: accuracy([1, 0], [1]),
    "there are 0 predictions for 0 references": lambda: f1([], []),
    "expected labels of one kind and shape": lambda: accuracy([1, 0], ["1", "0"]),
    "references int64[2, 1]: expected labels of one kind": lambda: accuracy([1, 0], [[1], [0]]),
    "the labels make no array": lambda: f1([[1, 0], [1]], [[1, 0], [1, 0]]),
    "there is no 'binary' f1 of these labels": lambda: f1([0, 1, 2], [0, 1, 2]),
    "there is no 'binray' f1 of these labels": lambda: f1([0, 1], [0, 1], average="binray"),
    "matthews is of one label an example": lambda: matthews([[1, 0]], [[1, 0]]),
    "a correlation of <U1[2]: expected a number": lambda: pearson(["a", "b"], ["a", "b"]),
}


@pytest.mark.parametrize("expected", WRONG)
def test_what_cannot_be_judged_is_refused(expected):
    with pytest.raises(InputError) as caught:
        WRONG[expected]()
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(InputError, match=r"needs sklearn.*pip install 'flaxllm\[eval\]'"):
        f1([1], [1])
