"""Sources: the same documents in the same order however they are kept, and one sentence for whatever is wrong."""

import bz2
import gzip
import json
import lzma
import os
import pydoc_data.topics
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxllm.data import read_documents, source_stamp
from flaxllm.errors import InputError

COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
TEXT = "first line\r\n\tsecond, naïve — 語 \x00\u2028\n\n no newline at the end"


def documents(source: Path | str, **options: str) -> list[str]:
    return list(read_documents(str(source), **options))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def complaint(source: Path | str, **options: str) -> str:
    """What is said of a source that cannot be read, which must be one sentence."""
    with pytest.raises(InputError) as caught:
        documents(source, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("suffix", [*COMPRESSIONS, ".GZ"])
def test_a_text_file_is_one_document_to_the_letter(tmp_path, suffix):
    path = write(tmp_path / f"a.txt{suffix}", COMPRESSIONS[suffix.lower()](TEXT.encode()))
    assert documents(path) == [TEXT]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz", "A.JSONL"])
def test_each_line_of_jsonl_is_a_document(tmp_path, name):
    content = lines({"text": TEXT, "id": 1}, {"id": 2, "text": ""}) + "\n  \n" + '{"text": "raw \u2028 line"}'
    path = write(tmp_path / name, COMPRESSIONS.get(Path(name).suffix, bytes)(content.encode()))
    assert documents(path) == [TEXT, "", "raw \u2028 line"]


def test_the_column_is_the_callers_to_choose(tmp_path):
    path = write(tmp_path / "a.jsonl", lines({"text": "no", "body": "yes"}))
    assert documents(path, column="body") == ["yes"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "a.jsonl.gz"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text(), min_size=1).filter(any), st.booleans())
def test_whatever_is_written_as_jsonl_is_read_back(scratch, texts, escape):
    content = "\n".join(json.dumps({"text": text}, ensure_ascii=escape) for text in texts)
    scratch.write_bytes(gzip.compress(content.encode()))
    assert documents(scratch) == texts


def test_documents_come_one_at_a_time(tmp_path):
    path = write(tmp_path / "a.jsonl", lines({"text": "good"}) + "bad\n")
    assert next(read_documents(str(path))) == "good"


def test_a_folder_is_its_text_files_in_the_order_of_their_paths(tmp_path):
    kept = {"b.md": "2", "a/z.txt": "1", "c.jsonl": lines({"text": "3"}, {"text": "4"}), "d.rst": "5"}
    left_out = ["notes.csv", ".hidden.txt", ".git/e.txt", "a/.cache/f.txt", "g.py.gz", "txt"]
    for name, content in reversed(kept.items()):
        write(tmp_path / "folder" / name, content)
    write(tmp_path / "folder" / "d.txt.xz", lzma.compress(b"6"))
    for name in left_out:
        write(tmp_path / "folder" / name, "never")
    assert documents(tmp_path / "folder") == ["1", "2", "3", "4", "5", "6"]


def test_a_folder_below_a_hidden_one_is_read(tmp_path):
    write(tmp_path / ".hidden" / "folder" / "a.txt", "1")
    assert documents(tmp_path / ".hidden" / "folder") == ["1"]


def test_a_pattern_finds_each_file_once_in_the_order_of_their_paths(tmp_path):
    for name in ("c.log", "a/b/x.log", "a/y.log", "a/y.txt", "d.log/e.log"):
        write(tmp_path / name, name)
    assert documents(tmp_path / "**" / "**" / "*.log") == ["a/b/x.log", "a/y.log", "c.log", "d.log/e.log"]
    assert documents(tmp_path / "a" / "y.*") == ["a/y.log", "a/y.txt"]


