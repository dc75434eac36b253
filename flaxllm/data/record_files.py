"""The files that records come in, format by format.

A reader gives, for each record, its place (as "train.tsv:17") and a function that makes it, or raises InputError where the
record is malformed: so that one bad record does not end the reading. What is wrong with the file as a whole is raised.
"""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flaxllm.data.json_file import brief
from flaxllm.data.sources import decode, find_files, json_line, opened, parse_json
from flaxllm.errors import InputError

Found = tuple[str, Callable[[], dict[str, Any]]]

SIDES = re.compile(r"\{([^{}/]*,[^{}/]*)\}")


def read_csv(path: Path) -> Iterator[Found]:
    """RFC 4180: a header line, commas, and quotes that double inside of quotes."""
    return _table(path, _csv_rows(path))


def read_tsv(path: Path) -> Iterator[Found]:
    """A header line and TABs: a quote or a backslash is a letter like others."""
    text = (line.decode(errors="surrogateescape") for line in _lines(path))
    return _table(path, enumerate((line.split("\t") if line else [] for line in text), start=1))


def read_jsonl(path: Path) -> Iterator[Found]:
    """An object a line."""
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield f"{path}:{number}", partial(_json_record, line, path, number)


def read_json(path: Path) -> Iterator[Found]:
    """A list of objects."""
    expected = "a list of objects, SQuAD's object, or an object a line with format='jsonl'"
    content = parse_json(decode(_content(path), path), str(path), expected)
    if not isinstance(content, list):
        raise InputError(f"{path} holds {brief(content)}: expected {expected}")
    for index, record in enumerate(content):
        yield f"{path}[{index}]", partial(_object, record, f"{path}[{index}]")


def read_squad(path: Path) -> Iterator[Found]:
    """SQuAD 1.1 and 2.0: articles of paragraphs of questions."""
    expected = "SQuAD's object of articles, paragraphs and questions"
    content = parse_json(decode(_content(path), path), str(path), expected)
    for article in _parts(content, "data", f"{path}: the file"):
        for paragraph in _parts(article, "paragraphs", f"{path}: an article"):
            for question in _parts(paragraph, "qas", f"{path}: a paragraph"):
                name = question.get("id") if isinstance(question, dict) else question
                place = f"{path}, question {brief(name)}"
                yield place, partial(_question, question, paragraph.get("context"), article.get("title", ""), place)


def read_conll(path: Path, columns: Mapping[str, str | int]) -> Iterator[Found]:
    """A token a line and a blank line after each sentence; `columns` are the indices of a sentence's fields."""
    for field, index in columns.items():
        if not isinstance(index, int):
            raise InputError(f"the column of {field!r} is {index!r}: in conll a column is an index, from 0, or -1 for the last")
    sentence = []
    for number, line in enumerate([*_lines(path), b""], start=1):
        if line.strip(b" \t") and not line.startswith(b"-DOCSTART-"):
            sentence.append((number, line))
        elif sentence:
            yield f"{path}:{sentence[0][0]}", partial(_sentence, sentence, columns, path)
            sentence = []


def read_parallel(source: str) -> Iterator[Found]:
    """Files aligned by line: of `train.{en,de}`, the files `train.en` and `train.de`, and the fields `en` and `de`."""
    sides = SIDES.search(source)
    names = sides.group(1).split(",") if sides else []
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise InputError(f"source {source!r} names no parallel files: expected one such as train.{{en,de}}")
    files = [_only_file(source[: sides.start()] + name + source[sides.end() :]) for name in names]
    lines = [_lines(path) for path in files]
    counts = [len(side) for side in lines]
    if len(set(counts)) > 1:
        counted = " and ".join(f"{path} has {count} lines" for path, count in zip(files, counts))
        raise InputError(f"{counted}: parallel files must be aligned line by line")
    for number, row in enumerate(zip(*lines), start=1):
        yield f"{files[0]}:{number}", partial(_aligned, names, row, files, number)


