"""What is written, token for token, against transformers: greedy and with beams, for every family that writes.

The references are frozen in `fixtures/generation.json`; `pytest -m parity` makes them anew beside the comparison.
"""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding.generation_cases import BEAMS, CASES, GREEDY, NEW, OWN_PROGRAMS, Case, N, parameters, prompts, requests
from flaxllm.decoding import generate, prepare

FILE = Path(__file__).parent / "fixtures" / "generation.json"
NEUTRAL = dict(repetition_penalty=1.0, min_new_tokens=0)


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((name, False), id=name) for name in CASES),
        *(pytest.param((name, True), id=f"live/{name}", marks=pytest.mark.parity) for name in CASES),
    ],
)
def case_and_expected(request) -> tuple[str, dict]:
    name, live = request.param
    if not live:
        return name, json.loads(FILE.read_text())[name]
    pytest.importorskip("transformers", reason="the live comparison needs the [parity] extra")
    from decoding.make_generation_fixtures import reference

    return name, reference(CASES[name])


@cache
def _prepared(name: str) -> dict:
    return prepare(CASES[name].model, jax.tree.map(jnp.asarray, parameters(CASES[name])))


def _greedy(case: Case, params: dict, end: int, all_options: list[dict]) -> list[list[list[int]]]:
    """The texts of requests that run together: each row has its own options."""
    rows = prompts(case)
    values = {
        name: np.repeat([options.get(name, value) for options in all_options], len(rows)) for name, value in NEUTRAL.items()
    }
    written = generate(case.model, params, rows * len(all_options), NEW, temperature=0, stop_tokens=[end], **values).rows()
    return [written[start : start + len(rows)] for start in range(0, len(written), len(rows))]


@pytest.mark.slow
def test_greedy_writes_the_same(case_and_expected):
    name, expected = case_and_expected
    case, params = CASES[name], _prepared(name)
    together = {name: options for name, options in GREEDY.items() if name not in OWN_PROGRAMS}
    for request, rows in zip(together, _greedy(case, params, expected["end"], list(together.values()))):
        assert rows == expected["greedy"][request], request
    for request in requests(case, GREEDY).keys() - together:
        out = generate(case.model, params, prompts(case), NEW, temperature=0, stop_tokens=[expected["end"]], **GREEDY[request])
        assert out.rows() == expected["greedy"][request], request


@pytest.mark.slow
def test_beams_write_the_same_with_the_same_scores(case_and_expected):
    name, expected = case_and_expected
    case, params = CASES[name], _prepared(name)
    assert expected["beams"].keys() == requests(case, BEAMS).keys()
    for request, options in requests(case, BEAMS).items():
        out = generate(
            case.model, params, prompts(case), NEW, num_beams=case.num_beams, n=N, stop_tokens=[expected["end"]], **options
        )
        assert out.rows() == expected["beams"][request]["rows"], request
        np.testing.assert_allclose(out.scores, expected["beams"][request]["scores"], atol=1e-4, err_msg=request)


def test_every_request_is_frozen_and_beams_differ():
    frozen = json.loads(FILE.read_text())
    assert frozen.keys() == CASES.keys()
    for name, case in CASES.items():
        assert frozen[name]["greedy"].keys() == requests(case, GREEDY).keys()
        assert len({str(found["rows"]) for found in frozen[name]["beams"].values()}) > 1
