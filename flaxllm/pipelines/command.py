"""A task on the command line: of a text in its place, or of each line of standard input."""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from flaxllm.console import lead_console, say
from flaxllm.errors import InputError
from flaxllm.pipelines.question_answering import question_answering
from flaxllm.pipelines.tasks import find_task, options_of, pipeline

_AT_A_TIME = 256  # lines that are read before their results are written
_LISTS = ("ignore_labels", "targets")  # of words, between commas
_NO_FLAGS = ("logit_bias", "return_tensors")


def flag_kinds(task: str) -> dict[str, type]:
    """The options of a task that a command line can give, each with its type."""
    options = {name: (kind, *get_args(kind)) for name, kind in options_of(task).items() if name not in _NO_FLAGS}
    return {name: next((kind for kind in (bool, int, float) if kind in kinds), str) for name, kinds in options.items()}


def run_pipeline(task: str, path: str | Path, text: str | None = None, *, dtype: str | None = None, **options: Any) -> None:
    """Write what a task makes of a text, or of each line of standard input where it is "-".

    In a pipe it is one JSON value a line for each, on a terminal lines to read. For question-answering the text is a context.

    Raises:
      InputError: as `pipeline` and its call; there is no text.
    """
    options = {name: value.split(",") if name in _LISTS else value for name, value in options.items()}
    asks = find_task(task).run is question_answering
    text = options.pop("context", None) if asks and text is None else text
    if text is None:
        raise InputError(f"{task} needs a text: write it after the path, or - to read one a line from standard input")
    pipe, console = pipeline(task, path, dtype=dtype, **options), lead_console()
    for texts in _batches(sys.stdin if text == "-" else [text]):
        for result in pipe(context=texts) if asks else pipe(texts):
            if console.is_terminal:
                say(console, "\n".join(_readable(result)))
            else:
                print(json.dumps(result), flush=True)


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    lines = iter(lines)
    while batch := [line.rstrip("\r\n") for line in itertools.islice(lines, _AT_A_TIME)]:
        yield batch


def _readable(result: Any) -> list[str]:
    """The values of each dict that a result is or consists of, on a line."""
    if isinstance(result, Mapping) and "labels" in result:
        return [f"{label}  {score:.4f}" for label, score in zip(result["labels"], result["scores"])]
    if isinstance(result, Mapping):
        return ["  ".join(f"{value:.4f}" if isinstance(value, float) else str(value) for value in result.values())]
    if result and isinstance(result[0], list) and isinstance(result[0][0], list):
        return [f"{len(result[0])} tokens of {len(result[0][0])} numbers each: in a pipe they are JSON"]
    return [line for part in result for line in _readable(part)]