def starts_with_brace(path: Path) -> bool:
    """Whether a JSON file holds an object, as SQuAD's does."""
    with opened(path) as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{"


def unique(names: Sequence[str], where: str) -> None:
    """Raises InputError where two columns have one name."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where} has two columns {brief(twice)}: give each its own name")


def _content(path: Path) -> bytes:
    with opened(path) as file:
        return file.read().removeprefix(codecs.BOM_UTF8)


def _lines(path: Path) -> list[bytes]:
    """The lines without their ends."""
    lines = _content(path).split(b"\n")
    return [line.removesuffix(b"\r") for line in (lines if lines[-1] else lines[:-1])]


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str] | str]]:
    """Each row's first line, and its cells or what is wrong with it."""
    rows = csv.reader(io.StringIO(_content(path).decode(errors="surrogateescape"), newline=""), strict=True)
    while True:
        first = rows.line_num + 1
        try:
            yield first, next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            last = f", in the lines to {rows.line_num}" if rows.line_num > first else ""
            yield first, f"is not CSV ({error}{last}): expected quotes as RFC 4180 has them"


def _table(path: Path, rows: Iterable[tuple[int, list[str] | str]]) -> Iterator[Found]:
    rows = iter(rows)
    _, header = next(rows, (1, []))
    header = _cells(header, path, 1)
    unique(header, f"{path}:1")
    for number, cells in rows:
        if cells:
            yield f"{path}:{number}", partial(_table_row, header, cells, path, number)


def _table_row(header: list[str], cells: list[str] | str, path: Path, number: int) -> dict[str, str]:
    cells = _cells(cells, path, number)
    if len(cells) != len(header):
        raise InputError(f"{path}:{number} has {_columns(len(cells))}: expected {len(header)} ({brief(', '.join(header))})")
    return dict(zip(header, cells))


def _cells(cells: list[str] | str, path: Path, number: int) -> list[str]:
    if isinstance(cells, str):
        raise InputError(f"{path}:{number} {cells}")
    decode("\t".join(cells).encode(errors="surrogateescape"), path, number)
    return cells


def _columns(count: int) -> str:
    return f"{count} column{'s' if count != 1 else ''}"


def _json_record(line: bytes, path: Path, number: int) -> dict[str, Any]:
    return json_line(decode(line, path, number), f"{path}:{number}")


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise InputError(f"{where} is {brief(record)}: expected an object")
    return record


def _parts(whole: Any, name: str, where: str) -> list:
    parts = whole.get(name) if isinstance(whole, dict) else None
    if not isinstance(parts, list):
        raise InputError(f"{where} has no list {name!r}: expected SQuAD's object of articles, paragraphs and questions")
    return parts


def _question(question: Any, context: Any, title: Any, where: str) -> dict[str, Any]:
    answers = _parts(question, "answers", where)
    record = {"id": question.get("id"), "title": title, "question": question.get("question"), "context": context}
    for field, value in record.items():
        if not isinstance(value, str):
            raise InputError(f"{where}: its {field} is {brief(value)}: expected a string")
    if answers and question.get("is_impossible"):
        raise InputError(f"{where} has an answer, though it is marked is_impossible: expected one of the two")
    if not answers and not question.get("is_impossible"):
        raise InputError(f"{where} has no answer, though it is not marked is_impossible: expected one of the two")
    texts, starts = ([_object(answer, where).get(key) for answer in answers] for key in ("text", "answer_start"))
    for text, start in zip(texts, starts):
        if not isinstance(text, str) or type(start) is not int or not text or start < 0 or not context.startswith(text, start):
            raise InputError(f"{where}: its answer {brief(text)} is not at character {brief(start)} of the context")
    return record | {"answers": {"text": texts, "answer_start": starts}}


def _sentence(lines: list[tuple[int, bytes]], columns: Mapping[str, int], path: Path) -> dict[str, list[str]]:
    rows = [_token_cells(decode(line, path, number)) for number, line in lines]
    needed = max(len(columns), *(index + 1 if index >= 0 else -index for index in columns.values()))
    for (number, _), cells in zip(lines, rows):
        if len(cells) < needed:
            raise InputError(f"{path}:{number} has {_columns(len(cells))}: expected {needed} or more")
        if len(cells) != len(rows[0]):
            raise InputError(f"{path}:{number} has {_columns(len(cells))}, and the sentence's first line {len(rows[0])}")
    return {field: [cells[index] for cells in rows] for field, index in columns.items()}


def _token_cells(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]


def _only_file(name: str) -> Path:
    files = find_files(name, ())
    if len(files) > 1:
        raise InputError(f"pattern {name!r} matches {len(files)} files: parallel records come from one file a side")
    return files[0]


def _aligned(names: list[str], lines: tuple[bytes, ...], files: list[Path], number: int) -> dict[str, str]:
    return {name: decode(line, path, number) for name, line, path in zip(names, lines, files)}
