"""Every experiment can be had in a form that needs nothing, and its docstring is its record."""

import ast
import collections
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flaxllm.training.dry_run import make_plan
from flaxllm.training.experiment import load_experiment
from flaxllm.training.writers import read_metrics

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))
BY_PATH_ALONE = {"shakespeare_char"}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiments_docstring_has_its_command_and_record(path):
    record = ast.get_docstring(ast.parse(path.read_text()))
    assert f"python launch.py --config=experiments/{path.name}" in record
    assert path.stem in BY_PATH_ALONE or path.stem == "quickstart" or f"{path.name}:tiny" in record


@pytest.mark.parametrize("path", [path for path in EXPERIMENTS if path.stem not in BY_PATH_ALONE], ids=lambda path: path.stem)
def test_its_tiny_form_is_one_that_can_run(path):
    experiment = load_experiment(str(path) if path.stem == "quickstart" else f"{path}:tiny")
    config = experiment.config
    plan = make_plan(config)
    assert 0 < plan.memory["parameters"] < 10e6 and plan.flops > 0
    if experiment.run is None:  # else it may write its own
        sources = [part.source for part in config.data.mixture.values()] or [config.data.source]
        assert all(source.startswith("python-") for source in sources)


def test_the_induction_experiment_runs_and_draws(tmp_path):
    command = [sys.executable, ROOT / "launch.py", f"--config={ROOT / 'experiments' / 'induction.py'}:tiny", "--workdir=w"]
    # One device: compiling for eight takes twice as long.
    environment = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}
    left = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300, check=False)
    assert (left.returncode, left.stderr) == (0, "")
    assert (tmp_path / "w" / "induction.png").read_bytes().startswith(b"\x89PNG")
    said = dict(line.split(": ", 1) for line in left.stdout.splitlines()[-3:])
    for name in ("two layers", "one layer"):
        records = read_metrics(tmp_path / "w" / name.replace(" ", "_") / "metrics.jsonl")
        judged = [record for record in records if "eval/loss" in record]
        assert [record["step"] for record in judged] == [5, 10, 15, 20]
        assert all(0 < record["eval/induction"] < 1 for record in judged)
        assert said[name] == f"loss {judged[-1]['eval/loss']:.3f}, induction score {judged[-1]['eval/induction']:.3f}"
    assert 4.0 < float(said["n-grams"].split()[1].strip(";")) < 5.0


def test_its_texts_are_blocks_of_many_lengths_said_twice(induction, tmp_path):
    texts = induction["write_texts"](np.random.default_rng(0), 200, 32, tmp_path / "texts.jsonl")
    blocks = [text[: len(text) // 2] for text in texts]
    assert texts == [block + block for block in blocks]
    assert {len(block) for block in blocks} == set(range(8, 17)) and set("".join(blocks)) == set(induction["SYMBOLS"])
    lines = (tmp_path / "texts.jsonl").read_text().splitlines()
    assert [ast.literal_eval(line) for line in lines] == [{"prompt": block, "completion": block} for block in blocks]


@pytest.mark.parametrize(("held_out", "best"), [(["0000", "0120"], 1), (["0011", "0021"], 2), (["0101", "0020"], 3)])
def test_its_n_grams_are_those_of_the_formula(held_out, best, induction):
    train = ["0101", "0202", "010101"]
    size, end = len(induction["SYMBOLS"]) + 1, "$"
    counts = collections.Counter(
        text[i : i + n] for text in (text + end for text in train) for n in (1, 2, 3) for i in range(len(text) + 1 - n)
    )
    followed = collections.Counter()
    for gram, count in counts.items():
        followed[len(gram), gram[:-1]] += count

    def probability(gram: str) -> float:
        below = probability(gram[1:]) if len(gram) > 1 else 1 / size
        return (counts[gram] + size * below) / (followed[len(gram), gram[:-1]] + size)

    losses = {}
    for n in (1, 2, 3):
        places = [(text + end, i) for text in held_out for i in range(len(text) // 2, len(text) + 1)]
        losses[n] = np.mean([-math.log(probability(text[i + 1 - n : i + 1])) for text, i in places])
    assert min(losses, key=losses.get) == best
    assert induction["ngram_loss"](train, held_out) == pytest.approx(losses[best], rel=1e-12)


@pytest.fixture
def induction() -> dict:
    """What the experiment's file defines."""
    return runpy.run_path(str(ROOT / "experiments" / "induction.py"))
