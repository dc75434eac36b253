"""Where text comes from: files, folders, globs, JSONL and compressed forms of these, and the interpreter's own text.

A source is a string; a document is a str. Documents come one at a time and always in the same order.
"""

import bz2
import difflib
import glob
import gzip
import io
import json
import lzma
import pydoc_data.topics
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flaxllm.errors import InputError, did_you_mean

EMBEDDED = ("python-docs", "python-stdlib")

_OPENERS: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_FOLDER_SUFFIXES = (".txt", ".text", ".md", ".rst", ".tex", ".jsonl")
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def read_documents(source: str, column: str = "text") -> Iterator[str]:
    """The documents of a source, in a deterministic order.

    `source` is "python-docs" (each help topic a document), "python-stdlib" (each source file of the standard library),
    or a path: a text file (one document), a JSONL file (each line's `column`), a folder (its text and JSONL files,
    recursively, hidden ones left out), or a glob pattern; each of these may be compressed (.gz, .bz2, .xz).

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
        stat = path.stat()
        files.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    return {"kind": source if source in EMBEDDED else "files", "files": files}


def nearest_path(path: Path, names: Sequence[str] = ()) -> str:
    """The end of a message about a path that leads nowhere: what is nearest to it in its folder and among `names`."""
    in_folder = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [*names, *in_folder], n=1)
    if near:
        name = near[0] if near[0] in names else str(path.with_name(near[0]))
        return f"did you mean {name!r}?"
    where = "" if path.parent.is_dir() else f" (there is no folder {str(path.parent)!r})"
    return f"expected {', '.join([*names, 'or a path that exists' if names else 'a path that exists'])}{where}"


def _documents(source: str, column: str) -> Iterator[str]:
    if source == "python-docs":
        yield from (text for _, text in sorted(pydoc_data.topics.topics.items()))
        return
    for path in _files(source):
        if source == "python-stdlib":
            yield from _library_file(path)
        elif _format(path) == ".jsonl":
            yield from _json_lines(path, column)
        else:
            yield _text(path)


def _files(source: str) -> list[Path]:
    """The files that a source reads, in the order in which it reads them."""
    if source == "python-docs":
        return [Path(pydoc_data.topics.__file__)]
    if source == "python-stdlib":
        return _library_files()
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder_files(path)
    if path.exists():
        return [path]
    if glob.has_magic(source):
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not files:
            raise InputError(f"pattern {source!r} matches no file: check it, and the folder that it starts from")
        return files
    raise InputError(f"there is no source {source!r}: {nearest_path(path, EMBEDDED)}")


def _library_files() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    return [root / path for path in sorted(paths) if not _NOT_LIBRARY.intersection(path.parts)]


def _folder_files(folder: Path) -> list[Path]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = [
        folder / path
        for path in sorted(paths)
        if _format(path) in _FOLDER_SUFFIXES and not any(part.startswith(".") for part in path.parts)
    ]
    if not files:
        raise InputError(
            f"folder {str(folder)!r} holds no text: expected files that end in {', '.join(_FOLDER_SUFFIXES)}, or in "
            f"these and {', '.join(_OPENERS)}; name others by a glob pattern"
        )
    return files


def _format(path: Path) -> str:
    """The suffix that says how the text is laid out, below that of a compression."""
    return (path.with_suffix("") if path.suffix in _OPENERS else path).suffix


def _chunks(path: Path, read: Callable[[io.BufferedIOBase], Iterator[bytes]]) -> Iterator[bytes]:
    """What `read` takes from the file, with every way in which reading can fail said in one sentence."""
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            yield from read(file)
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}): fetch or write it again") from error
    except OSError as error:
        what = f"cannot be read ({error.strerror})" if error.strerror else f"is damaged ({error})"
        raise InputError(f"{path} {what}: check the file") from error


def _decode(data: bytes, path: Path, offset: int = 0) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 at byte {offset + error.start} ({error.reason}): convert it to UTF-8"
        ) from error


def _text(path: Path) -> str:
    return _decode(b"".join(_chunks(path, lambda file: iter([file.read()]))), path)


def _library_file(path: Path) -> Iterator[str]:
    """The file's text, or nothing where it is in another encoding than UTF-8."""
    try:
        yield _text(path)
    except InputError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise


def _json_lines(path: Path, column: str) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(_chunks(path, iter), start=1):
        if line.strip():
            yield _field(_decode(line, path, offset), column, f"{path}:{number}")
        offset += len(line)


def _field(line: str, column: str, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where} is not JSON ({error.msg} at character {error.pos}): one object a line is expected"
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"{where} holds a JSON {type(record).__name__}, where an object was expected")
    if column not in record:
        raise InputError(
            f"{where} has no column {column!r} among {', '.join(map(repr, record))}: {did_you_mean(column, record)}"
        )
    text = record[column]
    if not isinstance(text, str):
        raise InputError(f"{where}: column {column!r} holds a {type(text).__name__}, where a string was expected")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: column {column!r} has half of a surrogate pair at character {error.start}: it is no text"
        ) from error
    return text
