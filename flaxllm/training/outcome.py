"""What a run leaves behind: the parameters that were best, or the mean of the last ones, and a model to use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from flaxllm.errors import InputError, did_you_mean
from flaxllm.pretrained import save_pretrained
from flaxllm.pretrained.peft import save_adapter
from flaxllm.training.checkpoint import Checkpoints
from flaxllm.training.evaluation import evaluate_run, in_words
from flaxllm.training.gathering import whole
from flaxllm.training.setup import Run
from flaxllm.training.state import TrainState

MODEL_FOLDER, ADAPTER_FOLDER, BEST_FOLDER, RESULT_FILE = "model", "adapter", "best", "result.json"
_LOWER_IS_BETTER = ("loss", "cross_entropy", "perplexity", "bits_per_byte")

Report = Callable[[str], None]


class Best:
    """The trained parameters that a metric was best with, kept in a folder of their own. Use it in a `with` block."""

    def __init__(self, folder: Path, metric: str):
        self._metric = metric
        self._sign = -1.0 if metric.rpartition("/")[2] in _LOWER_IS_BETTER else 1.0
        self._checkpoints = Checkpoints(folder, keep=1)
        self._value = max((self._sign * value for value in self._checkpoints.notes("value")), default=-np.inf)

    def __enter__(self) -> "Best":
        return self

    def __exit__(self, *_) -> None:
        self._checkpoints.__exit__()

    def offer(self, step: int, params: Any, metrics: dict[str, float]) -> bool:
        """Keep the parameters of this step if no earlier ones were as good.

        Raises:
          InputError: the metric is none of those that were measured.
        """
        if self._metric not in metrics:
            raise InputError(f"train.best is {self._metric!r}, which was not measured: {did_you_mean(self._metric, metrics)}")
        value = metrics[self._metric]
        if not self._sign * value > self._value:
            return False
        self._value = self._sign * value
        self._checkpoints.save(step, {"params": params}, {"metric": self._metric, "value": value})
        return True

    def params(self, abstract: Any, report: Report) -> tuple[Any, str]:
        """The parameters that are kept, and a word on which they are."""
        self._checkpoints.wait()
        restored = self._checkpoints.restore({"params": abstract}, lambda metadata: None, report)
        if restored is None:
            raise InputError(f"no parameters were kept as the best by {self._metric}: let train.eval_every be above 0")
        step, parts, metadata = restored
        return parts["params"], f"those of step {step}, best by {self._metric} ({metadata['value']:.4f})"


def conclude(
    config: ConfigDict,
    run: Run,
    state: TrainState,
    checkpoints: Checkpoints,
    best: Best | None,
    workdir: Path,
    metrics: dict[str, float],
    report: Report,
) -> dict[str, float]:
    """Take the parameters that the config makes of a run's, write down what they are worth, and export them; `metrics` are
    those of the state, if it was judged already. Returns the metrics. Every process calls this."""
    leads = jax.process_index() == 0
    state, what = final_state(config, run, state, checkpoints, best, report)
    if not metrics or best is not None or config.train.average > 1:
        metrics = evaluate_run(config, run, state)
        report(f"the parameters are {what}: {in_words(metrics)}")
    if leads:
        measured = {name: value for name, value in metrics.items() if name.startswith("eval/")}
        (workdir / RESULT_FILE).write_text(json.dumps({"parameters": what} | measured, indent=2) + "\n")
    if config.train.export:
        export(config, run, state, workdir, leads, report)
    return metrics


def final_state(
    config: ConfigDict, run: Run, state: TrainState, checkpoints: Checkpoints, best: Best | None, report: Report
) -> tuple[TrainState, str]:
    """The state with the parameters that the config makes of a run's, and a word on which they are."""
    abstract = run.placement.abstract(jax.eval_shape(run.make_state)).params
    if best is not None:
        params, what = best.params(abstract, report)
        return state.replace(params=run.placement.place(params)), what
    if config.train.average > 1:
        params, steps = mean_params(checkpoints, abstract, config.train.average, report)
        return state.replace(params=run.placement.place(params)), f"the mean of those of steps {', '.join(map(str, steps))}"
    return state, "those of the last step"


def mean_params(checkpoints: Checkpoints, abstract: Any, count: int, report: Report) -> tuple[Any, list[int]]:
    """The mean of the parameters of the last `count` checkpoints (Vaswani et al. 2017, section 6.1), and their steps.

    Raises:
      InputError: there are not so many.
    """
    checkpoints.wait()
    steps = checkpoints.steps()[-count:]
    if len(steps) < count:
        raise InputError(f"train.average is {count}, and there are {len(steps)} checkpoints: raise train.keep_checkpoints")
    total = None
    for step in steps:
        params = checkpoints.read(step, {"params": abstract})["params"]
        total = params if total is None else jax.tree.map(jnp.add, total, params)
    return jax.tree.map(lambda x: x / count, total), steps


def export(config: ConfigDict, run: Run, state: TrainState, workdir: Path, leads: bool, report: Report) -> None:
    """Write the model as a Hugging Face checkpoint, and an adapter as PEFT has it. Every process calls this."""
    trained, frozen = (jax.tree.map(whole, run.placement.gather(tree)) for tree in (state.params, state.frozen))
    if not leads:
        return
    trained, frozen = jax.tree.map(jnp.asarray, (trained, frozen))
    try:
        save_pretrained(workdir / MODEL_FOLDER, run.model, run.trained.merge(trained, frozen), run.tokenizer)
        report(f"the model is in {workdir / MODEL_FOLDER}")
        if config.lora.rank:
            save_adapter(workdir / ADAPTER_FOLDER, run.model, trained, config.lora.alpha, base=config.init_from)
            report(f"the adapter is in {workdir / ADAPTER_FOLDER}")
    except InputError as error:
        report(f"not written as a Hugging Face checkpoint: {error}")

