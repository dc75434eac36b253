"""The tokenised corpus: what is in it, when the cache is used, and that neither damage nor a race can be seen."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from flaxllm.data import Corpus, Tokenizer, byte_level, char_level, corpus, load_corpus, train_bpe
from flaxllm.errors import InputError

TEXTS = ["The first document, naïve.\n", "", "second\n\n", "語"]


@pytest.fixture
def source(tmp_path) -> str:
    path = tmp_path / "source.jsonl"
    path.write_text("".join(json.dumps({"text": text, "other": text.upper()}) + "\n" for text in TEXTS))
    return str(path)


def documents_of(loaded: Corpus) -> list[list[int]]:
    return [loaded.tokens[start:stop].tolist() for start, stop in zip(loaded.offsets[:-1], loaded.offsets[1:])]


def holds_texts(loaded: Corpus) -> bool:
    return (
        documents_of(loaded) == [[*text.encode(), 256] for text in TEXTS]
        and loaded.offsets[0] == 0
        and loaded.offsets[-1] == len(loaded.tokens)
        and loaded.num_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    )


@pytest.fixture
def no_reading(monkeypatch):
    """From here on, whatever is not in the cache cannot be had."""

    def forbid():
        monkeypatch.setattr(corpus, "read_documents", lambda *_: pytest.fail("the source was read once more"))

    return forbid


def test_a_corpus_is_the_documents_ids_each_ended_by_the_end_of_text(source):
    loaded = load_corpus(source, byte_level())
    assert holds_texts(loaded)
    assert (loaded.tokens.dtype, loaded.offsets.dtype, loaded.num_bytes.dtype) == (np.uint16, np.int64, np.int64)


def test_a_tokenizer_without_an_end_of_text_ends_nothing(source):
    backend = tokenizers.Tokenizer(models.WordLevel({char: i for i, char in enumerate(sorted(set("".join(TEXTS))))}))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer = Tokenizer(backend)
    loaded = load_corpus(source, tokenizer)
    assert documents_of(loaded) == [tokenizer.encode(text).tolist() for text in TEXTS]


def test_ids_above_65535_are_kept(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(70_000)}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "a.txt").write_text("w69999 w3 w65536")
    loaded = load_corpus(str(tmp_path / "a.txt"), Tokenizer(backend))
    assert loaded.tokens.tolist() == [69999, 3, 65536]


def test_a_long_document_has_the_ids_of_the_whole(tmp_path):
    """Long ones are cut in parts, and many short ones are encoded together."""
    rng = np.random.default_rng(0)
    parts = ["\n", "\n\n", "\n  ", " \n", "the", " the", "é", "'s", "12", ".", "\t", "\u2028"]
    long = ["".join(rng.choice(parts, 100_000)), "x" * 20_000]
    short = ["".join(rng.choice(parts, size)) for size in range(300)]
    texts = [*short, *long, *short]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for tokenizer in (train_bpe(long, 300), char_level(texts)):
        loaded = load_corpus(str(tmp_path / "a.jsonl"), tokenizer)
        whole = [[*ids.tolist(), tokenizer.end_of_text] for ids in tokenizer.encode_batch(texts)]
        assert documents_of(loaded) == whole
        assert loaded.num_bytes.tolist() == [len(text.encode()) for text in texts]


def test_the_second_time_a_corpus_comes_from_the_cache(source, no_reading):
    made = load_corpus(source, byte_level())
    no_reading()
    found = load_corpus(source, byte_level())
    assert holds_texts(found) and found.digest == made.digest
    assert isinstance(found.tokens, np.memmap) and not found.tokens.flags.writeable


def test_a_change_of_the_source_is_seen(source):
    load_corpus(source, byte_level())
    Path(source).write_text('{"text": "new"}\n')
    assert documents_of(load_corpus(source, byte_level())) == [[*b"new", 256]]
    os.utime(source, (0, 2**31))
    Path(source).write_text('{"text": "old"}\n')
    assert documents_of(load_corpus(source, byte_level())) == [[*b"old", 256]]


def test_another_tokenizer_and_another_column_are_another_corpus(source):
    letters = char_level(TEXTS)
    for _ in range(2):
        assert holds_texts(load_corpus(source, byte_level()))
        loaded = load_corpus(source, letters)
        assert [letters.decode(ids[:-1]) for ids in documents_of(loaded)] == TEXTS
        assert documents_of(load_corpus(source, byte_level(), "other"))[2] == [*b"SECOND\n\n", 256]


def test_the_cache_is_where_it_is_told_to_be(source, cache, tmp_path, monkeypatch):
    load_corpus(source, byte_level())
    assert len(list(cache.iterdir())) == 1
    load_corpus(source, byte_level(), cache=tmp_path / "given")
    assert len(list((tmp_path / "given" / "corpus").iterdir())) == 1
    monkeypatch.delenv("FLAXLLM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    load_corpus(source, byte_level())
    assert len(list((tmp_path / ".cache" / "flaxllm" / "corpus").iterdir())) == 1


def test_the_digest_is_that_of_the_tokens_and_the_documents(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    digests = []
    for i, texts in enumerate([["a", "bb"], ["ab", "b"], ["abb"], ["a", "ba"], ["a", "bb"]]):
        path = tmp_path / f"{i}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        digests.append(load_corpus(str(path), Tokenizer(backend)).digest)
    assert digests[0] == digests[-1] and len(set(digests)) == 4


def flip(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)


FILES = ("tokens", "offsets", "num_bytes", "sha256")
DAMAGES = {
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut within a number": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "lost": Path.unlink,
    "longer": lambda path: path.write_bytes(path.read_bytes() * 2),
    "first bit flipped": lambda path: flip(path, 0),
    "middle bit flipped": lambda path: flip(path, 0.5),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_anew(source, cache, no_reading, file, damage):
    load_corpus(source, byte_level())
    (entry,) = cache.iterdir()
    DAMAGES[damage](entry / file)
    assert holds_texts(load_corpus(source, byte_level()))
    no_reading()
    assert holds_texts(load_corpus(source, byte_level()))
    assert list(cache.iterdir()) == [entry]


@pytest.mark.parametrize("what", ["an empty folder", "a file"])
def test_what_is_no_entry_is_replaced_by_one(source, cache, no_reading, what):
    load_corpus(source, byte_level())
    (entry,) = cache.iterdir()
    shutil.rmtree(entry)
    entry.mkdir() if what == "an empty folder" else entry.write_text("?")
    assert holds_texts(load_corpus(source, byte_level()))
    no_reading()
    assert holds_texts(load_corpus(source, byte_level()))
    assert list(cache.iterdir()) == [entry]


WRITERS, MISSING, DAMAGED = 4, 12, 40
RACE = f"""
import multiprocessing, sys, warnings
import numpy as np
from flaxllm.data import byte_level, load_corpus

