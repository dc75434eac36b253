"""Where text comes from: files, folders, globs, JSONL and compressed forms of these, and the interpreter's own text.

A source is a string; a document is a str. Documents come one at a time and always in the same order.
"""

import bz2
import difflib
import glob
import gzip
import json
import lzma
import os
import pydoc_data.topics
import reprlib
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from flaxllm.errors import InputError, did_you_mean

EMBEDDED = ("python-docs", "python-stdlib")

_OPENERS: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_FOLDER_SUFFIXES = (".txt", ".text", ".md", ".rst", ".tex", ".jsonl")
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def read_documents(source: str, column: str = "text") -> Iterator[str]:
    """The documents of a source, in a deterministic order.

    `source` is "python-docs" (each help topic a document), "python-stdlib" (each source file of the standard library),
    or a path: a text file (one document), a JSONL file (each line's `column`), a folder (its text and JSONL files,
    recursively, hidden ones left out), or a glob pattern; each file may be compressed (.gz, .bz2, .xz).

    Raises:
      InputError: nothing is there, a file is damaged, not UTF-8, or not what its name says, or no document has text.
    """
    empty = True
    for document in _documents(source, column):
        empty = empty and not document
        yield document
    if empty:
        raise InputError(f"source {source!r} holds no text: it has no document, or only empty ones")


def source_stamp(source: str) -> dict:
    """What tells whether a source has changed (json-able): its kind, and each file's path, size and mtime in ns."""
    files = []
    for path in _files(source):
        try:
            stat = path.stat()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): check the file") from error
        # Not resolved: the name of a link, not that of its target, says how the text is laid out.
        files.append([os.path.abspath(path), stat.st_size, stat.st_mtime_ns])
    return {"kind": source if source in EMBEDDED else "files", "files": files}


def nearest_path(path: Path, names: Sequence[str] = ()) -> str:
    """The end of a message about a path that leads nowhere: what is nearest to it in its folder and among `names`."""
    folder_is_there = os.path.isdir(path.parent)
    in_folder = os.listdir(path.parent) if folder_is_there and os.access(path.parent, os.R_OK) else []
    near = difflib.get_close_matches(path.name, [*names, *in_folder], n=1)
    if near:
        name = near[0] if near[0] in names else str(path.with_name(near[0]))
        return f"did you mean {name!r}?"
    where = "" if folder_is_there else f" (there is no folder {str(path.parent)!r})"
    return f"expected {', '.join([*names, 'or a path that exists' if names else 'a path that exists'])}{where}"


def find_files(source: str, suffixes: Sequence[str], names: Sequence[str] = ()) -> list[Path]:
    """The files of a path, a folder or a glob pattern, in the order of their paths.

    `suffixes` tell which files of a folder are meant (compressed ones too); `names` are what a source can be beside a path,
    for messages.

    Raises:
      InputError: there is no such file.
    """
    if not source:
        raise InputError(f"the source is an empty string: expected {', '.join([*names, 'or a path' if names else 'a path'])}")
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        return _folder_files(path, suffixes)
    if os.path.exists(path):
        return [path]
    if glob.has_magic(source):
        # A set, because a pattern with more than one ** finds a file once for each way that leads to it.
        files = sorted({p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()})
        if not files:
            raise InputError(f"pattern {source!r} matches no file: check it, and the folder that it starts from")
        return files
    raise InputError(f"there is no source {source!r}: {nearest_path(path, names)}")


