"""Outputs, gradients and an optimizer's step against transformers in torch, in float32, for every case of every family.

The references are frozen in `fixtures`; `pytest -m parity` makes them anew beside the comparison.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from parity.case import FIXTURES, cases, families
from parity.compare import Computed, compute
from parity.frozen import read_arrays, read_stepped

# Marian's sinusoids, and a bias of its logits that is not trained.
CONSTANTS = {"final_logits_bias", "encoder.embed_positions.weight", "decoder.embed_positions.weight"}
ALL = [(family, name) for family in families() for name in cases(family)]


class Comparison(NamedTuple):
    folder: Path
    reference: dict[str, dict[str, np.ndarray]]
    computed: Computed


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((*case, False), id="/".join(case)) for case in ALL),
        *(pytest.param((*case, True), id=f"live/{'/'.join(case)}", marks=pytest.mark.parity) for case in ALL),
    ],
)
def comparison(request, tmp_path_factory) -> Comparison:
    family, name, live = request.param
    folder = FIXTURES / family / name
    if live:
        pytest.importorskip("transformers", reason="the live comparison needs the [parity] extra")
        from parity.reference import write_reference

        folder = tmp_path_factory.mktemp("reference")
        write_reference(cases(family)[name], folder)
    return Comparison(folder, read_arrays(folder), compute(folder))


def test_outputs_are_those_of_the_reference(comparison):
    for name, expected in comparison.reference["outputs"].items():
        apart = np.abs(comparison.computed.outputs[name] - expected).max()
        assert apart <= 1e-5 * np.abs(expected).max(), name
    assert comparison.computed.loss == pytest.approx(float(comparison.reference["loss"]["value"]), rel=1e-5)


def test_gradients_are_those_of_the_reference(comparison):
    expected = load_file(comparison.folder / "gradients.safetensors")
    whole = norm(np.array([norm(gradient) for gradient in expected.values()]))
    names = set(comparison.reference["step"]["names"].tolist())
    assert expected.keys() - names <= CONSTANTS
    for name in names:
        apart = norm(comparison.computed.gradients[name] - expected[name])
        assert apart <= 1e-4 * max(norm(expected[name]), 1e-3 * whole), name


def test_a_step_of_adamw_leads_to_the_references_parameters(comparison):
    for name, expected in read_stepped(comparison.folder, comparison.reference["step"]).items():
        np.testing.assert_allclose(comparison.computed.stepped[name], expected, rtol=0, atol=1e-5, err_msg=name)


def test_adamw_alone_takes_the_references_step(comparison):
    for name, expected in read_stepped(comparison.folder, comparison.reference["step"]).items():
        np.testing.assert_allclose(comparison.computed.stepped_alone[name], expected, rtol=0, atol=1e-7, err_msg=name)


def test_saving_gives_every_tensor_back_bit_by_bit(comparison):
    original = load_file(comparison.folder / "model.safetensors")
    original = {name: tensor for name, tensor in original.items() if "embed_positions" not in name}  # Marian's sinusoids
    assert set(comparison.computed.saved) == set(original)
    for name, tensor in original.items():
        saved = comparison.computed.saved[name]
        assert (saved.dtype, saved.shape, saved.tobytes()) == (tensor.dtype, tensor.shape, tensor.tobytes()), name


def test_every_case_has_its_fixture_and_every_family_eight():
    assert {(folder.parent.name, folder.name) for folder in FIXTURES.glob("*/*")} == set(ALL)
    assert all(len(cases(family)) >= 8 for family in families())


def norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))