def load(source, caches, barrier):
    for cache in caches:
        barrier.wait(60)
        loaded = load_corpus(source, byte_level(), cache=cache)
        assert loaded.tokens.tolist() == [*open(source, "rb").read(), 256], "wrong tokens"

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    context = multiprocessing.get_context("fork")
    source, *caches = sys.argv[1:]
    barrier = context.Barrier({WRITERS})
    writers = [context.Process(target=load, args=(source, caches, barrier)) for _ in range({WRITERS})]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    sys.exit(any(writer.exitcode for writer in writers))
"""


def test_processes_that_make_the_same_entry_at_once_all_get_it(tmp_path, no_reading):
    source = tmp_path / "source.txt"
    source.write_text("what all of them read\n" * 300)
    caches = [tmp_path / str(i) for i in range(MISSING + DAMAGED)]
    load_corpus(str(source), byte_level(), cache=caches[-1])
    (entry,) = (caches[-1] / "corpus").iterdir()
    os.truncate(entry / "tokens", 10)
    for folder in caches[MISSING:-1]:
        shutil.copytree(caches[-1], folder)
    command = [sys.executable, "-c", RACE, str(source), *map(str, caches)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    no_reading()
    for folder in caches:
        assert len(load_corpus(str(source), byte_level(), cache=folder).tokens) == len(source.read_bytes()) + 1
        assert [path.name for path in (folder / "corpus").iterdir()] == [entry.name]


def test_nothing_is_kept_of_a_source_that_cannot_be_read(source, cache):
    with Path(source).open("a") as file:
        file.write("bad line\n")
    with pytest.raises(InputError, match=r"source.jsonl:5 is not JSON"):
        load_corpus(source, byte_level())
    assert list(cache.iterdir()) == []


def test_nothing_is_kept_of_a_source_that_changes_while_it_is_read(source, cache, monkeypatch):
    def read_documents(*_):
        yield "one"
        with Path(source).open("a") as file:
            file.write('{"text": "more"}\n')

    monkeypatch.setattr(corpus, "read_documents", read_documents)
    with pytest.raises(InputError, match="changed while it was read"):
        load_corpus(source, byte_level())
    assert list(cache.iterdir()) == []


def test_text_that_the_tokenizer_cannot_say_is_refused(source, cache):
    with pytest.raises(InputError, match="no token for 'ï'"):
        load_corpus(source, char_level(["The first document, nave.second\n語"]))
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}))
    backend.normalizer = normalizers.Replace(tokenizers.Regex(r"[\s\S]"), "")
    with pytest.raises(InputError, match="no token for any of the text"):
        load_corpus(source, Tokenizer(backend))
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"the cache .*/file/corpus cannot be written \(Not a directory\): set FLAX"):
        load_corpus(source, byte_level(), cache=tmp_path / "file")
