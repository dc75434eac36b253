"""SQuAD's figures against its two evaluation scripts, restated here question by question, and cases counted by hand."""

import re
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxllm.errors import InputError
from flaxllm.metrics import squad, squad_v2


def test_an_answer_is_normalised_and_compared_with_the_nearest_reference():
    scores = squad(["The  Denver Broncos!", "in 1999", "a"], [["Carolina", "denver broncos"], ["1999", "the year 1999"], ["the"]])
    # Exact: the first, and the third, both sides of which are empty; F1: 1, max(2/3, 1/2), and 0 as no word is common.
    assert scores == pytest.approx({"exact_match": 100 * 2 / 3, "f1": 100 * (1 + 2 / 3) / 3})


def test_version_2_counts_no_answer():
    predictions, references = ["", "Paris", "in Paris", "", "the"], [[], [], ["Paris"], ["Paris"], ["a"]]
    assert squad_v2(predictions, references) == pytest.approx({
        "exact": 100 * 2 / 5, "f1": 100 * (1 + 0 + 2 / 3 + 0 + 1) / 5,
        "HasAns_exact": 100 / 3, "HasAns_f1": 100 * (2 / 3 + 1) / 3, "NoAns_exact": 50.0, "NoAns_f1": 50.0,
    })  # fmt: skip
    assert set(squad_v2(["x"], [["x"]])) == {"exact", "f1", "HasAns_exact", "HasAns_f1"}


def test_a_score_above_the_threshold_says_no_answer():
    predictions, references = ["x", "x", "x", "x"], [["x"], [], ["x"], []]
    scores = squad_v2(predictions, references, [0.1, 0.2, 0.3, 0.4], threshold=0.3)
    assert (scores["exact"], scores["HasAns_exact"], scores["NoAns_exact"]) == (75.0, 100.0, 50.0)
    # Answering the first alone is right three times, as is answering the first three: the lower threshold is taken.
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (75.0, 0.1)


def normalize_answer(s):
    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())


def word_f1(prediction, truth, version):
    prediction, truth = normalize_answer(prediction).split(), normalize_answer(truth).split()
    if version == 2 and not (prediction and truth):
        return int(prediction == truth)
    left = list(truth)
    for word in prediction:
        if word in left:
            left.remove(word)
    num_same = len(truth) - len(left)
    if num_same == 0:
        return 0
    precision, recall = num_same / len(prediction), num_same / len(truth)
    return 2 * precision * recall / (precision + recall)


def script_2(predictions, references, na_prob, threshold):
    """evaluate-v2.0.py, its dicts by question as lists."""
    has_ans = [bool(answers) for answers in references]
    exact, f1 = [], []
    for prediction, answers in zip(predictions, references):
        gold = [text for text in answers if normalize_answer(text)] or [""]
        exact.append(max(int(normalize_answer(a) == normalize_answer(prediction)) for a in gold))
        f1.append(max(word_f1(prediction, a, 2) for a in gold))
    out = {}
    for name, scores in (("exact", exact), ("f1", f1)):
        judged = [float(not has) if prob > threshold else s for s, prob, has in zip(scores, na_prob, has_ans)]
        out[name] = 100.0 * sum(judged) / len(judged)
        for side, wanted in (("HasAns", True), ("NoAns", False)):
            chosen = [s for s, has in zip(judged, has_ans) if has == wanted]
            if chosen:
                out[f"{side}_{name}"] = 100.0 * sum(chosen) / len(chosen)
        current = best = sum(not has for has in has_ans)
        best_thresh = 0.0
        for i in sorted(range(len(scores)), key=lambda i: na_prob[i]):
            current += scores[i] if has_ans[i] else (-1 if predictions[i] else 0)
            if current > best:
                best, best_thresh = current, na_prob[i]
        out[f"best_{name}"], out[f"best_{name}_thresh"] = 100.0 * best / len(scores), best_thresh
    return out


ANSWER = st.lists(st.sampled_from(["The", "a", "cat", "Cat.", "sat", "!", "naïve", "  ", "x—the—y", "x—"]), max_size=4).map(
    " ".join
)
QUESTION = st.tuples(ANSWER, st.lists(ANSWER, max_size=3), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(QUESTION, min_size=1, max_size=8), st.sampled_from([0.3, 1.0]))
def test_the_figures_are_those_of_the_scripts(questions, threshold):
    predictions, references, na_prob = zip(*questions)
    expected = script_2(predictions, references, na_prob, threshold)
    assert squad_v2(predictions, references, np.array(na_prob), threshold) == pytest.approx(expected)
    plain = {
        name: value for name, value in script_2(predictions, references, [0.0] * len(na_prob), 1.0).items() if "best" not in name
    }
    assert squad_v2(predictions, references) == pytest.approx(plain)
    answered = [(p, answers) for p, answers, _ in questions if answers]
    if answered:
        exact = [max(normalize_answer(p) == normalize_answer(a) for a in answers) for p, answers in answered]
        f1 = [max(word_f1(p, a, 1) for a in answers) for p, answers in answered]
        expected = {"exact_match": 100 * np.mean(exact), "f1": 100 * np.mean(f1)}
        assert squad(*zip(*answered)) == pytest.approx(expected)


def test_what_cannot_be_judged_is_refused():
    for expected, judge in {
        "there are 1 predictions for 2 references": lambda: squad(["a"], [["a"], ["b"]]),
        "question 1 has no answer, which SQuAD 1.1 does not have: use squad_v2": lambda: squad(["a", ""], [["a"], []]),
        "there are 2 predictions for 1 references": lambda: squad_v2(["a"], [["a"]], [0.0, 1.0]),
    }.items():
        with pytest.raises(InputError, match=expected):
            judge()
