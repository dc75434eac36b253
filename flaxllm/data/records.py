"""Labelled data: records by path and format, each a dict from a field of the task to its value."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flaxllm.data import record_files, record_tables
from flaxllm.data.record_files import Found
from flaxllm.data.record_sets import RECORD_SETS, read_set
from flaxllm.data.sources import find_files, layout, value_of
from flaxllm.errors import InputError, did_you_mean

MALFORMED = ("stop", "skip")

_FILES = {
    "csv": record_files.read_csv,
    "tsv": record_files.read_tsv,
    "jsonl": record_files.read_jsonl,
    "json": record_files.read_json,
    "squad": record_files.read_squad,
    "conll": record_files.read_conll,
    "parquet": record_tables.read_parquet,
}
_SETS = {"parallel": record_files.read_parallel, "datasets": record_tables.read_dataset}
FORMATS = (*_FILES, *_SETS)

_SUFFIXES = {f".{name}": (name,) for name in _FILES if name != "squad"} | {".json": ("json", "squad")}


@dataclass(frozen=True)
class Records:
    """The records of a source, in its order."""

    rows: list[dict[str, Any]]
    where: list[str]  # of each row, as "train.tsv:17", for what is said of it later
    skipped: list[str]  # a sentence for each malformed record that was left out
    fingerprint: str  # sha256 over the rows as JSON, in hex


def read_records(
    source: str,
    columns: Mapping[str, str | int] | None = None,
    format: str | None = None,
    malformed: str = "stop",
) -> Records:
    """The records of a source.

    `source` is a file, a folder or a glob pattern, files compressed (.gz, .bz2, .xz) or not; or a name in `RECORD_SETS` with
    its part (`python-lines:train`). A file's suffix tells its format, unless `format` names it:

    - csv: RFC 4180, with a header line.
    - tsv: a header line, TAB between columns, no quoting and no escaping.
    - jsonl, json: an object a line; a list of objects.
    - squad: JSON of SQuAD 1.1 or 2.0 (Rajpurkar et al. 2016, 2018), told from json by its outermost `{`. A question gives
      `id`, `title`, `question`, `context` and `answers`, a dict of lists `text` and `answer_start`, empty where it has none.
    - conll: a token a line, columns parted by TAB, else by spaces, a blank line after each sentence; `-DOCSTART-` lines are
      dropped. A sentence gives the lists `words` and `tags`, its first and last column; other `columns` are indices from 0.
    - parallel: files aligned by line, named as `train.{en,de}`; the fields are the names in the braces.
    - parquet: needs pyarrow.
    - datasets: a folder that Hugging Face's `datasets` saved (`folder`, or `folder:split`), or `hub:NAME:SPLIT` or
      `hub:OWNER/NAME/CONFIG:SPLIT`; needs `datasets`.

    Values stay what the format gives (in csv and tsv, strings); blank lines are no records. `columns` maps a field to the
    column that holds it, and takes the place of a column of the field's name; the other columns keep their names.

    `malformed` says what happens to a record that is not UTF-8, has too many or too few columns, lacks one that `columns`
    names, or is otherwise not of its format (in squad, an answer must stand at its offset in the context): "stop" raises its
    sentence, "skip" leaves it out and keeps the sentence. What is wrong with a file as a whole is always raised.

    Raises:
      InputError: the source cannot be read, has a malformed record and `malformed` is "stop", or has no sound record.
    """
    if malformed not in MALFORMED:
        raise InputError(f"malformed is {malformed!r}: {did_you_mean(malformed, MALFORMED)}")
    rows, where, skipped = [], [], []
    digest = hashlib.sha256()
    for place, make in _found(source, columns or {}, format):
        try:
            row = make()
            spelled = _spelled(row, place)
        except InputError as error:
            if malformed == "stop":
                raise InputError(f"{error}; malformed='skip' leaves such records out") from error
            skipped.append(str(error))
            continue
        rows.append(row)
        where.append(place)
        digest.update(spelled + b"\n")
    if not rows:
        what = f"no sound record, and {len(skipped)} malformed, the first: {skipped[0]}" if skipped else "no record"
        raise InputError(f"source {source!r} holds {what}")
    return Records(rows, where, skipped, digest.hexdigest())


def _found(source: str, columns: Mapping[str, str | int], format: str | None) -> Iterator[Found]:
    if format is not None and format not in FORMATS:
        raise InputError(f"there is no format {format!r} of records: {did_you_mean(format, FORMATS)}")
    told = _format_of_set(source)
    if told and format not in (None, told):
        raise InputError(f"source {source!r} is not of the format {format!r} but {told!r}: leave format out")
    read = read_set if told == "embedded" else _SETS.get(told or format)
    if read:
        yield from _renamed(read(source), columns)
    else:
        suffixes = [suffix for suffix, formats in _SUFFIXES.items() if format is None or format in formats]
        for path in find_files(source, suffixes, tuple(RECORD_SETS)):
            name = format or _format_of_file(path)
            if name == "conll":
                yield from record_files.read_conll(path, columns or {"words": 0, "tags": -1})
            else:
                yield from _renamed(_FILES[name](path), columns)


def _format_of_set(source: str) -> str | None:
    """What a source is that is more than files one after another, or None."""
    if source.partition(":")[0] in RECORD_SETS:
        return "embedded"
    if record_tables.is_dataset(source):
        return "datasets"
    if record_files.SIDES.search(source) and not os.path.exists(os.path.expanduser(source)):
        return "parallel"
    return None


def _format_of_file(path: Path) -> str:
    suffix = layout(path)[0]
    if suffix not in _SUFFIXES:
        raise InputError(f"{path} does not say its format: expected a name in {', '.join(_SUFFIXES)}, or set format")
    return "squad" if suffix == ".json" and record_files.starts_with_brace(path) else _SUFFIXES[suffix][0]


def _renamed(found: Iterable[Found], columns: Mapping[str, str | int]) -> Iterator[Found]:
    for place, make in found:
        yield place, partial(_row, make, columns, place)


def _row(make: Callable[[], dict[str, Any]], columns: Mapping[str, str | int], place: str) -> dict[str, Any]:
    record = make()
    named = {field: value_of(record, column, place) for field, column in columns.items()}
    return {column: value for column, value in record.items() if column not in columns.values()} | named


def _spelled(row: dict[str, Any], place: str) -> bytes:
    """A row as JSON in UTF-8, the same for equal rows; what is neither text, number nor list (a date) as it prints."""
    try:
        return json.dumps(row, ensure_ascii=False, sort_keys=True, default=str).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place} has half of a surrogate pair, which is no text") from error
