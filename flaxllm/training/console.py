"""Where a run's words go: the terminal or the pipe of the first process. The others are silent."""

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
