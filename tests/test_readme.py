"""The README's Python examples run as they are written; the models they name are found as folders of these names."""

import re
from pathlib import Path

import pytest

import real_weights
from pipelines.folders import t5_folder

FOLDERS = {
    "sentence-transformers/all-MiniLM-L6-v2": lambda path: real_weights.minilm_folder(),
    "HuggingFaceTB/SmolLM2-135M-Instruct": lambda path: real_weights.smollm2_gguf().parent,
    "google-t5/t5-small": t5_folder,
}
EXAMPLES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


def test_the_readme_has_examples():
    assert len(EXAMPLES) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=[example.splitlines()[-1][:40] for example in EXAMPLES])
def test_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLAXLLM_CACHE", str(tmp_path / "cache"))
    for name, folder in FOLDERS.items():
        if name in example:
            Path(name).parent.mkdir()
            Path(name).symlink_to(folder(tmp_path / "model"))
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names.keys() - {"__builtins__"}
