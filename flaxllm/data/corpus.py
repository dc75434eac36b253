"""A source's documents, tokenised once into one flat array, and kept on disk.

An entry of the cache is a folder with a file of plain numbers for each array, opened by mmap, and their
digest. It is written under another name and then renamed, so that any number of processes may make the same
one at once.
"""

import hashlib
import json
import os
import re
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flaxllm.data.sources import read_documents, source_stamp
from flaxllm.data.tokenizers import Tokenizer
from flaxllm.errors import InputError

_FORMAT = 1
_PART_CHARS = 2**14
_BATCH_CHARS = 2**18  # the library takes about 130 bytes for a token while it works
_CUT = re.compile(r"(?<=\S)(?=\n)")


@dataclass(frozen=True)
class Corpus:
    """A source's tokens, one document after another, each ended by the end-of-text token if there is one."""

    tokens: np.ndarray  # [tokens], uint16 or uint32, on disk
    offsets: np.ndarray  # int64 [documents + 1]: document i is tokens[offsets[i]:offsets[i + 1]]
    num_bytes: np.ndarray  # int64 [documents]: the length of each document's text in UTF-8
    tokenizer: Tokenizer
    digest: str  # sha256 over the three arrays, in hex


class _Part(NamedTuple):
    text: str
    ends_document: bool


def load_corpus(
    source: str, tokenizer: Tokenizer, column: str = "text", cache: str | Path | None = None
) -> Corpus:
    """The tokens of a source (see `read_documents`), from the cache where it has them.

    The cache is the folder `cache`, else `$FLAXLLM_CACHE`, else `~/.cache/flaxllm`. An entry is found by the
    paths, sizes and mtimes of the source's files, the column and the tokenizer. It is read through once to
    compare its digest, which takes about a second a gigabyte; one that is damaged is made anew.

    Raises:
      InputError: the source cannot be read (see `read_documents`) or encoded, or changes meanwhile, or the
        cache cannot be written.
    """
    root = Path(cache or os.environ.get("FLAXLLM_CACHE") or "~/.cache/flaxllm").expanduser() / "corpus"
    entry = root / _key(source, column, tokenizer)
    found = _open(entry, tokenizer)
    if found is not None:
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=root, ignore_cleanup_errors=True) as work:
            made = Path(work, "entry")
            made.mkdir()
            _write(made, read_documents(source, column), tokenizer)
            if entry.name != _key(source, column, tokenizer):
                raise InputError(f"source {source!r} changed while it was read: run again when it is done")
            return _publish(made, entry, tokenizer)
    except OSError as error:
        raise InputError(
            f"the cache {root} cannot be written ({error.strerror}): set FLAXLLM_CACHE to a folder with room"
        ) from error


def _key(source: str, column: str, tokenizer: Tokenizer) -> str:
    parts = [_FORMAT, source_stamp(source), column, tokenizer.fingerprint]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _open(entry: Path, tokenizer: Tokenizer) -> Corpus | None:
    """The corpus of a cache entry, or None where there is none that is whole."""
    try:
        arrays = _arrays(entry, tokenizer)
        digest = (entry / "sha256").read_text()
    except (OSError, ValueError):  # a file is missing, empty, or ends within a number
        return None
    return Corpus(*arrays, tokenizer, digest) if _digest(arrays) == digest else None


def _arrays(folder: Path, tokenizer: Tokenizer) -> list[np.ndarray]:
    dtypes = {"tokens": _dtype(tokenizer), "offsets": "<i8", "num_bytes": "<i8"}
    return [np.memmap(folder / name, dtype, mode="r") for name, dtype in dtypes.items()]


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def _digest(arrays: list[np.ndarray]) -> str:
    hasher = hashlib.sha256()
    for numbers in arrays:
        hasher.update(numbers)
    return hasher.hexdigest()


def _publish(made: Path, entry: Path, tokenizer: Tokenizer) -> Corpus:
    """Gives a finished entry its name, unless another process was quicker, and opens the one that has it."""
    own = _open(made, tokenizer)  # stays open, whatever happens to its name
    try:
        made.rename(entry)
    except OSError:
        other = _open(entry, tokenizer)
        if other is not None:
            return other
        with suppress(OSError):  # the entry is damaged; other processes may be replacing it by one like ours
            entry.rename(made.with_name("damaged"))
            made.rename(entry)
    return own


def _write(folder: Path, documents: Iterable[str], tokenizer: Tokenizer) -> None:
    dtype = _dtype(tokenizer)
    ending = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], dtype)
    offsets, num_bytes = array("q", [0]), array("q")
    size_in_tokens = size_in_bytes = 0
    with (folder / "tokens").open("wb") as file:
        for batch in _batches(_parts(documents, tokenizer.may_cut_at_newlines)):
            for part, ids in zip(batch, tokenizer.encode_batch([part.text for part in batch])):
                file.write(ids.astype(dtype))
                size_in_tokens += len(ids)
                size_in_bytes += len(part.text.encode())
                if part.ends_document:
                    file.write(ending)
                    size_in_tokens += len(ending)
                    offsets.append(size_in_tokens)
                    num_bytes.append(size_in_bytes)
                    size_in_bytes = 0
    if not size_in_tokens:
        raise InputError("the tokenizer gives no token for any of the text: use another one")
    np.array(offsets, "<i8").tofile(folder / "offsets")
    np.array(num_bytes, "<i8").tofile(folder / "num_bytes")
    (folder / "sha256").write_text(_digest(_arrays(folder, tokenizer)))


def _parts(documents: Iterable[str], may_cut: bool) -> Iterator[_Part]:
    """The documents, long ones cut into parts where that does not change their tokens."""
    for document in documents:
        start = 0
        while may_cut and (cut := _CUT.search(document, start + _PART_CHARS)):
            yield _Part(document[start : cut.start()], ends_document=False)
            start = cut.start()
        yield _Part(document[start:], ends_document=True)


def _batches(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Parts in lists of about `_BATCH_CHARS` characters."""
    batch, size = [], 0
    for part in parts:
        batch.append(part)
        size += len(part.text)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
