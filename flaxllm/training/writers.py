"""What a run leaves to be looked at: metrics.jsonl, TensorBoard events, text samples, a picture of its loss.

`metrics.jsonl` has one JSON object a line, `{"step": 7, "loss": 2.5, "eval/loss": 2.6}`, with steps that only
grow. A number is written so that it reads back bit for bit. JSON has no NaN: non-finite numbers are the
strings "NaN", "Infinity" and "-Infinity", which `read_metrics` turns back into floats.
"""

import json
import math
import os
import re
from pathlib import Path

import numpy as np

from flaxllm.errors import InputError

METRICS_FILE = "metrics.jsonl"
PLOT_FILE = "loss.png"
SAMPLES_FOLDER = "samples"

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TENSORBOARD_FLUSH_SECONDS = 5
_SMOOTH_FROM = 100  # losses; fewer are drawn as they are


class MetricWriter:
    """Writes a run's metrics into its workdir, from the step that the run was restored at.

    Opening it takes back what a killed run wrote after that step: the lines of `metrics.jsonl` with a greater
    step, a last line that the kill broke off, TensorBoard's points and the samples. Every line reaches the
    operating system before `write` returns, so that a kill loses at most the one it interrupts (and
    TensorBoard's last seconds). With `workdir=None`, as in every process but the first, nothing is opened and
    nothing written.

    Args:
      workdir: the run's folder, made if it is not there.
      step: the last step to keep; -1 for a fresh run that writes something before its first step.

    Raises:
      InputError: `metrics.jsonl` has a line, other than a broken last one, that is not such an object.
    """

    def __init__(self, workdir: str | os.PathLike | None, step: int):
        self._workdir = None if workdir is None else Path(workdir)
        self._last_step = -1
        if self._workdir is None:
            return
        self._workdir.mkdir(parents=True, exist_ok=True)
        path = self._workdir / METRICS_FILE
        self._last_step = _cut_metrics(path, step)
        _cut_samples(self._workdir / SAMPLES_FOLDER, step)
        self._metrics = path.open("ab")
        self._tensorboard = _open_tensorboard(self._workdir, step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write the scalars of one step, all of them at once: a step has one line.

        In TensorBoard a name without a slash goes under "train/".

        Raises:
          ValueError: the step is not greater than the last one written.
        """
        if step <= self._last_step:
            raise ValueError(f"metrics of step {step} come after those of step {self._last_step}")
        self._last_step = step
        if self._workdir is None:
            return
        record = {"step": step} | {name: _to_json(value) for name, value in metrics.items()}
        self._metrics.write(json.dumps(record).encode() + b"\n")
        self._metrics.flush()
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Append a text, such as a sample, to `samples/<step>.txt`, and show it in TensorBoard under `name`.

        Lone surrogates, which a tokenizer may leave, are written as their escapes.
        """
        if self._workdir is None:
            return
        text = text.encode("utf-8", "backslashreplace").decode()
        path = self._workdir / SAMPLES_FOLDER / f"{step:06d}.txt"
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(f"== {name} ==\n{text}\n\n")
        code_block = "".join(f"    {line}\n" for line in text.split("\n"))  # of Markdown: shown as it is
        self._tensorboard.add_text(name, code_block, step)

    def close(self) -> None:
        if self._workdir is not None:
            self._metrics.close()
            self._tensorboard.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, float]]:
    """The records of a `metrics.jsonl` in the order of their steps, without a last line that is not complete.

    Raises:
      InputError: there is no such file, or one of its other lines is not a record.
    """
    return [record for record, _ in _parse(Path(path))]


def plot_loss(workdir: str | os.PathLike) -> Path | None:
    """Draw the training and evaluation loss in `metrics.jsonl` into `loss.png`.

    Returns the picture's path, or None, with nothing written, where there is no finite loss to draw.
    """
    path = Path(workdir) / METRICS_FILE
    records = read_metrics(path) if path.exists() else []
    train, evaluation = _finite(records, "loss"), _finite(records, "eval/loss")
    if not len(train) and not len(evaluation):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if len(train):
        _draw_train(axes, *train.T)
    if len(evaluation):
        label = f"evaluation, final {evaluation[-1, 1]:#.4g}"
        axes.plot(*evaluation.T, "o-", color="C1", markersize=4, linewidth=1.2, label=label)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    picture = Path(workdir) / PLOT_FILE
    figure.savefig(picture)
    return picture


def _draw_train(axes, steps: np.ndarray, losses: np.ndarray) -> None:
    if len(steps) < _SMOOTH_FROM:
        axes.plot(steps, losses, color="C0", linewidth=1.2, label=f"train, final {losses[-1]:#.4g}")
        return
    smooth = _smooth(losses)
    axes.plot(steps, losses, color="C0", linewidth=0.5, alpha=0.3)
    axes.plot(steps, smooth, color="C0", linewidth=1.5, label=f"train (smoothed), final {smooth[-1]:#.4g}")


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean of the values around each one: a 50th of them all, fewer at the ends."""
    half = max(1, len(values) // 100)
    totals = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    end = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (totals[end] - totals[first]) / (end - first)


def _finite(records: list[dict[str, float]], name: str) -> np.ndarray:
    """The finite points of one metric, [points, 2] of step and value."""
    points = np.array([(record["step"], record.get(name, math.nan)) for record in records], np.float64)
    points = points.reshape(-1, 2)
    return points[np.isfinite(points[:, 1])]


def _to_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _parse(path: Path) -> list[tuple[dict[str, float], bytes]]:
    """The records and the lines they were read from. A broken last line, if it has no end, is left out."""
    try:
        *lines, tail = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give the path of a run's {METRICS_FILE}") from None
    parsed = []
    for number, line in enumerate(lines + [tail], start=1):
        record = _parse_line(line)
        if record is None and number > len(lines):
            break
        if record is None:
            raise InputError(f"{path} line {number} is no JSON object of a step and numbers: remove the line")
        if parsed and record["step"] <= parsed[-1][0]["step"]:
            last = parsed[-1][0]["step"]
            raise InputError(f"{path} line {number} has step {record['step']} after {last}: remove the line")
        parsed.append((record, line))
    return parsed


def _parse_line(line: bytes) -> dict[str, float] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    record = {name: _NON_FINITE.get(value, value) for name, value in record.items()}
    return record if all(type(value) in (int, float) for value in record.values()) else None


def _cut_metrics(path: Path, step: int) -> int:
    """Remove what comes after `step` from the file, and return the last step that is left (-1 for none)."""
    if not path.exists():
        return -1
    kept = [(record["step"], line) for record, line in _parse(path) if record["step"] <= step]
    content = b"".join(line + b"\n" for _, line in kept)
    if content != path.read_bytes():
        _replace(path, content)
    return kept[-1][0] if kept else -1


def _cut_samples(folder: Path, step: int) -> None:
    for path in folder.glob("*.txt"):
        if re.fullmatch(r"\d{6,}", path.stem) and int(path.stem) > step:
            path.unlink()


def _replace(path: Path, content: bytes) -> None:
    """Replace a file so that even a power cut leaves either the old or the new content."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open_tensorboard(workdir: Path, step: int):
    """A TensorBoard writer that also tells TensorBoard to forget all points after `step`."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(
        str(workdir),
        purge_step=step + 1,
        max_queue=1000,
        flush_secs=_TENSORBOARD_FLUSH_SECONDS,
        filename_suffix=f".{step + 1:08d}",  # keeps a restart within a second from overwriting the last file
    )
