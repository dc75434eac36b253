"""The README's Python examples run as they are written; the models they name are found as folders of these names."""

import re
from pathlib import Path

import pytest

import real_weights

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
EXAMPLES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


def test_the_readme_has_examples():
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.splitlines()[-1][:40] for example in EXAMPLES])
def test_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLAXLLM_CACHE", str(tmp_path / "cache"))
    if MINILM in example:
        Path(MINILM).parent.mkdir()
        Path(MINILM).symlink_to(real_weights.minilm_folder())
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names.keys() - {"__builtins__"}
