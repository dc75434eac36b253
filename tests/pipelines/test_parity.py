"""What transformers' pipelines give, frozen by make_pipeline_fixtures.py: words and places exactly, scores to 1e-5."""

import json
from typing import Any

import numpy as np
import pytest

import real_weights
from flaxllm.pipelines import pipeline
from pipelines.pipeline_cases import CASES, FIXTURES, asked, write

TOLERANCE = 1e-5
FROZEN = json.loads(FIXTURES.read_text(encoding="utf-8"))


def check_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs):
            check_same(our, their)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=TOLERANCE, rel=TOLERANCE)
    else:
        assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_transformers_pipeline_gives_the_same(name, tmp_path):
    case = CASES[name]
    pipe = pipeline(case.task, write(case, tmp_path))
    for call, expected in zip(case.calls, FROZEN[name], strict=True):
        inputs, options = asked(call, case.task)
        check_same(pipe(*inputs, **options), expected)


def test_features_of_a_real_model():
    pipe, frozen = pipeline("feature-extraction", real_weights.minilm_folder()), FROZEN["MiniLM"]
    for features, expected in zip(pipe(frozen["sentences"], return_tensors=True), frozen["features"], strict=True):
        np.testing.assert_allclose(features[0, ::3, :6], expected, atol=TOLERANCE)