def layout(path: Path) -> tuple[str, str]:
    """How the text is laid out and how it is compressed, as its name says, as (".jsonl", ".gz")."""
    last = path.suffix.lower()
    return (path.with_suffix("").suffix.lower(), last) if last in _OPENERS else (last, "")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, uncompressed; every way in which opening or reading it can fail is said in one sentence."""
    try:
        with _OPENERS.get(layout(path)[1], open)(path, "rb") as file:
            try:
                yield file
            except InputError:
                for _ in file:  # a line may be bad because the file is damaged, which its checksum tells at the end
                    pass
                raise
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{path} cannot be read ({error.strerror}): check the file") from error
        raise InputError(f"{path} is damaged or cut short ({error}): fetch or write it again") from error


def decode(data: bytes, path: Path, first_line: int = 1) -> str:
    """The text of UTF-8 bytes, whose first line is line `first_line` of the file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise InputError(
            f"{path}:{line} is not UTF-8 ({error.reason} 0x{data[error.start]:02x}): convert it to UTF-8"
        ) from error


def parse_json(text: str, where: str, expected: str) -> Any:
    """What a JSON text spells; `where` names it, and `expected` says what it should be, in the message of a bad one."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # bad syntax, too many digits, too deep a nest
        what = error
        if isinstance(error, json.JSONDecodeError):
            what = f"{error.msg} at character {error.colno - 1}{f' of line {error.lineno}' if error.lineno > 1 else ''}"
        raise InputError(f"{where} is not JSON ({what}): expected {expected}") from error


def json_line(line: str, where: str) -> dict[str, Any]:
    """The object of one line of a JSONL file."""
    record = parse_json(line.strip(), where, "one object a line")
    if not isinstance(record, dict):
        raise InputError(f"{where} holds {reprlib.repr(record)}: expected one object a line")
    return record


def value_of(record: Mapping[str, Any], column: str | int, where: str) -> Any:
    """A record's value in a column, which it must have."""
    if column not in record:
        known = did_you_mean(column, record) if record else "the object is empty"
        raise InputError(f"{where} has no column {column!r}: {known}")
    return record[column]


def _documents(source: str, column: str) -> Iterator[str]:
    if source == "python-docs":
        yield from (text for _, text in sorted(pydoc_data.topics.topics.items()))
        return
    for path in _files(source):
        if source == "python-stdlib":
            yield from _library_file(path)
        elif layout(path)[0] == ".jsonl":
            yield from _json_lines(path, column)
        else:
            yield _text(path)


def _files(source: str) -> list[Path]:
    """The files that a source reads, in the order in which it reads them."""
    if source == "python-docs":
        return [Path(pydoc_data.topics.__file__)]
    if source == "python-stdlib":
        return _library_files()
    return find_files(source, _FOLDER_SUFFIXES, EMBEDDED)


def _library_files() -> list[Path]:
    files = _walk(Path(sysconfig.get_paths()["stdlib"]), _NOT_LIBRARY.__contains__)
    return [path for path in files if path.suffix == ".py"]


def _folder_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    files = _walk(folder, lambda name: name.startswith("."))
    files = [path for path in files if layout(path)[0] in suffixes]
    if not files:
        raise InputError(
            f"folder {str(folder)!r} holds nothing to read: expected files that end in {', '.join(suffixes)}, or in "
            f"these and {', '.join(_OPENERS)}; name others by a glob pattern"
        )
    return files


def _walk(root: Path, is_left_out: Callable[[str], bool]) -> list[Path]:
    """The files below a folder in the order of their paths; folders that are left out are not looked into."""
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not is_left_out(name)]
        files += [Path(folder, name) for name in names if not is_left_out(name)]
    return sorted(path for path in files if path.is_file())


def _text(path: Path) -> str:
    with opened(path) as file:
        data = file.read()
    return decode(data, path)


def _library_file(path: Path) -> Iterator[str]:
    """The file's text, or nothing where it is in another encoding than UTF-8."""
    try:
        yield _text(path)
    except InputError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _field(decode(line, path, number), column, f"{path}:{number}")


def _field(line: str, column: str, where: str) -> str:
    text = value_of(json_line(line, where), column, where)
    if not isinstance(text, str):
        raise InputError(f"{where}: column {column!r} holds {reprlib.repr(text)}: expected a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: column {column!r} has half of a surrogate pair at character {error.start}, "
            "which is no text: mend or drop the line"
        ) from error
    return text
