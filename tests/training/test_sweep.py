"""Sweeps: their plan, their runs one after another, what is left of one that was stopped, and jobs in processes."""

import functools
import io
import json
import os
import pickle
import sys
from pathlib import Path

import jax
import pytest
import submitit  # noqa: F401 (it sets up logging anew, which closes a stream that a test captures)
from rich.console import Console

from flaxllm.errors import InputError
from flaxllm.training import NonFiniteError, cluster, sweep
from flaxllm.training.experiment import load_experiment
from flaxllm.training.stopping import STOPPED_BY_SIGNAL

EXPERIMENT = """
import flaxllm

def get_config(source):
    config = flaxllm.default_config(
        "gpt2-124m", max_len=16, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=32
    )
    config.data.update(source=source, max_len=16, batch_size=8)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=1)
    config.train.update(num_steps=4, eval_every=2, sample_every=0, checkpoint_every=2)
    return config

def sweep(add):
"""
RATES = "    for rate in (1e-3, 1e-2, 3e-3):\n        add({'optimizer.learning_rate': rate})\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXLLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def quick_compiler(monkeypatch):
    """Less of XLA's own work, here and in processes started here: these runs take a handful of steps."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("XLA_FLAGS", "")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def plan(tmp_path):
    """A function that plans the sweep whose lines it is given."""

    def make(lines: str, **changes) -> list[sweep.Trial]:
        (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 200)
        path = tmp_path / "tiny.py"
        path.write_text(EXPERIMENT + lines)
        experiment = load_experiment(f"{path}:{tmp_path / 'text.txt'}")
        experiment.config.update(changes)
        return sweep.plan_sweep(experiment, experiment.config)

    return make


def stub(monkeypatch, outcomes: dict[float, object]) -> list[float]:
    """Puts in place of training what leaves a metrics.jsonl; `outcomes` has for each learning rate the evaluation
    losses it comes to, and the exception that it ends in. Returns the learning rates that are trained, as they come."""
    trained = []

    def train(config, workdir: Path) -> None:
        rate = config.optimizer.learning_rate
        trained.append(rate)
        losses, error = outcomes[rate]
        lines = [json.dumps({"step": step, "loss": x + 1, "eval/loss": x}) for step, x in enumerate(losses, 1)]
        (workdir / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
        if error is not None:
            raise error

    monkeypatch.setattr(sweep, "train", train)
    return trained


def run(trials, workdir: Path) -> tuple[bool, list[str]]:
    workdir.mkdir(exist_ok=True)
    file = io.StringIO()
    done = sweep.run_sweep(trials, workdir, Console(file=file, highlight=False))
    return done, file.getvalue().splitlines()


def test_a_plan_names_each_run_after_what_it_changes(plan):
    trials = plan("    add({'seed': 1, 'optimizer.name': 'lion'})\n    add({})\n    add({'sample.prompt': 'a/b c'})\n")
    assert [trial.name for trial in trials[:2]] == ["optimizer.name=lion,seed=1", "unchanged"]
    assert trials[2].name.startswith("sample.prompt=a_b_c-")
    assert (trials[0].config.seed, trials[0].config.optimizer.name, trials[1].config.seed) == (1, "lion", 0)


def test_texts_that_look_alike_as_a_name_get_different_ones(plan):
    trials = plan("    for prompt in ('a/b', 'a:b', 'x' * 300):\n        add({'sample.prompt': prompt})\n")
    assert len({trial.name for trial in trials}) == 3 and max(len(trial.name) for trial in trials) < 128


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("    add({'optimizer.rate': 1.0})\n", "tiny.py line 14: there is no config.optimizer.rate"),
        ("    add({'seed': 1.5})\n", "tiny.py line 14: config.seed takes a whole number, not 1.5"),
        ("    add({'train.num_steps': 0})\n", "tiny.py line 14: train.num_steps is 0"),
        ("    add({'seed': 1})\n    add({'seed': 1})\n", "line 15: the sweep adds the run seed=1 twice: remove one"),
        ("    pass\n", "adds no run: call add"),
        ("    1 / 0\n", "tiny.py line 14 raised ZeroDivisionError: division by zero"),
        ("    pass\nsweep = None\n", "has no function sweep"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_any_run(lines, sentence, plan):
    with pytest.raises(InputError, match=sentence):
        plan(lines)


def test_a_run_that_fails_does_not_lose_the_others(plan, tmp_path, monkeypatch, capsys):
    trained = stub(monkeypatch, {
        1e-3: ([3.0, 2.5], None),
        1e-2: ([2.9], NonFiniteError("step 2: the loss is nan")),
        3e-3: ([2.0, 2.4], None),
    })  # fmt: skip
    done, lines = run(plan(RATES), tmp_path / "w")
    assert not done and trained == [1e-3, 1e-2, 3e-3]
    assert "optimizer.learning_rate=0.01: step 2: the loss is nan" in capsys.readouterr().err
    runs = json.loads((tmp_path / "w" / "sweep.json").read_text())["runs"]
    found = [(r["changes"]["optimizer.learning_rate"], r["eval_loss"], r["best_eval_loss"], r["status"]) for r in runs]
    assert found == [(3e-3, 2.4, 2.0, "done"), (1e-3, 2.5, 2.5, "done"), (1e-2, 2.9, 2.9, "diverged")]
    rows = [line.split() for line in lines[-3:]]
    assert [row[:4] for row in rows] == [
        ["0.003", "3.4000", "2.4000", "2.0000"], ["0.001", "3.5000", "2.5000", "2.5000"],
        ["0.01", "3.9000", "2.9000", "2.9000"],
    ]  # fmt: skip
    assert [row[-1] for row in rows] == ["done", "done", "diverged"]


@pytest.mark.parametrize(
    ("error", "status"), [(InputError("warmup"), "refused"), (RuntimeError("out of memory"), "failed")]
)
def test_how_a_run_failed_is_noted(error, status, plan, tmp_path, monkeypatch, capsys):
    stub(monkeypatch, {1e-3: ([3.0], error), 1e-2: ([], None), 3e-3: ([2.0], None)})
    run(plan(RATES), tmp_path / "w")
    runs = {r["run"]: r for r in json.loads((tmp_path / "w" / "sweep.json").read_text())["runs"]}
    assert runs["optimizer.learning_rate=0.001"]["status"] == status
    assert str(error) in runs["optimizer.learning_rate=0.001"]["message"]
    assert ("Traceback" in capsys.readouterr().err) == (status == "failed")
    assert runs["optimizer.learning_rate=0.01"]["eval_loss"] is None


def test_a_stopped_sweep_ends_with_the_signals_code_and_goes_on_when_run_again(plan, tmp_path, monkeypatch):
    trials = plan(RATES)
    trained = stub(monkeypatch, {1e-3: ([3.0], None), 1e-2: ([2.9], SystemExit(STOPPED_BY_SIGNAL))})
    with pytest.raises(SystemExit) as stopped:
        run(trials, tmp_path / "w")
    assert stopped.value.code == STOPPED_BY_SIGNAL and trained == [1e-3, 1e-2]
    runs = json.loads((tmp_path / "w" / "sweep.json").read_text())["runs"]
    assert [r["status"] for r in runs] == ["stopped", "done", "not finished"]

    stub(monkeypatch, {1e-3: ([3.0], None), 1e-2: ([2.9, 2.8], None), 3e-3: ([2.0], None)})
    done, _ = run(trials, tmp_path / "w")
    again = {r["run"]: r for r in json.loads((tmp_path / "w" / "sweep.json").read_text())["runs"]}
    assert done and {r["status"] for r in again.values()} == {"done"}


def test_the_time_of_a_run_that_was_interrupted_is_added_up(plan, tmp_path, monkeypatch):
    trials = plan("    add({})\n")
    stub(monkeypatch, {1e-3: ([3.0], None)})
    status = tmp_path / "w" / "unchanged" / sweep.STATUS_FILE
    run(trials, tmp_path / "w")
    status.write_text(json.dumps({"status": "stopped", "message": None, "seconds": 7200.0}))
    _, lines = run(trials, tmp_path / "w")
    assert "2:00:0" in lines[-1]


def test_a_real_run_that_diverges(plan, tmp_path, quick_compiler):
    done, lines = run(plan("    add({'optimizer.learning_rate': 1e30})\n"), tmp_path / "w")
    (record,) = json.loads((tmp_path / "w" / "sweep.json").read_text())["runs"]
    assert not done and (record["status"], record["step"], record["eval_loss"]) == ("diverged", 1, None)
    assert "first non-finite tensor" in record["message"] and lines[-1].split()[-1] == "diverged"


def test_jobs_run_in_their_own_processes_and_leave_the_same_table(plan, tmp_path, quick_compiler):
    trials = plan("    add({'train.num_steps': 1})\n", train={"eval_every": 0})
    options = cluster.parse_slurm("cluster:local,timeout_min:5")
    done = sweep.run_on_slurm(trials, trials[0].config, tmp_path / "w", options, distributed=False)
    (record,) = json.loads((tmp_path / "w" / "sweep.json").read_text())["runs"]
    assert done and (record["status"], record["step"], record["eval_loss"]) == ("done", 1, None)
    (log,) = (tmp_path / "w" / "slurm").glob("*.out")
    assert "step 1/1" in log.read_text()


def test_a_single_job_that_fails_is_seen(tmp_path, capsys):
    file = io.StringIO()
    options = cluster.parse_slurm("cluster:local,timeout_min:5")
    functions = [functools.partial(os.listdir, tmp_path / "nowhere")]
    assert not cluster.run_jobs(functions, tmp_path / "logs", options, False, Console(file=file, width=200))
    assert file.getvalue().startswith("submitted ") and str(tmp_path / "logs") in file.getvalue()
    (log,) = (tmp_path / "logs").glob("*.err")
    assert f"failed: see {log}" in capsys.readouterr().err and "FileNotFoundError" in log.read_text()


def test_a_requeued_job_calls_the_same_again(tmp_path):
    job = pickle.loads(pickle.dumps(cluster.Job(functools.partial(os.mkdir, tmp_path / "made"), False)))
    job.checkpoint().result()
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("partion:gpu", "--slurm has no option 'partion': did you mean 'partition'"),
        ("partition:gpu", "--slurm needs the minutes that a job may take"),
        ("timeout_min:long", "--slurm takes a number for timeout_min, not 'long'"),
    ],
)
def test_wrong_slurm_options_are_refused(text, sentence):
    with pytest.raises(InputError, match=sentence):
        cluster.parse_slurm(text)


def test_processes_that_would_train_the_same_are_refused(tmp_path):
    with pytest.raises(InputError, match="--slurm asks for several processes a job, which need --distributed"):
        cluster.run_jobs([print], tmp_path, {"nodes": 2}, False, Console(quiet=True))


def test_without_submitit_or_slurm_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match='--slurm could not submit .*"srun".*: start it where sbatch works'):
        cluster.run_jobs([print], tmp_path, {"timeout_min": 1}, False, Console(quiet=True))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match="--slurm needs submitit: pip install"):
        cluster.run_jobs([print], tmp_path, {"timeout_min": 1}, False, Console(quiet=True))


def test_slurm_options_have_their_types():
    options = cluster.parse_slurm("partition:gpu, timeout_min:60, mem_gb:7.5")
    assert options == {"partition": "gpu", "timeout_min": 60, "mem_gb": 7.5}


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two': it must be a whole number"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2: JAX_NUM_PROCESSES allows 0 to 1"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS is 'host': write host:port"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
         "found no process 0 at JAX_COORDINATOR_ADDRESS=localhost:1 within 0 seconds"),
    ],
)  # fmt: skip
def test_processes_that_cannot_find_each_other_are_told_why(variables, sentence, monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE", 0.1)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=sentence):
        cluster.start_distributed()
