"""The notebooks run from top to bottom, from nothing and without a network, and are kept without what they gave."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_there_are_four():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("FLAXLLM_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "PIP_NO_INDEX"):
        monkeypatch.setenv(name, "1")
    # One device, as most readers have.
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"))
    notebook = read(path)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": here}}).execute()
    first, *others = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert first == []  # nothing was installed
    assert sum("image/png" in output.get("data", {}) for outputs in others for output in outputs) >= 1
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_holds_no_outputs(path):
    notebook = read(path)
    text, code = ([cell for cell in notebook.cells if cell.cell_type == kind] for kind in ("markdown", "code"))
    assert 10 <= len(notebook.cells) <= 22 and len(text) >= 6
    assert text[0] is notebook.cells[0] and text[0].source.startswith(f"# {path.stem[0]}. ")
    assert code[0].source.startswith("try:\n    import flaxllm\nexcept ImportError:") and "%pip install -q" in code[0].source
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
