"""Where words for a person go: the terminal or the pipe of the first process. The others are silent."""

import math

import jax
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 1000  # characters, so that no row is cut


def lead_console() -> Console:
    return Console(highlight=False, quiet=jax.process_index() > 0)


def say(console: Console, text: str) -> None:
    """Print a text as it is, unwrapped; characters that could steer a terminal are replaced."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    console.print(Text(shown), soft_wrap=True)


def show_table(console: Console, table: Table) -> None:
    """Print a table: ruled on a terminal, plain and whole in a pipe."""
    if console.is_terminal:
        table.box = SIMPLE_HEAD
    else:
        table.box, console.width = None, _PIPE_WIDTH
    console.print(table)


def text_table(*columns: str) -> Table:
    """An empty table whose first column is never cut."""
    table = Table(box=None, pad_edge=False)
    first, *others = columns
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, overflow="fold")
    return table


def scaled(value: float, base: int) -> str:
    """Three digits and the prefix of a unit: `"1.25 G"`, or `"1.25 Gi"` where the base is 1024."""
    power = 0
    while value >= 999.5 and power < 6:
        value, power = value / base, power + 1
    prefix = ("", "k", "M", "G", "T", "P", "E")[power]
    digits = 0 if power == 0 else max(0, 2 - int(math.log10(max(value, 1))))
    return f"{value:.{digits}f} {prefix.upper() + 'i' if prefix and base == 1024 else prefix}"
