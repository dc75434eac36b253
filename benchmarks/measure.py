"""What the benchmarks share: timing in turn, the conditions of a run, and its report as a table and as JSON.

Ways to do the same thing are timed in alternating rounds, so that a machine that slows down for a while slows
all of them; compare their medians as ratios.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def alternate(ways: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each call. Every round calls every way once, each round beginning with the next of them."""
    for way in ways.values():
        for _ in range(warmup):
            jax.block_until_ready(way())
    names, seconds = list(ways), {name: [] for name in ways}
    for number in range(rounds):
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            jax.block_until_ready(ways[name]())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """The median and how far the others lie around it."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def conditions() -> dict[str, object]:
    """Where and when this is measured: what a reader needs to judge the numbers."""
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("jax", "jaxlib", "numpy")},
    }


def report(name: str, conditions: dict[str, object], rows: list[dict], path: str | None = None) -> None:
    """Print the rows and write them with their conditions, to `path` or `benchmarks/results/<name>.json`."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*(_shown(row.get(column)) for column in columns))
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # no lines of a pipe are too long
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in conditions.items()), highlight=False)
    path = RESULTS / f"{name}.json" if path is None else Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": name, "conditions": conditions, "rows": rows}, indent=1) + "\n")


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
