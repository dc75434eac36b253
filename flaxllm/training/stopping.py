"""How a run is stopped from outside, and what stops it from inside."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxllm.training.step import finite_leaves

STOPPED_BY_SIGNAL = 128 + signal.SIGTERM


class NonFiniteError(RuntimeError):
    """The loss or a gradient is NaN or infinite."""


@contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """A function of the step that says whether SIGTERM asked this run to stop; all processes get the same answer.

    With several processes the signal is caught by jax.distributed, which agrees on a step between them.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = []
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    except ValueError:  # not the main thread: signals are somebody else's
        yield lambda step: False
        return
    try:
        yield lambda step: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)


def check_finite(step: int, metrics: dict[str, np.ndarray], paths: list[str]) -> None:
    """Raise NonFiniteError if the step's loss or any of its gradients (in the order of `paths`) is not finite."""
    finite = np.asarray(metrics["finite"])
    if not np.isfinite(metrics["loss"]) or not finite.all():
        tensor = "the loss" if finite.all() else f"the gradient of {paths[int(np.argmin(finite))]}"
        raise _stopped(step, f"the loss is {float(metrics['loss']):.6g} and the first non-finite tensor is {tensor}")


def check_params_finite(step: int, params: Any, paths: list[str]) -> None:
    """Raise NonFiniteError if the step led to a parameter that is not finite."""
    finite = np.asarray(jax.jit(finite_leaves)(params))
    if not finite.all():
        raise _stopped(step, f"the first non-finite tensor is the parameter {paths[int(np.argmin(finite))]}")


def _stopped(step: int, what: str) -> NonFiniteError:
    return NonFiniteError(
        f"step {step}: {what}; the run stops here and its last good checkpoint is kept "
        "(try a lower learning rate, a longer warmup, or a smaller optimizer.clip_norm)"
    )
