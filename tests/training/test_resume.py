"""Runs that are killed, stopped, damaged and moved, in processes of their own, end as if nothing had happened."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parents[2]
STEPS = 30


class Launcher:
    """Starts `launch.py` with the tiny experiment, on a text and with a cache of this test module."""

    def __init__(self, folder: Path):
        self.text = folder / "text.txt"
        self.text.write_text("".join(f"{n} sheep and {n * n} goats went over the bridge.\n" for n in range(400)))
        self.environment = {**os.environ, "FLAXLLM_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}

    def start(self, workdir: Path, *flags: str, devices: int = 1, **variables: str) -> subprocess.Popen:
        command = [sys.executable, "launch.py", f"--config={Path(__file__).with_name('tiny.py')}:{self.text}"]
        device_flag = f"--xla_force_host_platform_device_count={devices}"
        return subprocess.Popen(
            [*command, f"--workdir={workdir}", *flags],
            cwd=ROOT,
            env=self.environment | {"XLA_FLAGS": device_flag} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, workdir: Path, *flags: str, devices: int = 1) -> str:
        """What a run that must succeed prints."""
        process = self.start(workdir, *flags, devices=devices)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    def start_pair(self, workdir: Path, *flags: str) -> list[subprocess.Popen]:
        """Two processes of one run, with two devices each."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        variables = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
        return [
            self.start(workdir, "--distributed", *flags, devices=2, JAX_PROCESS_ID=str(index), **variables)
            for index in range(2)
        ]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory) -> Launcher:
    return Launcher(tmp_path_factory.mktemp("launch"))


@pytest.fixture(scope="module")
def undisturbed(launcher, tmp_path_factory) -> Path:
    """The workdir of a run on one device that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    launcher.run(workdir)
    return workdir


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def last_state(workdir: Path) -> dict:
    """The arrays of the last checkpoint, read by orbax alone."""
    state = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(STEPS) / "state")
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_run(workdir: Path, other: Path) -> None:
    """Every loss and every bit of the last state is the same."""
    assert metrics(workdir) == metrics(other)
    mine, others = last_state(workdir), last_state(other)
    assert mine.keys() == others.keys() and any("opt_state" in path for path in mine)
    for path, array in mine.items():
        assert array.tobytes() == others[path].tobytes(), path


def assert_close_run(workdir: Path, other: Path) -> None:
    """Each step has its line once, and its loss is the other's but for the order of sums."""
    mine, others = metrics(workdir), metrics(other)
    assert [line["step"] for line in mine] == list(range(1, STEPS + 1)) == [line["step"] for line in others]
    for key in ("loss", "eval/loss"):
        pairs = [(a[key], b[key]) for a, b in zip(mine, others, strict=True) if key in b]
        np.testing.assert_allclose(*np.transpose(pairs), rtol=2e-4, err_msg=key)


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    path = workdir / "metrics.jsonl"
    for _ in range(6000):
        if path.exists() and path.read_bytes().count(b"\n") >= step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came")


def flip_a_bit(checkpoint: Path) -> None:
    files = [path for path in (checkpoint / "state").rglob("d/*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def test_a_run_killed_again_and_again_ends_bit_for_bit_as_undisturbed(launcher, undisturbed, tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # pytest shows it if the test fails
    moment = random.Random(seed)
    for step in (1, 6, 13, 22):
        process = launcher.start(tmp_path)
        wait_for_step(process, tmp_path, step)
        time.sleep(moment.uniform(0.0, 0.3))
        process.kill()
        process.wait()
    assert "resumed from step" in launcher.run(tmp_path)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_flipped_bit_sends_the_run_back_to_the_checkpoint_before(launcher, undisturbed, tmp_path):
    launcher.run(tmp_path)
    flip_a_bit(tmp_path / "checkpoints" / str(STEPS))
    output = launcher.run(tmp_path)
    assert f"{STEPS} is damaged" in output and "resumed from step 28" in output
    assert_same_run(tmp_path, undisturbed)


def test_sigterm_saves_the_step_and_exits_with_143(launcher, undisturbed, tmp_path):
    process = launcher.start(tmp_path)
    wait_for_step(process, tmp_path, 5)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert f"stopped by SIGTERM: the same command goes on from step {saved}" in output
    assert saved == len(metrics(tmp_path)) < STEPS
    assert f"resumed from step {saved}" in launcher.run(tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_a_finished_run_changes_nothing_when_started_again(launcher, undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    launcher.run(undisturbed)
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_one_checkpoint_goes_on_in_every_placement(launcher, undisturbed, tmp_path):
    """Each part of the run is in another placement, and each starts from the checkpoint of the one before.

    Each is stopped right after its first step: a signal takes a while to be sent, and a step only milliseconds.
    """
    parts = [
        ("pmap", "data:-1", 8),
        ("mesh", "data:2,fsdp:2", 4),
        ("mesh", "data:1", 1),
        ("mesh", "fsdp:2,model:2,sequence:2", 8),
        ("pmap", "data:-1", 2),
    ]
    for number, (placement, mesh, devices) in enumerate(parts):
        done = len(metrics(tmp_path)) if number else 0
        flags = [f"--config.placement={placement}", f"--config.mesh={mesh}", "--config.train.checkpoint_every=0"]
        process = launcher.start(tmp_path, *flags, devices=devices)
        wait_for_step(process, tmp_path, done + 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143, process.communicate()[0]
    launcher.run(tmp_path)
    assert_close_run(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["mesh", "pmap"])
def test_two_processes_are_stopped_together_and_go_on_as_one(placement, launcher, undisturbed, tmp_path):
    flags = [f"--config.placement={placement}"]
    pair = launcher.start_pair(tmp_path, *flags)
    wait_for_step(pair[0], tmp_path, 11)  # beyond an evaluation and a sample
    pair[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=90)[0] for process in pair]
    assert [process.returncode for process in pair] == [143, 143], outputs
    assert "stopped by SIGTERM" in outputs[0] and "loss" not in outputs[1]
    assert len(metrics(tmp_path)) < STEPS
    assert "resumed from step" in launcher.run(tmp_path, *flags)
    assert_close_run(tmp_path, undisturbed)
