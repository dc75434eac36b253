"""Attention weights against those that transformers returns (eager), in float32, for every family.

The references are frozen in `fixtures/attention.npz`; `pytest -m parity` makes them anew beside the comparison.
"""

import numpy as np
import pytest

from flaxllm.interpret import attention_maps
from flaxllm.pretrained import from_pretrained
from interpret.attention_cases import CASES, FILE
from parity.case import FIXTURES
from parity.frozen import read_arrays


def frozen(family: str, name: str) -> dict[str, np.ndarray]:
    prefix = f"{family}/{name}/"
    with np.load(FILE) as arrays:
        return {path.removeprefix(prefix): arrays[path] for path in arrays.files if path.startswith(prefix)}


@pytest.mark.parametrize(
    ("family", "name", "live"),
    [
        *(pytest.param(*case, False, id="/".join(case)) for case in CASES),
        *(pytest.param(*case, True, id=f"live/{'/'.join(case)}", marks=pytest.mark.parity) for case in CASES),
    ],
)
def test_weights_are_those_of_transformers(family, name, live):
    expected = frozen(family, name)
    if live:
        pytest.importorskip("transformers", reason="the live comparison needs the [parity] extra")
        from interpret.make_attention_fixtures import reference

        expected = reference(family, name)
    folder = FIXTURES / family / name
    inputs = read_arrays(folder)["inputs"]
    maps = attention_maps(*from_pretrained(folder), **inputs)
    assert maps.keys() == expected.keys()
    for place, weights in expected.items():
        valid = inputs.get("valid" if place == "encoder" or family in ("gpt", "llama") else "decoder_valid")
        seen = np.ones((weights.shape[1], weights.shape[3]), bool) if valid is None else valid  # padding attends to anything
        assert maps[place].shape == weights.shape
        apart = np.abs(np.asarray(maps[place]) - weights) * seen[None, :, None, :, None]
        assert apart.max() <= 1e-5, place


def test_every_family_and_place_is_compared():
    places = {(family, place) for family, name in CASES for place in frozen(family, name)}
    pairs = {(family, place) for family in ("t5", "transformer") for place in ("encoder", "decoder", "cross")}
    assert places == pairs | {("bert", "encoder"), ("gpt", "decoder"), ("llama", "decoder")}
