"""Records: the same ones from every format, and one sentence, with its place, for each that is malformed."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxllm.data.records import read_records
from flaxllm.errors import InputError

COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
ROWS = [{"text": 'so "good", naïve — 語', "label": "1"}, {"text": "", "label": "a b"}, {"text": "\u2028\x0b it's", "label": "0"}]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def complaint(source: Path | str, **options) -> str:
    """What is said of a source that cannot be read, which must be one sentence."""
    with pytest.raises(InputError) as caught:
        read_records(str(source), **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def csv_text(rows: list[dict[str, str]]) -> str:
    return "".join(",".join(map(quoted, cells)) + "\r\n" for cells in [rows[0], *(row.values() for row in rows)])


def parquet_bytes(rows: list[dict]) -> bytes:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


SPELLINGS = {
    "csv": csv_text,
    "tsv": lambda rows: "\n".join("\t".join(cells) for cells in [rows[0], *(row.values() for row in rows)]),
    "jsonl": lambda rows: "\n\n".join(map(json.dumps, rows)) + "\n \n",
    "json": lambda rows: json.dumps(rows, ensure_ascii=False, indent=1),
    "parquet": parquet_bytes,
}


@pytest.mark.parametrize("format", SPELLINGS)
def test_every_format_gives_the_same_records(tmp_path, format):
    content = SPELLINGS[format](ROWS)
    content = content.encode() if isinstance(content, str) else content
    for suffix, compress in COMPRESSIONS.items():
        assert read_records(str(write(tmp_path / f"a.{format}{suffix}", compress(content)))).rows == ROWS
    assert read_records(str(write(tmp_path / "a.txt", content)), format=format).rows == ROWS


@settings(max_examples=50, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(st.text(), st.text()).filter(any), min_size=1), mark=st.sampled_from(["", "\ufeff"]))
def test_whatever_is_quoted_in_csv_is_read_back(tmp_path_factory, rows, mark):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    content = mark + csv_text([dict(zip("ab", row)) for row in rows])
    path.write_bytes(content.encode())
    assert [tuple(row.values()) for row in read_records(str(path)).rows] == rows


def test_tsv_knows_neither_quotes_nor_escapes(tmp_path):
    path = write(tmp_path / "a.tsv", '\ufeff"a\tb\r\n"x\ty"\\t\r\n\r\n""\t\r\n')
    assert read_records(str(path)).rows == [{'"a': '"x', "b": 'y"\\t'}, {'"a': '""', "b": ""}]


def test_json_keeps_its_types(tmp_path):
    rows = [{"a": 1, "b": [1.5, None, True], "c": {"d": "e"}}]
    for name, content in {"a.json": json.dumps(rows), "a.jsonl": json.dumps(rows[0])}.items():
        assert read_records(str(write(tmp_path / name, content))).rows == rows


def test_places_are_file_and_line(tmp_path):
    write(tmp_path / "a.csv", 'a,b\n"one\ntwo",3\n\nfour,5\n')
    write(tmp_path / "b.jsonl", '\n{"a": "six", "b": "7"}')
    write(tmp_path / "c.json", '[{"a": "eight", "b": "9"}]')
    records = read_records(str(tmp_path))
    assert records.rows == [{"a": a, "b": b} for a, b in (("one\ntwo", "3"), ("four", "5"), ("six", "7"), ("eight", "9"))]
    assert records.where == [f"{tmp_path}/{place}" for place in ("a.csv:2", "a.csv:5", "b.jsonl:2", "c.json[0]")]
    assert read_records(str(tmp_path), format="csv").rows == records.rows[:2]
    assert read_records(f"{tmp_path}/*.js*").rows == records.rows[2:]


def test_the_fingerprint_is_of_the_rows_alone(tmp_path):
    paths = [write(tmp_path / f"a.{format}", SPELLINGS[format](ROWS)) for format in ("csv", "jsonl")]
    spelled = "".join(json.dumps({"label": row["label"], "text": row["text"]}, ensure_ascii=False) + "\n" for row in ROWS)
    assert {read_records(str(path)).fingerprint for path in paths} == {hashlib.sha256(spelled.encode()).hexdigest()}
    changed = write(tmp_path / "b.csv", csv_text([*ROWS[:-1], {"text": "x", "label": "y"}]))
    assert read_records(str(changed)).fingerprint != read_records(str(paths[0])).fingerprint


def test_columns_are_renamed_and_the_others_keep_their_names(tmp_path):
    path = write(tmp_path / "a.tsv", "label\ttext\tsentence\tid\n1\tno\tyes\t7\n")
    assert read_records(str(path), columns={"text": "sentence"}).rows == [{"label": "1", "id": "7", "text": "yes"}]
    both = {"source": "text", "target": "text"}
    assert read_records(str(path), columns=both).rows == [
        {"label": "1", "sentence": "yes", "id": "7", "source": "no", "target": "no"}
    ]


CONLL = "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\n. . O O\n\n\n  \nU.K.  NNP I-NP B-LOC\n"


def test_conll_gives_a_sentence_at_a_blank_line(tmp_path):
    path = write(tmp_path / "a.conll", CONLL)
    records = read_records(str(path))
    assert records.rows == [{"words": ["EU", "."], "tags": ["B-ORG", "O"]}, {"words": ["U.K."], "tags": ["B-LOC"]}]
    assert records.where == [f"{path}:3", f"{path}:8"]
    columns = {"words": 0, "tags": 1, "chunks": -2}
    assert read_records(str(path), columns=columns).rows[1] == {"words": ["U.K."], "tags": ["NNP"], "chunks": ["I-NP"]}
    for columns, needed in (({"words": 0, "tags": 4}, 5), ({"words": -6}, 6)):
        assert f":3 has 4 columns: expected {needed} or more" in complaint(path, columns=columns)
    tabs = write(tmp_path / "tabs.txt", "New York\tB-LOC\r\n\xa0\tO\r\n")
    assert read_records(str(tabs), format="conll").rows == [{"words": ["New York", "\xa0"], "tags": ["B-LOC", "O"]}]


def squad(**changes) -> dict:
    question = {"id": "q1", "question": "Who?", "answers": [{"text": "naïve", "answer_start": 3}], **changes}
    none = {"id": "q2", "question": "When?", "answers": [], "is_impossible": True, "plausible_answers": [{"text": "no"}]}
    return {"version": "x", "data": [{"title": "T", "paragraphs": [{"context": "So naïve.", "qas": [question, none]}]}]}


def test_squad_gives_questions_with_their_context(tmp_path):
    same = {"title": "T", "context": "So naïve."}
    expected = [
        {"id": "q1", "question": "Who?", "answers": {"text": ["naïve"], "answer_start": [3]}, **same},
        {"id": "q2", "question": "When?", "answers": {"text": [], "answer_start": []}, **same},
    ]
    path = write(tmp_path / "a.json", "\ufeff\n " + json.dumps(squad()))
    records = read_records(str(path))
    assert records.rows == expected
    assert records.where == [f"{path}, question 'q1'", f"{path}, question 'q2'"]
    assert read_records(str(path), format="squad").rows == expected


def test_parallel_files_are_read_side_by_side(tmp_path):
    write(tmp_path / "train.en", "one\n\nthree \u2028\n")
    write(tmp_path / "train.de.2", "eins\nzwei\ndrei\r\n")
    rows = [{"en": "one", "de.2": "eins"}, {"en": "", "de.2": "zwei"}, {"en": "three \u2028", "de.2": "drei"}]
    assert read_records(f"{tmp_path}/train.{{en,de.2}}").rows == rows
    renamed = read_records(f"{tmp_path}/train.{{en,de.2}}", columns={"source": "en", "target": "de.2"})
    assert renamed.rows[0] == {"source": "one", "target": "eins"}
    assert renamed.where[2] == f"{tmp_path}/train.en:3"
    for side, lines in {"en": b"one\ntwo", "de": b"eins\nzwei\n"}.items():
        write(tmp_path / f"train.{side}.gz", gzip.compress(lines))
    assert read_records(f"{tmp_path}/train.{{en,de}}.gz").rows[1] == {"en": "two", "de": "zwei"}


def test_parallel_files_of_unequal_length_are_refused_with_both_counts(tmp_path):
    write(tmp_path / "a.en", "1\n2\n3\n")
    write(tmp_path / "a.de", "1\n2")
    message = complaint(tmp_path / "a.{en,de}", malformed="skip")
    assert message.startswith(f"{tmp_path}/a.en has 3 lines and {tmp_path}/a.de has 2 lines: ")
    assert "matches 2 files" in complaint(write(tmp_path / "a.es", "").with_name("a.{e,d}*"))
    for source in ("a.en", "a.{en,en}", "a.{en,}"):
        assert "names no parallel files" in complaint(tmp_path / source, format="parallel")


GOOD = {"csv": "a,b\n1,2\n", "tsv": "a\tb\n1\t2\n", "jsonl": '{"a": "1", "b": "2"}\n', "conll": "x O\n\n"}
MALFORMED = {
    # name: format, what follows the good record, what is said of it after the file's name
    "few columns": ("csv", b"3\n", ":3 has 1 column: expected 2 ('a, b')"),
    "many columns": ("tsv", b"3\t4\t5\n", ":3 has 3 columns: expected 2 ('a, b')"),
    "open quote": ("csv", b'3,"4\n5,6\n', ":3 is not CSV (unexpected end of data, in the lines to 4)"),
    "stray quote": ("csv", b'3,"4"5\n', ":3 is not CSV ("),
    "latin csv": ("csv", b'"3\n",\xe9\n', ":4 is not UTF-8 (unexpected end of data 0xe9): convert it to UTF-8"),
    "latin tsv": ("tsv", b"3\t\xe9\n", ":3 is not UTF-8 ("),
    "latin jsonl": ("jsonl", b'{"a": "\xe9"}\n', ":2 is not UTF-8 ("),
    "latin conll": ("conll", b"x O\n\xe9 O\n\n", ":4 is not UTF-8 ("),
    "no json": ("jsonl", b'{"a": \n', ":2 is not JSON (Expecting value at character 5): expected one object a line"),
    "no object": ("jsonl", b"[1]\n", ":2 holds [1]: expected one object a line"),
    "half a pair": ("jsonl", b'{"a": "\\ud800", "b": 1}\n', ":2 has half of a surrogate pair, which is no text"),
    "column missing": ("jsonl", b'{"a": "3", "bb": "4"}\n', ":2 has no column 'b': did you mean 'bb'?"),
    "no tag": ("conll", b"x O\ny\n", ":4 has 1 column: expected 2 or more"),
    "uneven": ("conll", b"x O\ny z O\n", ":4 has 3 columns, and the sentence's first line 2"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_record_stops_the_reading_or_is_skipped_and_counted(tmp_path, name):
    format, bad, expected = MALFORMED[name]
    columns = {} if format == "conll" else {"field": "b"}
    good = read_records(str(write(tmp_path / f"good.{format}", GOOD[format])), columns)
    path = write(tmp_path / f"a.{format}", GOOD[format].encode() + bad)
    message = complaint(path, columns=columns)
    assert message.startswith(f"{path}{expected}") and message.endswith("; malformed='skip' leaves such records out")
    records = read_records(str(path), columns, malformed="skip")
    assert records.rows == good.rows and len(records.where) == 1 and records.fingerprint == good.fingerprint
    assert len(records.skipped) == 1 and records.skipped[0].startswith(f"{path}{expected}")
    alone = write(tmp_path / f"b.{format}", (GOOD[format].encode()[:4] if format in ("csv", "tsv") else b"") + bad)
    assert " holds no sound record, and 1 malformed, the first: " in complaint(alone, columns=columns, malformed="skip")


def test_reading_goes_on_after_a_malformed_record(tmp_path):
    path = write(tmp_path / "a.csv", b'a,b\n1\n"2" ,3\n4,5\n\xff,6\n7,8\n')
    records = read_records(str(path), malformed="skip")
    assert records.rows == [{"a": "4", "b": "5"}, {"a": "7", "b": "8"}]
    assert [re.search(r":(\d+) ", skipped)[1] for skipped in records.skipped] == ["2", "3", "5"]


BAD_QUESTIONS = {
    "its answer 'naïve' is not at character 2": {"answers": [{"text": "naïve", "answer_start": 2}]},
    "its answer 'naïve' is not at character -6": {"answers": [{"text": "naïve", "answer_start": -6}]},
    "its answer 'naïve' is not at character '3'": {"answers": [{"text": "naïve", "answer_start": "3"}]},
    "its answer '' is not at character 3": {"answers": [{"text": "", "answer_start": 3}]},
    "its answer None is not at character None": {"answers": [{}]},
    "is 'naïve': expected an object": {"answers": ["naïve"]},
    "has no list 'answers'": {"answers": None},
    "has no answer, though it is not marked is_impossible": {"answers": []},
    "has an answer, though it is marked is_impossible": {"is_impossible": True},
    "its question is 5: expected a string": {"question": 5},
}


@pytest.mark.parametrize("expected", BAD_QUESTIONS)
def test_a_malformed_question_is_named_by_its_id(tmp_path, expected):
    path = write(tmp_path / "a.json", json.dumps(squad(**BAD_QUESTIONS[expected])))
    message = complaint(path)
    assert message.startswith(f"{path}, question 'q1'") and expected in message
    records = read_records(str(path), malformed="skip")
    assert [row["id"] for row in records.rows] == ["q2"] and len(records.skipped) == 1


WRONG_FILES = {
    "a.csv": ("a,b,a\n1,2,3\n", ":1 has two columns 'a'"),
    "b.csv": ('a,"b\n', ":1 is not CSV ("),
    "a.tsv": (b"a\t\xe9\n1\t2\n", ":1 is not UTF-8 ("),
    "a.json": ('[{"a": 1},\n {"a" 2}]', " is not JSON (Expecting ':' delimiter at character 6 of line 2): expected a list of objects"),
    "b.json": ("5", " holds 5: expected a list of objects"),
    "c.json": ('{"a": 1}\n{"a": 2}\n', " is not JSON (Extra data at character 0 of line 2): expected SQuAD's"),
    "d.json": ('{"data": [{"a": 1}]}', ": an article has no list 'paragraphs': expected SQuAD's"),
    "e.json": ("[" * 10**5, " is not JSON ("),
    "a.jsonl.gz": ("{}", " is damaged or cut short ("),
    "a.parquet": ("PAR1PAR1", " is no sound parquet file: "),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FILES)
def test_what_is_wrong_with_a_file_as_a_whole_is_never_skipped(tmp_path, name):
    if name == "a.parquet":
        pytest.importorskip("pyarrow")
    content, expected = WRONG_FILES[name]
    path = write(tmp_path / name, content)
    assert complaint(path, malformed="skip").startswith(f"{path}{expected}")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.conll"])
def test_a_source_without_a_record_is_refused(tmp_path, name):
    for content in ("", "\n\n", *(["a,b\n"] if name == "a.csv" else [])):
        path = write(tmp_path / name, content)
        assert complaint(path) == f"source {str(path)!r} holds no record"


def test_what_is_asked_for_wrongly_is_told_the_nearest(tmp_path):
    path = write(tmp_path / "a.csv", GOOD["csv"])
    assert complaint(path, format="cvs") == "there is no format 'cvs' of records: did you mean 'csv'?"
    assert complaint(path, malformed="skpi") == "malformed is 'skpi': did you mean 'skip'?"
    assert complaint(tmp_path / "a.cvs").endswith(f"did you mean {str(path)!r}?")
    assert "does not say its format: expected a name in .csv, .tsv" in complaint(write(tmp_path / "a.txt", ""))
    assert "the column of 'words' is 'word'" in complaint(write(tmp_path / "a.conll", "x O"), columns={"words": "word"})
    assert "is not of the format 'csv' but 'parallel'" in complaint(tmp_path / "a.{en,de}", format="csv")
    (tmp_path / "empty").mkdir()
    assert "holds nothing to read: expected files that end in .csv, .tsv" in complaint(tmp_path / "empty")
    assert "expected files that end in .json, or" in complaint(tmp_path / "empty", format="squad")


EXAMPLES = {
    "csv": csv_text(ROWS).encode(),
    "tsv": SPELLINGS["tsv"](ROWS).encode(),
    "jsonl": SPELLINGS["jsonl"](ROWS).encode(),
    "json": SPELLINGS["json"](ROWS).encode(),
    "squad": json.dumps(squad()).encode(),
    "conll": CONLL.encode(),
}


@pytest.mark.parametrize("format", [*EXAMPLES, "parquet"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_damage_raises_anything_but_one_sentence(tmp_path_factory, format, data):
    content = bytearray(parquet_bytes(ROWS) if format == "parquet" else EXAMPLES[format])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        piece = data.draw(st.one_of(st.binary(max_size=3), st.sampled_from([b'"', b"\n", b"\t", b"{", b"[", b"null", b"-1"])))
        content[start : start + data.draw(st.integers(0, 8))] = piece
    path = write(tmp_path_factory.getbasetemp() / f"damaged.{format}", bytes(content))
    for malformed in ("stop", "skip"):
        try:
            records = read_records(str(path), format=format, malformed=malformed)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert len(records.rows) == len(records.where) > 0


def test_parquet_keeps_its_types(tmp_path):
    rows = [{"a": 1, "b": [1.5, 2.0], "c": {"d": "e"}, "f": None}, {"a": 2, "b": [], "c": {"d": "g"}, "f": "h"}]
    path = write(tmp_path / "a.parquet", parquet_bytes(rows))
    records = read_records(str(path), columns={"text": "f"})
    assert records.rows == [{"a": row["a"], "b": row["b"], "c": row["c"], "text": row["f"]} for row in rows]
    assert records.where == [f"{path}[0]", f"{path}[1]"]


def test_a_parquet_file_with_two_columns_of_a_name_is_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table([[1], [2]], names=["a", "a"]), tmp_path / "a.parquet")
    assert complaint(tmp_path / "a.parquet") == f"{tmp_path / 'a.parquet'} has two columns 'a': give each its own name"


def test_data_sets_of_hugging_face_are_read_by_folder_split_or_hub_name(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    train, test = (datasets.Dataset.from_list(rows) for rows in (ROWS, ROWS[:1]))
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "two")
    assert read_records(str(tmp_path / "one")).rows == ROWS
    records = read_records(f"{tmp_path}/two:test", format="datasets", columns={"sentence": "text"})
    assert records.rows == [{"label": "1", "sentence": ROWS[0]["text"]}]
    assert records.where == [f"{tmp_path}/two:test[0]"]
    assert complaint(tmp_path / "two").endswith("after a colon: expected one of: test, train")
    assert complaint(f"{tmp_path}/two:tset").endswith("did you mean 'test'?")
    assert "holds one data set without splits" in complaint(f"{tmp_path}/one:train")
    (tmp_path / "one" / "state.json").write_text("[]")
    assert " is not read by datasets: " in complaint(tmp_path / "one")

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda **given: asked.append(given) or test)
    for source in ("hub:a/b/c:train[:10]", "hub:a/b:train", "hub:a:train"):
        assert read_records(source).rows == ROWS[:1]
    assert asked == [
        {"path": "a/b", "name": "c", "split": "train[:10]"},
        {"path": "a/b", "name": None, "split": "train"},
        {"path": "a", "name": None, "split": "train"},
    ]
    assert "names no split: expected hub:NAME:SPLIT" in complaint("hub:a/b")
    monkeypatch.setattr(datasets, "load_dataset", lambda **given: 1 / 0)
    assert complaint("hub:a:train").startswith("hub:a:train is not read by datasets: division by zero")


def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    path = write(tmp_path / "a.parquet", "")
    assert complaint(path) == f"{path} needs pyarrow, which is not installed: pip install pyarrow"
    assert complaint("hub:a:b") == "source 'hub:a:b' needs datasets, which is not installed: pip install datasets"


def test_no_optional_package_is_imported_without_need(tmp_path):
    path = write(tmp_path / "a.csv", GOOD["csv"])
    code = f"import sys; from flaxllm.data.records import read_records; read_records({str(path)!r}); " + (
        "print([name for name in ('pyarrow', 'datasets', 'pandas') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