def test_a_file_whose_name_is_like_a_pattern_is_a_file(tmp_path):
    write(tmp_path / "1.txt", "not this one")
    assert documents(write(tmp_path / "[1].txt", "this one")) == ["this one"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", "at home")
    assert documents("~/a.txt") == documents("~/*.txt") == ["at home"]


def test_python_docs_are_the_help_topics():
    found = documents("python-docs")
    assert sorted(found) == sorted(pydoc_data.topics.topics.values())
    assert found.index(pydoc_data.topics.topics["assert"]) < found.index(pydoc_data.topics.topics["while"])
    assert found == documents("python-docs")


def test_python_stdlib_is_the_source_of_the_library_and_of_nothing_else():
    found = documents("python-stdlib")
    for module in (json, gzip, pytest):
        assert found.count(Path(module.__file__).read_text(encoding="utf-8")) == (module is not pytest)
    assert len(found) == len(source_stamp("python-stdlib")["files"]) > 300
    assert sum(map(len, found)) > 5e6


def test_tests_installed_packages_and_other_encodings_are_no_part_of_python_stdlib(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    for name in ("test/a.py", "x/tests/a.py", "site-packages/a.py", "x/__pycache__/a.py", "x/a.txt"):
        write(tmp_path / name, "never")
    write(tmp_path / "latin.py", "# é".encode("latin-1"))
    write(tmp_path / "b.py", "2")
    write(tmp_path / "a" / "a.py", "1")
    assert documents("python-stdlib") == ["1", "2"]


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path / "f" / "a.txt", "one")
    write(tmp_path / "f" / "b.txt", "two")
    return tmp_path / "f"


CHANGES = {
    "longer text": lambda folder: write(folder / "a.txt", "one more"),
    "a later time": lambda folder: os.utime(folder / "a.txt", (0, 2**31)),
    "another file": lambda folder: write(folder / "c.txt", "three"),
    "a file less": lambda folder: (folder / "a.txt").unlink(),
    "another name": lambda folder: (folder / "a.txt").rename(folder / "c.txt"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_stamp_sees_a_source_change(folder, change):
    before = source_stamp(str(folder))
    assert source_stamp(str(folder)) == before == json.loads(json.dumps(before))
    CHANGES[change](folder)
    assert source_stamp(str(folder)) != before


def test_the_stamp_does_not_depend_on_where_it_is_asked_from(folder, monkeypatch):
    before = source_stamp(str(folder))
    monkeypatch.chdir(folder)
    assert source_stamp(".") == source_stamp("*.txt") == before


def test_the_stamp_tells_a_link_that_is_read_in_another_way(tmp_path):
    path = write(tmp_path / "a.txt", lines({"text": "one"}))
    link = tmp_path / "a.jsonl"
    link.symlink_to(path)
    assert documents(path) != documents(link)
    assert source_stamp(str(path)) != source_stamp(str(link))


def test_a_near_miss_is_named(tmp_path):
    write(tmp_path / "input.txt", "x")
    assert complaint(tmp_path / "inptu.txt").endswith(f"did you mean {str(tmp_path / 'input.txt')!r}?")
    assert complaint("python-doc") == "there is no source 'python-doc': did you mean 'python-docs'?"


def test_a_path_that_leads_nowhere_says_what_was_expected(tmp_path):
    expected = "expected python-docs, python-stdlib, or a path that exists"
    assert complaint(tmp_path / "zzz") == f"there is no source {str(tmp_path / 'zzz')!r}: {expected}"
    assert complaint(tmp_path / "no" / "a.txt").endswith(f"{expected} (there is no folder {str(tmp_path / 'no')!r})")
    assert "there is no source" in complaint("nowhere" * 40)  # longer than a name can be
    assert complaint("") == "the source is an empty string: expected python-docs, python-stdlib, or a path"


@pytest.mark.parametrize("name", ["zzz", "a.txt/b.txt", "*.csv", "no/*.txt"])
def test_no_stamp_is_made_of_a_path_that_leads_nowhere(folder, name):
    with pytest.raises(InputError, match="there is no source|matches no file"):
        source_stamp(str(folder / name))


def test_a_pattern_that_finds_nothing_and_a_folder_without_text_say_so(tmp_path):
    write(tmp_path / "a.csv", "x")
    (tmp_path / "folder.txt").mkdir()
    assert "matches no file" in complaint(tmp_path / "*.txt")
    assert "holds nothing to read: expected files that end in .txt" in complaint(tmp_path)


EMPTY = {"a.txt": b"", "a.txt.gz": gzip.compress(b""), "a.jsonl": b"\n\n", "b.jsonl": b'{"text": ""}\n{"text": ""}\n'}


@pytest.mark.parametrize("name", EMPTY)
def test_a_source_without_a_letter_is_refused(tmp_path, name):
    path = write(tmp_path / name, EMPTY[name])
    assert complaint(path) == f"source {str(path)!r} holds no text: it has no document, or only empty ones"


@pytest.mark.parametrize("layout", [".txt", ".jsonl"])
@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("damage", ["cut short", "changed", "not compressed"])
def test_a_damaged_file_is_named(tmp_path, layout, suffix, damage):
    content = lines(*({"text": f"line {i} of {i * i}"} for i in range(300))).encode()
    data = COMPRESSIONS[suffix](content)
    places = range(20, len(data) - 20, len(data) // 15)
    damaged = {
        "cut short": [data[:place] for place in places],
        "changed": [data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :] for place in places],
        "not compressed": [content],
    }
    for content in damaged[damage]:
        path = write(tmp_path / f"a{layout}{suffix}", content)
        assert complaint(path).startswith(f"{path} is damaged or cut short (")


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo é\nthree é".encode("latin-1"))
    assert complaint(path) == f"{path}:2 is not UTF-8 (invalid continuation byte 0xe9): convert it to UTF-8"
    path = write(tmp_path / "a.jsonl", lines({"text": "one"}).encode() + b'{"text": "\xff"}\n')
    assert complaint(path) == f"{path}:2 is not UTF-8 (invalid start byte 0xff): convert it to UTF-8"


BAD_LINES = {
    '{"text": "two"': "is not JSON (Expecting ',' delimiter at character",
    "two": "is not JSON (Expecting value at character 0): expected one object a line",
    "[" * 10**5: "is not JSON (",
    '{"text": 1' + "0" * 5000 + "}": "is not JSON (Exceeds the limit",
    '["two"]': "holds ['two']: expected one object a line",
    '"two"': "holds 'two': expected one object a line",
    '{"txt": "two"}': "has no column 'text': did you mean 'txt'?",
    '{"a": "two", "b": 2}': "has no column 'text': expected one of: a, b",
    "{}": "has no column 'text': the object is empty",
    '{"text": 2}': ": column 'text' holds 2: expected a string",
    '{"text": null}': ": column 'text' holds None: expected a string",
    '{"text": ["two"]}': ": column 'text' holds ['two']: expected a string",
    '{"text": "a\\ud800b"}': ": column 'text' has half of a surrogate pair at character 1, which is no text",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_is_refused_with_its_number(tmp_path, line):
    path = write(tmp_path / "a.jsonl", lines({"text": "one"}) + "\n" + line + "\n")
    message = complaint(path)
    assert message.startswith(f"{path}:3") and BAD_LINES[line] in message
