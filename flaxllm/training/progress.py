"""What a person sees while a run trains: one live line on a terminal, plain lines in a pipe or a notebook.

Also here: the published peak arithmetic rates of accelerators; the line shows what share of it a run reaches.
"""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flaxllm.console import say

_REFRESHES_PER_SECOND = 4
_PLAIN_LINE_EVERY = 30.0  # seconds
_SMOOTHING = 20.0  # seconds; the time over which the shown rate forgets
_BAR_WIDTHS = (10, 40)
_GAP = "  "
# What the live line shows, in order, with what a narrow terminal loses first at the lowest number.
_FIELD_RANKS = {"count": 9, "activity": 8, "loss": 7, "lr": 2, "rate": 5, "mfu": 3, "left": 6, "elapsed": 1}
_FIELD_STYLES = {"activity": "italic", "loss": "bold", "left": "dim", "elapsed": "dim"}


class _Speed(NamedTuple):
    steps_per_second: float  # of late, without pauses
    seconds_left: float  # at the pace since the first update, pauses included


class Progress:
    """Shows how far a run is, its loss and its speed. A context manager.

    Where the console is a terminal, a thread redraws one line a few times a second; elsewhere plain lines are
    printed after the first step, at each tenth of the run, every half minute, and after the last step. Rates
    count from the first `update`, so that neither compilation nor the steps of before a resume are in them.

    Args:
      total_steps: the step at which the run ends.
      step: the step that the run starts from: 0, or the restored one.
      per_step: what a step's batch holds over all devices, counted in `unit`s.
      flops_per_step: arithmetic operations of a step, over all devices.
      peak_flops: operations a second that all devices together could do; with `flops_per_step` it gives the
        "mfu", the model FLOPs utilization (PaLM, Chowdhery et al. 2022, appendix B).
      console: where to show it; `Console(quiet=True)` shows nothing, for all processes but the first.
      unit: "tokens", or "examples" where a row's length changes from step to step.
      clock: gives the time in seconds.
    """

    def __init__(
        self,
        total_steps: int,
        step: int,
        per_step: int,
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
        console: Console | None = None,
        unit: str = "tokens",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total_steps = total_steps
        self._step = step
        self._per_step = per_step
        self._unit = unit
        self._peak_seconds_per_step = flops_per_step / peak_flops if flops_per_step and peak_flops else None
        self._console = console or Console()
        self._clock = clock
        self._metrics: dict[str, float] = {}
        self._activity: str | None = "compiling"
        self._started = clock()
        self._first_update: tuple[float, int] | None = None  # time, step
        self._last_update = 0.0
        self._recent_steps = self._recent_seconds = 0.0  # sums that forget exponentially
        self._speed: _Speed | None = None
        self._last_plain = (-math.inf, -1)  # time, tenth of the run
        self._live: Live | None = None
        # A live display takes over standard output: on a quiet console it would swallow what others print.
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._console.quiet:
            self._live = Live(
                get_renderable=self._line, console=self._console, refresh_per_second=_REFRESHES_PER_SECOND
            )

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._activity = None
        if self._live:
            self._live.stop()

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Say that `step` is done; of its metrics "loss" and "learning_rate" are shown."""
        now = self._clock()
        if self._first_update is None:
            self._first_update = (now, step)
            self._activity = None
        else:
            self._measure_speed(now, step)
        self._last_update, self._step, self._metrics = now, step, metrics
        if self._live is None:
            self._print_plain(now)

    def note(self, text: str) -> None:
        """Print lines that stay, above the live line."""
        say(self._console, text)

    @contextlib.contextmanager
    def paused(self, activity: str) -> Iterator[None]:
        """Name what goes on instead of training, such as "evaluating", and leave its time out of the rate."""
        began, before, self._activity = self._clock(), self._activity, activity
        if self._live:
            self._live.refresh()
        try:
            yield
        finally:
            self._activity = before
            self._last_update += self._clock() - began

    def _measure_speed(self, now: float, step: int) -> None:
        seconds = now - self._last_update
        kept = math.exp(-seconds / _SMOOTHING)
        self._recent_steps = kept * self._recent_steps + (step - self._step)
        self._recent_seconds = kept * self._recent_seconds + seconds
        first_time, first_step = self._first_update
        if self._recent_seconds > 0 and step > first_step:
            # One assignment: the thread that draws must never see half of it.
            self._speed = _Speed(
                steps_per_second=self._recent_steps / self._recent_seconds,
                seconds_left=(self._total_steps - step) * (now - first_time) / (step - first_step),
            )

    def _print_plain(self, now: float) -> None:
        last_time, last_tenth = self._last_plain
        tenth = 10 * self._step // self._total_steps
        if tenth > last_tenth or now - last_time >= _PLAIN_LINE_EVERY:
            self._last_plain = (now, tenth)
            fields = self._fields(now)
            del fields["elapsed"]
            self._console.print(Text("step " + _GAP.join(fields.values())), soft_wrap=True)

    def _fields(self, now: float) -> dict[str, str]:
        """What there is to show at this moment, by the names of `_FIELD_RANKS` and in their order."""
        fields = {"count": f"{self._step}/{self._total_steps}"}
        if self._activity:
            fields["activity"] = self._activity
        if "loss" in self._metrics:
            fields["loss"] = f"loss {format_loss(self._metrics['loss'])}"
        if "learning_rate" in self._metrics:
            fields["lr"] = f"lr {self._metrics['learning_rate']:.1e}"
        if self._speed:
            fields["rate"] = f"{self._speed.steps_per_second * self._per_step:,.0f} {self._unit}/s"
            if self._peak_seconds_per_step:
                fields["mfu"] = f"mfu {self._speed.steps_per_second * self._peak_seconds_per_step:.0%}"
            if self._step < self._total_steps:
                fields["left"] = f"{format_time(self._speed.seconds_left)} left"
        fields["elapsed"] = f"{format_time(now - self._started)} elapsed"
        return fields

    def _line(self) -> Table:
        """The live line, without what the terminal is too narrow for."""
        fields = self._fields(self._clock())
        narrowest, widest = _BAR_WIDTHS
        while len(fields) > 1 and self._room_for_bar(fields) < narrowest:
            del fields[min(fields, key=_FIELD_RANKS.get)]
        width = max(1, min(self._room_for_bar(fields), widest))
        bar = ProgressBar(total=self._total_steps, completed=self._step, width=width)
        styled = [Text(text, style=_FIELD_STYLES.get(name, "")) for name, text in fields.items()]
        line = Table.grid(padding=(0, len(_GAP), 0, 0))
        line.add_row(bar, Text(_GAP).join(styled))
        return line

    def _room_for_bar(self, fields: dict[str, str]) -> int:
        return self._console.width - sum(len(_GAP + text) for text in fields.values())


def watched(
    items: Iterable[Any],
    total: int,
    what: str,
    report: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Any]:
    """The items; every half minute that they take, how many of the `total` are done and how long the others will take."""
    began = last_time = clock()
    for done, item in enumerate(items):
        now = clock()
        if done and now - last_time >= _PLAIN_LINE_EVERY:
            last_time = now
            left = (now - began) / done * (total - done)
            report(f"{what}: {done:,} of {total:,}, {format_time(left)} left")
        yield item


def format_loss(loss: float) -> str:
    """A loss to four significant digits."""
    return f"{loss:#.4g}".rstrip(".")


def format_time(seconds: float) -> str:
    """A duration as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """The published dense peak of one jax device in operations a second; None if not known, as for a CPU.

    Args:
      device_kind: what `jax.Device.device_kind` says. A part of a GPU (MIG) is not known.
      dtype: of the operands: "bfloat16", "float16", or "float32", which stands for what jax makes of
        float32 by default: TF32 on NVIDIA GPUs since Ampere, bfloat16 on TPUs.
    """
    name = re.sub(r"^(NVIDIA|Tesla) ", "", device_kind)
    for pattern, peaks in _PEAK_TERAFLOPS.items():
        if re.fullmatch(pattern, name):
            return peaks[dtype] * 1e12 if dtype in peaks else None
    return None


def _tensor_cores(half: float, tf32: float) -> dict[str, float]:
    return {"bfloat16": half, "float16": half, "float32": tf32}


def _no_bfloat16(half: float, single: float) -> dict[str, float]:
    return {"float16": half, "float32": single}


def _tpu(bfloat16: float) -> dict[str, float]:
    return {"bfloat16": bfloat16, "float32": bfloat16}


# Device kind, without its maker's name -> teraflops without sparsity, of NVIDIA's datasheets and of Google
# Cloud's TPU pages (v2: Jouppi et al. 2020, "A domain-specific supercomputer for training deep neural
# networks"). These give a chip's peak: in TPU v2, v3 and 7x a jax device is one of the chip's two cores.
_PEAK_TERAFLOPS = {
    r"V100-SXM[23]-\d+GB(-LS)?": _no_bfloat16(125.0, 15.7),
    r"V100-PCIE-\d+GB": _no_bfloat16(112.0, 14.0),
    r"T4": _no_bfloat16(65.0, 8.1),
    r"A100-SXM4-\d+GB|A100-PCIE-40GB|A100 80GB PCIe": _tensor_cores(312.0, 156.0),
    r"A10": _tensor_cores(125.0, 62.5),
    r"A30": _tensor_cores(165.0, 82.0),
    r"A40": _tensor_cores(149.7, 74.8),
    r"L4": _tensor_cores(121.0, 60.0),
    r"L40": _tensor_cores(181.05, 90.5),
    r"L40S": _tensor_cores(362.05, 183.0),
    r"H100 80GB HBM3|H200": _tensor_cores(989.4, 494.7),
    r"H100 PCIe": _tensor_cores(756.0, 378.0),
    r"H100 NVL|H200 NVL": _tensor_cores(835.5, 417.5),
    r"GH200 \d+GB": _tensor_cores(990.0, 495.0),
    r"B200": _tensor_cores(2250.0, 1125.0),
    r"GB200": _tensor_cores(2500.0, 1250.0),
    r"TPU v2": _tpu(46.0 / 2),
    r"TPU v3": _tpu(123.0 / 2),
    r"TPU v4": _tpu(275.0),
    r"TPU v5 lite|TPU v5e": _tpu(197.0),
    r"TPU v5|TPU v5p": _tpu(459.0),
    r"TPU v6 lite|TPU v6e": _tpu(918.0),
    r"TPU7x": _tpu(2307.0 / 2),
}
