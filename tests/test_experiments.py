"""Every experiment can be had in a form that needs nothing, and its docstring is its record."""

import ast
from pathlib import Path

import pytest

from flaxllm.training.dry_run import make_plan
from flaxllm.training.experiment import load_experiment

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))
BY_PATH_ALONE = {"shakespeare_char"}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiments_docstring_has_its_command_and_record(path):
    record = ast.get_docstring(ast.parse(path.read_text()))
    assert f"python launch.py --config=experiments/{path.name}" in record
    assert path.stem in BY_PATH_ALONE or path.stem == "quickstart" or f"{path.name}:tiny" in record


@pytest.mark.parametrize("path", [path for path in EXPERIMENTS if path.stem not in BY_PATH_ALONE], ids=lambda path: path.stem)
def test_its_tiny_form_is_one_that_can_run(path):
    config = load_experiment(str(path) if path.stem == "quickstart" else f"{path}:tiny").config
    plan = make_plan(config)
    assert 0 < plan.memory["parameters"] < 10e6 and plan.flops > 0
    assert config.data.source.startswith("python-") or all(part.source.startswith("python-") for part in config.data.mixture.values())
