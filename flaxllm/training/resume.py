"""Where a run starts: its own last good checkpoint, else the parameters of another run, else afresh."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from flaxllm.errors import InputError
from flaxllm.training.checkpoint import Checkpoints
from flaxllm.training.record import check_fingerprint, compare_configs
from flaxllm.training.setup import Run
from flaxllm.training.state import TrainState

Report = Callable[[str], None]


def restore_or_start(config: ConfigDict, run: Run, checkpoints: Checkpoints, report: Report) -> tuple[TrainState, int]:
    """The placed state and its step; the data stream is set to the same place.

    Raises:
      InputError: the checkpoint belongs to another model or other data, or there is nothing at `init_from`.
    """

    def accept(metadata: dict) -> None:
        changes = compare_configs(metadata["config"], config.to_dict())
        check_fingerprint(metadata["data_fingerprint"], run.split.fingerprint)
        for line in changes:
            report(f"changed since the checkpoint: {line}")

    shapes = jax.eval_shape(run.make_state)
    restored = checkpoints.restore(run.placement.abstract(shapes), accept, report)
    if restored is not None:
        step, state, metadata = restored
        run.stream.restore(metadata["data"])
        report(f"resumed from step {step}")
        return run.placement.place(state), step
    state = run.placement.create(run.make_state)
    if config.init_from:
        params = _params_of(Path(config.init_from).expanduser(), run, shapes, report)
        state = state.replace(params=run.placement.place(params))
    return state, 0


def _params_of(workdir: Path, run: Run, shapes: TrainState, report: Report) -> dict:
    """The parameters of another run's last good checkpoint."""

    def accept(metadata: dict) -> None:
        if metadata["tokenizer"] != run.tokenizer.fingerprint:
            raise InputError(
                f"init_from {str(workdir)!r} was trained with another tokenizer, so its token ids mean other text: set "
                f"data.tokenizer to {str(workdir.absolute() / 'tokenizer.json')!r}"
            )

    directory = workdir.absolute() / "checkpoints"
    if not directory.is_dir():
        raise InputError(f"init_from {str(workdir)!r} is not a run's workdir: it holds no folder 'checkpoints'")
    with Checkpoints(directory, keep=None) as checkpoints:
        wanted = run.placement.abstract({"params": shapes.params})
        restored = checkpoints.restore(wanted, accept, report)
    if restored is None:
        raise InputError(f"init_from {str(workdir)!r} holds no checkpoint that is whole: name another run's workdir")
    step, parts, _ = restored
    report(f"started from the parameters of {workdir}, step {step}")
    return parts["params"]


def gather_states(own: dict[str, Any]) -> dict[str, Any]:
    """The data states of all processes, each of which knows its own shards."""
    if jax.process_count() == 1:
        return own
    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.array(len(text))).max())
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    states = [json.loads(row.tobytes()) for row in np.asarray(multihost_utils.process_allgather(padded))]
    return {shard: state for part in states for shard, state in part.items()}
