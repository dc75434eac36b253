"""A sweep: runs of one experiment with other values, each in a folder named after them, and one table of the results.

Every run leaves its status in its own folder, so that the table can be made from any process, at any time.
"""

import hashlib
import json
import math
import re
import sys
import time
import traceback
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from flaxllm.console import lead_console, say, show_table
from flaxllm.errors import InputError
from flaxllm.training.cluster import run_jobs
from flaxllm.training.config import check_config
from flaxllm.training.experiment import Experiment, errors_of, make_workdir
from flaxllm.training.loop import train
from flaxllm.training.overrides import with_changes
from flaxllm.training.progress import format_time
from flaxllm.training.stopping import NonFiniteError
from flaxllm.training.writers import METRICS_FILE, read_metrics

SWEEP_FILE = "sweep.json"
STATUS_FILE = "status.json"
DONE = "done"

_LONGEST_NAME = 100


class Trial(NamedTuple):
    """One run of a sweep: what it changes, the config that this gives, and its folder's name."""

    name: str
    changes: dict[str, object]
    config: ConfigDict


def plan_sweep(experiment: Experiment, config: ConfigDict) -> list[Trial]:
    """The runs that the experiment's `sweep` adds to `config`, all of them checked.

    Raises:
      InputError: there is no `sweep`, it adds no run or one twice, or a key or a value that cannot be.
    """
    if not callable(experiment.sweep):
        raise InputError(f"{experiment.path} has no function sweep(add): define it there, or leave --sweep out")
    trials: dict[str, Trial] = {}

    def add(changes: dict[str, object]) -> None:
        changed = with_changes(config, changes)
        check_config(changed)
        name = _name(changes)
        if name in trials:
            raise InputError(f"the sweep adds the run {name} twice: remove one")
        trials[name] = Trial(name, dict(changes), changed)

    with errors_of(experiment.path):
        experiment.sweep(add)
    if not trials:
        raise InputError(f"sweep(add) of {experiment.path} adds no run: call add({{key: value}}) once for each")
    return list(trials.values())


def run_sweep(trials: Sequence[Trial], workdir: Path, console: Console | None = None) -> bool:
    """Train one run after another and print the table; whether all of them got through.

    A run that fails does not keep the others from running, one that was interrupted is resumed, and one that is done is
    not done again.

    Raises:
      SystemExit: with code 143, after SIGTERM.
    """
    console = console or lead_console()
    for index, trial in enumerate(trials):
        say(console, f"run {index + 1} of {len(trials)}: {trial.name}")
        run_trial(trials, index, workdir)
    return report(trials, workdir, console)


def run_on_slurm(
    trials: Sequence[Trial], config: ConfigDict, workdir: Path, options: dict[str, Any], distributed: bool
) -> bool:
    """Train each run, or `config` itself where there is none, in a job of its own, and wait; whether all went well."""
    check_config(config)
    console = lead_console()
    functions = [partial(run_trial, trials, index, workdir) for index in range(len(trials))]
    functions = functions or [partial(train, config, workdir)]
    returned = run_jobs(functions, workdir / "slurm", options, distributed, console)
    return report(trials, workdir, console) if trials else returned


def show_plan(trials: Sequence[Trial]) -> None:
    """Print the runs of a sweep."""
    console = lead_console()
    for index, trial in enumerate(trials):
        say(console, f"run {index + 1} of {len(trials)}: {trial.name}")


def run_trial(trials: Sequence[Trial], index: int, workdir: Path) -> None:
    """Train one run of a sweep, note how it ended, and bring the sweep's table up to date."""
    trial = trials[index]
    folder = make_workdir(workdir / trial.name)
    began, spent = time.monotonic(), _read_status(folder)["seconds"]
    status, message = "stopped", None
    try:
        train(trial.config, folder)
        status = DONE
    except NonFiniteError as error:
        status, message = "diverged", str(error)
    except InputError as error:
        status, message = "refused", str(error)
    except Exception as error:  # noqa: BLE001 (out of memory, a bug: the other runs may still go well)
        traceback.print_exc()
        status, message = "failed", f"{type(error).__name__}: {error}"
    finally:
        if jax.process_index() == 0:
            if message:
                print(f"{trial.name}: {message}", file=sys.stderr)
            seconds = spent + time.monotonic() - began
            _write_json(folder / STATUS_FILE, {"status": status, "message": message, "seconds": round(seconds, 1)})
            _write_json(workdir / SWEEP_FILE, {"runs": results(trials, workdir)})


def report(trials: Sequence[Trial], workdir: Path, console: Console | None = None) -> bool:
    """Print the sweep's table and write it as JSON; whether all runs are done."""
    console = console or lead_console()
    records = results(trials, workdir)
    if jax.process_index() == 0:
        _write_json(workdir / SWEEP_FILE, {"runs": records})
    console.print()
    show_table(console, _table(records))
    return all(record["status"] == DONE for record in records)


def results(trials: Sequence[Trial], workdir: Path) -> list[dict]:
    """What is known of each run, the lowest evaluation loss first. A number that is not known is None."""
    records = [_result(trial, workdir / trial.name) for trial in trials]

    def loss_last(record: dict) -> tuple:
        return tuple(math.inf if record[key] is None else record[key] for key in ("eval_loss", "loss"))

    return sorted(records, key=loss_last)


def _result(trial: Trial, folder: Path) -> dict:
    path = folder / METRICS_FILE
    metrics = read_metrics(path) if path.exists() else []
    evaluated = [record["eval/loss"] for record in metrics if "eval/loss" in record]
    losses = {
        "loss": metrics[-1]["loss"] if metrics else None,
        "eval_loss": evaluated[-1] if evaluated else None,
        "best_eval_loss": min(evaluated, default=None),
    }
    finite = {name: x if x is not None and math.isfinite(x) else None for name, x in losses.items()}
    step = metrics[-1]["step"] if metrics else 0
    return {"run": trial.name, "changes": trial.changes, "step": step, **finite, **_read_status(folder)}


def _table(records: list[dict]) -> Table:
    table = Table(pad_edge=False)
    keys = list(dict.fromkeys(key for record in records for key in record["changes"]))
    for key in keys:
        table.add_column(key, overflow="fold")
    for name in ("loss", "eval loss", "best eval loss", "steps", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for record in records:
        changed = [str(record["changes"].get(key, "")) for key in keys]
        losses = [record[name] for name in ("loss", "eval_loss", "best_eval_loss")]
        table.add_row(
            *changed,
            *("-" if loss is None else f"{loss:.4f}" for loss in losses),
            str(record["step"]),
            format_time(record["seconds"]),
            record["status"],
        )
    return table


def _name(changes: dict[str, object]) -> str:
    """A folder's name that says what is changed; it does not depend on the run's place in the sweep."""
    text = ",".join(f"{key}={value}" for key, value in sorted(changes.items())) or "unchanged"
    name = re.sub(r"[^\w.=,+-]", "_", text)[:_LONGEST_NAME]
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _read_status(folder: Path) -> dict:
    path = folder / STATUS_FILE
    unknown = {"status": "not finished", "message": None, "seconds": 0.0}
    return json.loads(path.read_text()) if path.exists() else unknown


def _write_json(path: Path, value: dict) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # runs on several machines may end at once
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)
