"""What a checkpoint is, shown without reading its tensors."""

import dataclasses
import math
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from flaxllm import nn
from flaxllm.console import lead_console, scaled, show_table, text_table
from flaxllm.pretrained.checkpoint import Checkpoint, open_checkpoint
from flaxllm.pretrained.families import FAMILIES
from flaxllm.pretrained.load import BASE, model_of
from flaxllm.pretrained.match import Match, match

_BYTES = {"float32": 4, "bfloat16": 2}
_WIDE = 120  # characters of a terminal's line, below which columns would have a few letters each


def inspect(path: str | Path, head: str | None = None, console: Console | None = None) -> None:
    """Print a checkpoint's architecture, its parameters and the names they have there, their memory, and what is tied,
    left out, missing or unknown.

    Raises:
      InputError: the path or the config is not what it must be.
    """
    checkpoint = open_checkpoint(path)
    model = model_of(checkpoint, head)
    specs = nn.flatten(model.param_specs())
    names = FAMILIES[model.family].names(model.config, model.head)
    found = match(checkpoint, specs, names)
    console = console or lead_console()
    wide = not console.is_terminal or console.width >= _WIDE
    parameters = _parameter_table(checkpoint, specs, found, names.prefix, wide)
    for table in (_model_table(checkpoint, model), parameters, _rest_table(found)):
        if table.row_count:
            show_table(console, table)
            console.print()


def _model_table(checkpoint: Checkpoint, model: object) -> Table:
    table = text_table("model", "")
    table.add_row("checkpoint", str(checkpoint.path))
    table.add_row("architecture", ", ".join(map(str, checkpoint.config.get("architectures") or ["not named"])))
    table.add_row("family", f"{model.family}, head {model.head or BASE}")
    for field in dataclasses.fields(model.config):
        table.add_row(field.name, str(getattr(model.config, field.name)))
    return table


def _parameter_table(
    checkpoint: Checkpoint, specs: dict[str, nn.Param], found: Match, prefix: str, wide: bool
) -> Table:
    """A row for each parameter; unless there is a `wide` line for it, the texts of a row stand under each other."""
    source = {path: (name, place.rule.theirs) for name, place in found.places.items() for path in place.rule.paths}
    rows = []
    for path, param in specs.items():
        dtype, theirs = "", "missing"
        if path in source:
            name, theirs = source[path]
            dtype = str(checkpoint.tensors[name].dtype)
            theirs = theirs if name.startswith(prefix) else theirs.removeprefix(prefix)
        axes = ", ".join(f"{axis} {size}" for axis, size in zip(param.axes, param.shape, strict=True))
        rows.append((path, axes, dtype, theirs, f"{param.size:,}"))
    total = nn.count(specs)
    held = sum(math.prod(t.shape) * t.dtype.itemsize for t in (checkpoint.tensors[name] for name in found.places))
    memory = ", ".join(f"{scaled(total * size, 1024)}B in {dtype}" for dtype, size in _BYTES.items())
    rows.append(("all", f"{memory}; {scaled(held, 1024)}B as they are", "", "", f"{total:,}"))
    if wide:
        table = text_table("parameter", "axes and sizes", "dtype", "in the checkpoint")
    else:
        table = Table(Column("parameter", overflow="fold"), pad_edge=False)
        rows = [("\n  ".join(filter(None, (path, axes, dtype, theirs))), size) for path, axes, dtype, theirs, size in rows]
    table.add_column("parameters", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    table.rows[-1].style = "bold"
    return table


def _rest_table(found: Match) -> Table:
    table = text_table("other tensors", "")
    for name, of in found.tied.items():
        table.add_row(name, f"tied to {of}")
    for name, of in found.doubled.items():
        table.add_row(name, f"the same parameter as {of}")
    for names, what in ((found.buffers, "a buffer, not needed"), (found.dropped, "of another head, left out"),
                        (found.unexpected, "unmapped: no parameter of this model"), (found.missing, "missing")):  # fmt: skip
        for name in names:
            table.add_row(name, what)
    return table
