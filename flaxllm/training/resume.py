"""Where a run starts: its own last good checkpoint, else the parameters of another run, else afresh."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxllm.errors import InputError
from flaxllm.training.checkpoint import Checkpoints, describe
from flaxllm.training.gathering import of_all_processes
from flaxllm.training.record import check_fingerprint, compare_configs
from flaxllm.training.setup import Run
from flaxllm.training.starting import params_at
from flaxllm.training.state import TrainState, keys
from flaxllm.training.trained import FROZEN

Report = Callable[[str], None]


def restore_or_start(config: ConfigDict, run: Run, checkpoints: Checkpoints, report: Report) -> tuple[TrainState, int]:
    """The placed state and its step; the data stream is set to the same place.

    Raises:
      InputError: the checkpoint belongs to another model or other data, or there is nothing at `init_from`.
    """
    shapes = jax.eval_shape(run.make_state)
    start = None if shapes.frozen is None else start_of(config, run, report)

    def accept(metadata: dict) -> None:
        changes = compare_configs(metadata["config"], config.to_dict())
        check_fingerprint(metadata["data_fingerprint"], run.fingerprint)
        if shapes.frozen is not None and metadata[FROZEN] != fingerprint(run.placement.gather(start.frozen)):
            raise InputError(f"init_from {config.init_from!r} changed since this workdir's checkpoint: restore what it was")
        for line in changes:
            report(f"changed since the checkpoint: {line}")

    restored = checkpoints.restore(run.placement.abstract(shapes.replace(frozen=None)), accept, report)
    if restored is not None:
        step, state, metadata = restored
        run.stream.restore(metadata["data"])
        report(f"resumed from step {step}")
        return run.placement.place(state).replace(frozen=None if start is None else start.frozen), step
    return start_of(config, run, report) if start is None else start, 0


def start_of(config: ConfigDict, run: Run, report: Report) -> TrainState:
    """The placed state before the first step: with the parameters at `init_from`, else with those that are drawn."""
    state = run.placement.create(run.make_state)
    if not config.init_from:
        return state
    params = params_at(config.init_from, run.model, run.tokenizer, run.placement, report)
    trained, frozen = run.trained.split(params, keys(config.seed)[0])
    placed = run.placement.place({"params": trained, FROZEN: frozen})
    return state.replace(params=placed["params"], frozen=placed[FROZEN])


def restore_trained(config: ConfigDict, run: Run, checkpoints: Checkpoints, report: Report) -> tuple[TrainState, int]:
    """The state of a run that has a checkpoint, for evaluation.

    Raises:
      InputError: there is none, or it belongs to another model.
    """
    if not checkpoints.steps():
        raise InputError("this workdir holds no checkpoint to evaluate: train first, by the same command without --mode=eval")
    return restore_or_start(config, run, checkpoints, report)


def fingerprint(tree: Any) -> str:
    """A digest of all arrays of a tree."""
    return hashlib.sha256(json.dumps(describe(tree), sort_keys=True).encode()).hexdigest()


def gather_states(own: dict[str, Any]) -> dict[str, Any]:
    """The data states of all processes, each of which knows its own shards."""
    return {shard: state for part in of_all_processes(own) for shard, state in part.items()}
