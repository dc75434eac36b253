"""The training loop."""

from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxllm import nn
from flaxllm.console import lead_console, say, show_table, text_table
from flaxllm.training.checkpoint import Checkpoints
from flaxllm.training.config import check_config
from flaxllm.training.evaluation import Measure, evaluate_run, in_words
from flaxllm.training.experiment import make_workdir
from flaxllm.training.outcome import BEST_FOLDER, Best, conclude
from flaxllm.training.overrides import with_changes
from flaxllm.training.progress import Progress, peak_flops
from flaxllm.training.record import write_record
from flaxllm.training.resume import fingerprint, gather_states, restore_or_start, restore_trained
from flaxllm.training.samples import write_sample, writes
from flaxllm.training.setup import Run, make_run
from flaxllm.training.starting import CHECKPOINTS_FOLDER
from flaxllm.training.state import TrainState
from flaxllm.training.stopping import STOPPED_BY_SIGNAL, check_finite, check_params_finite, stop_requests
from flaxllm.training.trained import FROZEN
from flaxllm.training.writers import METRICS_FILE, MetricWriter, plot_loss, read_metrics


def train(config: ConfigDict, workdir: str | Path, measure: Measure | None = None) -> dict[str, float]:
    """Train as the config says, in `workdir`, and return the metrics of the last step.

    At each evaluation `measure(model, params)` is called, in every process, and its numbers are metrics as the loss is: "score"
    is written as `eval/score`.

    A workdir that holds a checkpoint is resumed from it, to the same numbers as if never interrupted. At the end the model
    is written to the workdir's folder `model`, with the parameters that were best, or the mean of the last ones, where the
    config says so; `result.json` has the metrics of these.

    Raises:
      InputError: something in the config, the data or the workdir cannot be used.
      NonFiniteError: the loss or a gradient became NaN or infinite; the last good checkpoint is kept.
      SystemExit: with code 143, after SIGTERM and a checkpoint.
    """
    check_config(config)
    workdir = make_workdir(workdir)
    leads = jax.process_index() == 0
    console = lead_console()
    report = partial(say, console)
    run = make_run(config, report)
    trained, total = run.trained.size, nn.count(run.model.param_specs())
    if trained < total:
        report(f"training {trained:,} parameters, {trained / total:.2%} of the model's {total:,}")
    with (
        closing(run.stream),
        Checkpoints(workdir / CHECKPOINTS_FOLDER, keep=config.train.keep_checkpoints) as checkpoints,
        Best(workdir / BEST_FOLDER, config.train.best) if config.train.best else nullcontext() as best,
    ):
        state, step = restore_or_start(config, run, checkpoints, report)
        if leads:
            write_record(workdir, config, run.fingerprint)
            run.tokenizer.save(workdir)
        with (
            MetricWriter(workdir if leads else None, step) as writer,
            Progress(config.train.num_steps, step, **_speeds(config, run), console=console) as progress,
            stop_requests() as stop_requested,
        ):
            outputs = Outputs(config, run, checkpoints, best, writer, progress, list(nn.flatten(state.params)), measure)
            while step < config.train.num_steps:
                state, metrics = run.train_step(state, run.placement.batch(next(run.stream)))
                step += 1
                # The device is at work on this step while the metrics of the one before are read.
                outputs.finish_pending()
                outputs.pending = (step, metrics)
                outputs.write_due(step, state)
                if stop_requested(step):
                    outputs.stop(step, state)
            outputs.finish_pending()
        if leads:
            plot_loss(workdir)
        metrics = outputs.last_metrics or (_last_recorded(workdir) if leads else {})
        if config.train.export or best or config.train.average > 1:
            conclude(config, run, state, checkpoints, best, workdir, metrics, report)
    return metrics


def evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, float]:
    """Judge the parameters that `train` ends with, from the checkpoints in `workdir`, by all that is held out; print the
    metrics, write them to `result.json`, and return them. Nothing is trained.

    Raises:
      InputError: something in the config, the data or the workdir cannot be used.
    """
    check_config(config)
    workdir = make_workdir(workdir)
    console = lead_console()
    report = partial(say, console)
    config = with_changes(config, {"train.export": False})
    run = make_run(config, report)
    with (
        closing(run.stream),
        Checkpoints(workdir / CHECKPOINTS_FOLDER, keep=config.train.keep_checkpoints) as checkpoints,
        Best(workdir / BEST_FOLDER, config.train.best) if config.train.best else nullcontext() as best,
    ):
        state, _ = restore_trained(config, run, checkpoints, report)
        metrics = conclude(config, run, state, checkpoints, best, workdir, {}, report)
    table = text_table("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name.removeprefix("eval/"), f"{value:.4f}")
    show_table(console, table)
    return metrics


@dataclass
class Outputs:
    """What comes out of a run: metrics, evaluations, samples and checkpoints. `pending` is a step not yet read."""

    config: ConfigDict
    run: Run
    checkpoints: Checkpoints
    best: Best | None
    writer: MetricWriter
    progress: Progress
    paths: list[str]
    measure: Measure | None
    pending: tuple[int, dict] | None = None
    last_metrics: dict[str, float] = field(default_factory=dict)

    def finish_pending(self, more: dict[str, float] | None = None) -> None:
        """Read, check, show and write the metrics of the pending step, if there is one, with `more` of that step.

        Raises:
          NonFiniteError: the step's loss or gradient is not finite.
        """
        if self.pending is None:
            return
        step, device_metrics = self.pending
        self.pending = None
        values = self.run.placement.read(device_metrics)
        check_finite(step, values, self.paths)
        metrics = {name: float(value) for name, value in values.items() if name != "finite"}
        metrics["learning_rate"] = float(self.run.schedule(step - 1))
        self.last_metrics = metrics | (more or {})
        self.writer.write(step, self.last_metrics)
        self.progress.update(step, self.last_metrics)

    def write_due(self, step: int, state: TrainState) -> None:
        """Evaluate, sample and save where the config asks for it at this step, and after the last."""
        if self._due("eval_every", step):
            with self.progress.paused("evaluating"):
                metrics = evaluate_run(self.config, self.run, state, self.measure)
            self.finish_pending(metrics)
            if metrics:
                self.progress.note(f"step {step}: {in_words(metrics)}")
            if metrics and self.best is not None:
                params = self.run.placement.gather(state.params)
                if self.best.offer(step, params, metrics):
                    self.progress.note(f"step {step} is the best by {self.config.train.best}")
        if self._due("sample_every", step) and writes(self.run.model):
            self.finish_pending()
            with self.progress.paused("sampling"):
                text = self._sample(state, step)
            self.writer.write_text(step, "sample", text)
            self.progress.note(f"step {step}, a sample:\n{text}\n")
        if self._due("checkpoint_every", step):
            self.save(step, state)

    def save(self, step: int, state: TrainState) -> None:
        """Write a checkpoint, once the step's loss and the parameters it led to are known to be finite."""
        self.finish_pending()
        with self.progress.paused("saving"):
            check_params_finite(step, state.params, self.paths)
            metadata = {
                "config": self.config.to_dict(),
                "data": gather_states(self.run.stream.state()),
                "data_fingerprint": self.run.fingerprint,
                "tokenizer": self.run.tokenizer.fingerprint,
            }
            if state.frozen is not None:
                metadata[FROZEN] = fingerprint(self.run.placement.gather(state.frozen))
            self.checkpoints.save(step, self.run.placement.gather(state.replace(frozen=None)), metadata)

    def stop(self, step: int, state: TrainState) -> None:
        """Save and leave with the exit code of a stopped process, so that a scheduler starts the run again."""
        if step < self.config.train.num_steps:
            self.save(step, state)
            self.checkpoints.wait()
            self.progress.note(f"stopped by SIGTERM: the same command goes on from step {step}")
            raise SystemExit(STOPPED_BY_SIGNAL)

    def _due(self, key: str, step: int) -> bool:
        every = self.config.train[key]
        return bool(every) and (step % every == 0 or step == self.config.train.num_steps)

    def _sample(self, state: TrainState, step: int) -> str:
        run = self.run
        key = jax.random.fold_in(jax.random.PRNGKey(self.config.seed), step)
        params = run.trained.merge(run.placement.gather(state.params), run.placement.gather(state.frozen))
        return write_sample(run.model, params, run.tokenizer, self.config.sample, key, run.ctx)


def _last_recorded(workdir: Path) -> dict[str, float]:
    """The metrics of the last step of a run that was finished before."""
    record = read_metrics(workdir / METRICS_FILE)[-1]
    return {name: value for name, value in record.items() if name != "step"}


def _speeds(config: ConfigDict, run: Run) -> dict[str, Any]:
    """What a step holds, its operations (backward is twice forward), and the operations a second of all devices; examples
    only, where a row's length changes from step to step."""
    if config.data.pad_to_multiple_of is not None:
        return {"per_step": config.data.batch_size, "unit": "examples"}
    tokens = config.data.batch_size * config.data.max_len
    peak = peak_flops(jax.devices()[0].device_kind, config.compute_dtype)
    known = peak is not None and config.precision not in ("high", "highest")
    return {
        "per_step": tokens,
        "flops_per_step": 3.0 * run.model.matmul_flops(tokens, config.data.max_len),
        "peak_flops": peak * jax.device_count() if known else None,
    }
