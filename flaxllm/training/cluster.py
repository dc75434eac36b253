"""More than one process or machine: `jax.distributed`, and jobs on Slurm through submitit."""

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from flaxllm.console import say
from flaxllm.errors import InputError, did_you_mean

# What --slurm takes: sbatch's options by submitit's names. "cluster:local" runs the jobs on this machine, to try it.
SLURM_OPTIONS: dict[str, type] = {
    "cluster": str,
    "partition": str,
    "account": str,
    "qos": str,
    "constraint": str,
    "exclude": str,
    "nodelist": str,
    "gres": str,
    "name": str,
    "timeout_min": int,
    "nodes": int,
    "tasks_per_node": int,
    "gpus_per_node": int,
    "cpus_per_task": int,
    "mem_gb": float,
    "array_parallelism": int,
}
_OF_EVERY_CLUSTER = ("name", "timeout_min", "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb")
_PATIENCE = 300.0  # seconds, jax's own
_MOST_TIMEOUTS = 1000  # a job that ran out of time goes on where it was, this often


def start_distributed() -> None:
    """Join the other processes of this run; to be called before anything else touches jax.

    jax finds them by itself under Slurm, Open MPI, Kubernetes and on TPU pods. Elsewhere three variables tell:
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      InputError: nothing tells which processes there are, a variable is no number, or they cannot be reached.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address and not re.fullmatch(r".+:\d+", address):
        raise InputError(f"JAX_COORDINATOR_ADDRESS is {address!r}: write host:port, the same for every process")
    processes, index = _number_in("JAX_NUM_PROCESSES"), _number_in("JAX_PROCESS_ID")
    if processes is not None and index is not None and not index < processes:
        raise InputError(f"JAX_PROCESS_ID is {index}: JAX_NUM_PROCESSES allows 0 to {processes - 1}")
    if address and index:
        _wait_for(address)
    try:
        jax.distributed.initialize(num_processes=processes, process_id=index)
    except ValueError as error:
        raise InputError(
            "--distributed found no cluster (Slurm, Open MPI, Kubernetes or a TPU pod): set JAX_COORDINATOR_ADDRESS="
            "host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID for every process"
        ) from error
    except RuntimeError as error:
        raise InputError(f"--distributed could not join the other processes: {' '.join(str(error).split())}") from error


def _wait_for(address: str) -> None:
    """Return once something listens there: jax itself would wait as long, and then abort the process."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"--distributed found no process 0 at JAX_COORDINATOR_ADDRESS={address} within {_PATIENCE:.0f} "
                    f"seconds ({error.strerror or error}): start it there, or correct the address"
                ) from error
            time.sleep(0.2)


def parse_slurm(text: str) -> dict[str, Any]:
    """`"partition:gpu,timeout_min:60"` as a dict.

    Raises:
      InputError: an unknown option, a value that is not of its type, or no timeout_min.
    """
    options = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, value = part.partition(":")
        if name not in SLURM_OPTIONS:
            raise InputError(f"--slurm has no option {name!r}: {did_you_mean(name, SLURM_OPTIONS)}")
        try:
            options[name] = SLURM_OPTIONS[name](value)
        except ValueError as error:
            raise InputError(f"--slurm takes a number for {name}, not {value!r}") from error
    if "timeout_min" not in options:
        raise InputError("--slurm needs the minutes that a job may take, such as timeout_min:240 (it is resumed after)")
    return options


def run_jobs(
    functions: Sequence[Callable[[], Any]], logs: Path, options: dict[str, Any], distributed: bool, console: Console
) -> bool:
    """Submit each function as a job (several as one array), and wait for them; whether all of them returned.

    Whoever waits may be interrupted: the jobs go on. A job that runs out of time or is preempted is put back in the
    queue, and then resumes its run.

    Raises:
      InputError: submitit or Slurm is not there, or they refuse the options.
    """
    if options.get("nodes", 1) * options.get("tasks_per_node", 1) > 1 and not distributed:
        raise InputError("--slurm asks for several processes a job, which need --distributed to work together: add it")
    try:
        import submitit
    except ImportError as error:
        raise InputError("--slurm needs submitit: pip install 'flaxllm[slurm]'") from error
    cluster = options.get("cluster", "slurm")
    parameters = {
        name if name in _OF_EVERY_CLUSTER else f"slurm_{name}": value
        for name, value in options.items()
        if name != "cluster"
    }
    try:
        executor = submitit.AutoExecutor(
            logs, cluster=cluster, slurm_max_num_timeout=_MOST_TIMEOUTS, local_max_num_timeout=_MOST_TIMEOUTS
        )
        executor.update_parameters(**parameters)
        with executor.batch():
            jobs = [executor.submit(Job(function, distributed)) for function in functions]
    except (RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"--slurm could not submit ({message}): start it where sbatch works") from error
    ids = ", ".join(job.job_id for job in jobs)
    told = f"submitted {ids}; their output is in {logs}; waiting (if interrupted, they go on)"
    say(console, told)
    failed = [job for job in jobs if job.exception() is not None]
    for job in failed:
        print(f"job {job.job_id} failed: see {job.paths.stderr}", file=sys.stderr)
    return not failed


@dataclass(frozen=True)
class Job:
    """What a job calls. It may be started anew at any time: a run resumes by itself."""

    function: Callable[[], Any]
    distributed: bool

    def __call__(self) -> None:
        if self.distributed:
            start_distributed()
        self.function()

    def checkpoint(self) -> Any:
        """submitit's hook: what a job that goes back in the queue is to call then."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _number_in(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is not None and not text.isdigit():
        raise InputError(f"{variable} is {text!r}: it must be a whole number, 0 or more")
    return None if text is None else int(text)
