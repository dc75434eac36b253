"""A source's documents, tokenised once into one flat array, and kept on disk.

An entry of the cache is a folder of .npy files, opened by mmap. It is written under another name and then renamed, so
that any number of processes may make the same one at once.
"""

import hashlib
import json
import os
import re
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

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
    digest: str  # sha256 over tokens and offsets, in hex


class _Part(NamedTuple):
    text: str
    ends_document: bool


def load_corpus(
    source: str, tokenizer: Tokenizer, column: str = "text", cache: str | Path | None = None
) -> Corpus:
    """The tokens of a source (see `read_documents`), from the cache where it has them.

    The cache is the folder `cache`, else `$FLAXLLM_CACHE`, else `~/.cache/flaxllm`. An entry is found by the paths,
    sizes and mtimes of the source's files, the column and the tokenizer; one that is cut short or incomplete is made
    anew.

    Raises:
      InputError: the source cannot be read (see `read_documents`) or encoded, or the cache cannot be written.
    """
    root = Path(cache or os.environ.get("FLAXLLM_CACHE") or "~/.cache/flaxllm").expanduser() / "corpus"
    entry = root / _key(source, column, tokenizer)
    found = _open(entry, tokenizer)
    if found is not None:
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        workplace = tempfile.TemporaryDirectory(prefix=".unfinished-", dir=root)
    except OSError as error:
        raise InputError(f"the cache {root} cannot be written ({error.strerror}): set FLAXLLM_CACHE") from error
    with workplace as folder:
        made = Path(folder) / "entry"
        made.mkdir()
        _write(made, read_documents(source, column), tokenizer)
        _publish(made, entry, tokenizer)
    return _open(entry, tokenizer)


def _key(source: str, column: str, tokenizer: Tokenizer) -> str:
    parts = [_FORMAT, source_stamp(source), column, tokenizer.fingerprint]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _open(entry: Path, tokenizer: Tokenizer) -> Corpus | None:
    """The corpus of a cache entry, or None where there is none that is whole."""
    try:
        facts = json.loads((entry / "corpus.json").read_text())
        tokens, offsets, num_bytes = (
            np.load(entry / f"{name}.npy", mmap_mode="r") for name in ("tokens", "offsets", "num_bytes")
        )
        corpus = Corpus(tokens, offsets, num_bytes, tokenizer, facts["digest"])
        expected = [facts["tokens"], facts["documents"] + 1, facts["documents"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return corpus if [len(tokens), len(offsets), len(num_bytes)] == expected else None


def _publish(made: Path, entry: Path, tokenizer: Tokenizer) -> None:
    """Gives a finished entry its name, unless another process was quicker."""
    try:
        made.rename(entry)
    except OSError:
        if _open(entry, tokenizer) is None:
            entry.rename(made.with_name("damaged"))
            made.rename(entry)


def _write(folder: Path, documents: Iterable[str], tokenizer: Tokenizer) -> None:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    ending = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    hasher = hashlib.sha256()
    offsets, num_bytes = array("q", [0]), array("q")
    size_in_tokens = size_in_bytes = 0
    with (folder / "tokens.npy").open("wb") as file:
        _write_header(file, dtype, 0)
        for batch in _batches(_parts(documents, tokenizer.may_cut_at_newlines)):
            for part, ids in zip(batch, tokenizer.encode_batch([part.text for part in batch])):
                ids = np.concatenate([ids, ending if part.ends_document else []]).astype(dtype)
                file.write(ids)
                hasher.update(ids)
                size_in_tokens += len(ids)
                size_in_bytes += len(part.text.encode())
                if part.ends_document:
                    offsets.append(size_in_tokens)
                    num_bytes.append(size_in_bytes)
                    size_in_bytes = 0
        file.seek(0)
        _write_header(file, dtype, size_in_tokens)
    np.save(folder / "offsets.npy", np.array(offsets, "<i8"))
    np.save(folder / "num_bytes.npy", np.array(num_bytes, "<i8"))
    hasher.update(np.array(offsets, "<i8"))
    facts = {"tokens": size_in_tokens, "documents": len(num_bytes), "digest": hasher.hexdigest()}
    (folder / "corpus.json").write_text(json.dumps(facts))


def _write_header(file: BinaryIO, dtype: np.dtype, count: int) -> None:
    """numpy pads the header so that it has the same length for every count."""
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": (count,)})


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
