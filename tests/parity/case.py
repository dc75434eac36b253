"""What a parity case says: a class of transformers, a tiny config, and the kind of batch that it is run on."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
FIXTURES = FOLDER / "fixtures"


class Case(NamedTuple):
    """One comparison with transformers. Weights, tokens and targets are random, from `seed`."""

    architecture: str  # the class of transformers, with its head
    config: dict[str, Any]  # the arguments of its config class
    batch: int = 2
    length: int = 12
    target_length: int | None = None  # of the decoder's tokens; None where there are none, or the model makes them
    padding: str | None = None  # "left" or "right": all rows but the first are shorter than `length`
    documents: tuple[tuple[int, ...], ...] = ()  # the lengths of the documents packed in each row
    target_documents: tuple[tuple[int, ...], ...] = ()  # the same for the decoder, as many in each row
    token_types: bool = False
    tell_positions: bool = False  # transformers counts padding on the left as positions unless it is told them
    alone: bool = False  # transformers runs each row without its padding, where it cannot be told the positions
    own_table: bool = False  # the logits have a table of their own, which no config of T5's can ask transformers for
    weight_scale: float = 0.25  # the deviation of random matrices; small enough for a softmax to stay soft
    seed: int = 0


def families() -> list[str]:
    """The families that have cases."""
    return sorted(path.stem.removeprefix("cases_") for path in FOLDER.glob("cases_*.py"))


def cases(family: str) -> dict[str, Case]:
    return importlib.import_module(f"parity.cases_{family}").CASES
