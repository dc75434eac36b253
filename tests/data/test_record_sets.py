"""The embedded record sets: what they say is so, their parts share nothing, and each process makes the same."""

import importlib
import inspect
import os
import pydoc
import re
import subprocess
import sys
import sysconfig
from functools import cache

import pytest

from flaxllm.data.record_sets import PARTS, RECORD_SETS
from flaxllm.data.records import read_records
from flaxllm.errors import InputError

FIELDS = {
    "python-lines": {"text", "label"},
    "python-tokens": {"words", "tags"},
    "python-questions": {"id", "question", "context", "answers"},
    "python-functions": {"source", "target"},
    "python-numbers": {"source", "target"},
    "python-chat": {"messages"},
    "python-preferences": {"prompt", "chosen", "rejected"},
}


@cache
def rows(source: str) -> list[dict]:
    return read_records(source).rows


def both(name: str) -> list[dict]:
    return [row for part in PARTS for row in rows(f"{name}:{part}")]


@pytest.mark.slow
def test_every_set_has_its_fields_and_enough_records():
    assert set(RECORD_SETS) == set(FIELDS)
    for name, fields in FIELDS.items():
        train, held_out = rows(f"{name}:train"), rows(f"{name}:eval")
        assert all(set(row) == fields for row in train + held_out)
        assert len(train) >= 500 and len(train) / 15 < len(held_out) < len(train) / 6
        assert len({repr(row) for row in train + held_out}) == len(train) + len(held_out)


def test_the_parts_share_nothing():
    for name, texts in {
        "python-lines": lambda row: [row["text"]],
        "python-tokens": lambda row: [tuple(row["words"])],
        "python-questions": lambda row: [row["question"], row["context"], *row["answers"]["text"]],
        "python-functions": lambda row: row.values(),
        "python-numbers": lambda row: row.values(),
        "python-chat": lambda row: [message["content"] for message in row["messages"][:2]],
        "python-preferences": lambda row: row.values(),
    }.items():
        train, held_out = ({text for row in rows(f"{name}:{part}") for text in texts(row)} for part in PARTS)
        shared = train & held_out
        if name == "python-questions":  # functions that take the same
            shared = {text for text in shared if " " in text and "=" not in text and ", " not in text}
        assert not shared


def test_another_process_makes_the_same():
    code = "from flaxllm.data.records import read_records; print(read_records('python-tokens:eval').fingerprint)"
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert made.stdout.strip() == read_records("python-tokens:eval").fingerprint


PROGRAM = '''"""The first line of the module.

A second one, of the same docstring."""

import os.path  # nothing

# A comment by itself, which is long.
NUMBERS = ["several words", 'in' " strings", 12, 0.5]
TEXT = """This is a string,
and no docstring at all."""


class Shape:
    """A shape, whose docstring is this."""

    def area_in_units(self, unit=os.path.sep, *, exact: bool = False):
        """Return how large it is, e.g. in feet. Units may be given
        as a number. Or not.

        There is more.
        """
        return self.size.in_units(unit) if unit is not None else 3

    def _hidden(self):
        """Return what nobody should see."""

    def untold(self):
        """it begins without a capital letter."""
'''


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of one module."""
    (tmp_path / "argparse.py").write_text(PROGRAM)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})


def in_either_part(name: str) -> list[dict]:
    found = []
    for part in PARTS:
        try:
            found += read_records(f"{name}:{part}").rows
        except InputError as error:
            assert "holds no record" in str(error)
    return found


def test_lines_are_told_by_where_they_stand(library):
    labels = {row["text"]: row["label"] for row in in_either_part("python-lines")}
    assert labels == {
        '"""The first line of the module.': "docstring",
        'A second one, of the same docstring."""': "docstring",
        "import os.path  # nothing": "code",
        "# A comment by itself, which is long.": "comment",
        """NUMBERS = ["several words", 'in' " strings", 12, 0.5]""": "code",
        'TEXT = """This is a string,': "code",
        'and no docstring at all."""': "code",
        '"""A shape, whose docstring is this."""': "docstring",
        "def area_in_units(self, unit=os.path.sep, *, exact: bool = False):": "code",
        '"""Return how large it is, e.g. in feet. Units may be given': "docstring",
        "as a number. Or not.": "docstring",
        "return self.size.in_units(unit) if unit is not None else 3": "code",
        '"""Return what nobody should see."""': "docstring",
        '"""it begins without a capital letter."""': "docstring",
    }


def test_statements_are_tagged_in_iob2(library):
    tagged = {" ".join(row["words"]): " ".join(row["tags"]) for row in in_either_part("python-tokens")}
    assert tagged["""NUMBERS = [ "several words" , 'in' " strings" , 12 , 0.5 ]"""] == (
        "B-NAME O O B-STRING I-STRING O B-STRING B-STRING I-STRING O B-NUMBER O B-NUMBER O"
    )
    assert tagged["return self . size . in_units ( unit ) if unit is not None else 3"] == (
        "B-KEYWORD B-NAME I-NAME I-NAME I-NAME I-NAME O B-NAME O B-KEYWORD B-NAME B-KEYWORD B-KEYWORD B-KEYWORD B-KEYWORD B-NUMBER"
    )
    assert not any("nothing" in words for words in tagged)


def test_a_summary_is_the_first_sentence_of_the_rest(library):
    assert in_either_part("python-functions") == [{
        "source": (
            "argparse.Shape.area_in_units(unit=os.path.sep, *, exact: bool=False): "
            "Units may be given as a number. Or not. There is more."
        ),
        "target": "Return how large it is, e.g. in feet.",
    }]  # fmt: skip


def test_a_chat_asks_what_a_function_does_and_takes(library):
    assert in_either_part("python-chat") == [{
        "messages": [
            {"role": "user", "content": "What does argparse.Shape.area_in_units do?"},
            {"role": "assistant", "content": "Return how large it is, e.g. in feet."},
            {"role": "user", "content": "Which arguments does it take?"},
            {"role": "assistant", "content": "unit=os.path.sep, *, exact: bool=False"},
        ]
    }]  # fmt: skip


def test_entities_have_several_words_and_follow_each_other():
    tags = [tag for row in both("python-tokens") for tag in ["O", *row["tags"]]]
    assert all(before[2:] == tag[2:] and before != "O" for before, tag in zip(tags, tags[1:]) if tag[0] == "I")
    pairs = set(zip(tags, tags[1:]))
    for kind in ("NAME", "STRING"):
        assert {(f"B-{kind}", f"I-{kind}"), (f"I-{kind}", "O")} <= pairs
    assert ("I-STRING", "B-STRING") in pairs and ("B-KEYWORD", "B-KEYWORD") in pairs


def test_answers_stand_in_their_contexts_and_some_questions_have_none():
    answered = 0
    for row in both("python-questions"):
        name = re.fullmatch(r"(?:What does|Which arguments does) (\S+) (?:do|take)\?", row["question"])[1]
        if not row["answers"]["text"]:
            assert f"{name}(" not in row["context"] and row["answers"]["answer_start"] == []
            continue
        [text], [start] = row["answers"]["text"], row["answers"]["answer_start"]
        before = f"{name}(" if "take?" in row["question"] else "): "
        assert text and row["context"][:start].endswith(before) and row["context"].startswith(text, start)
        assert f"{name}(" in row["context"]
        answered += 1
    assert 0.5 < answered / len(both("python-questions")) < 0.75


def test_what_a_function_does_is_what_its_documentation_says():
    told = {row["prompt"]: row["chosen"] for row in both("python-preferences")}
    checked = 0
    for prompt, chosen in told.items():
        module, *path = re.fullmatch(r"What does (\S+) do\?", prompt)[1].split(".")
        if module not in ("textwrap", "statistics", "shutil"):
            continue
        found = importlib.import_module(module)
        for part in path:
            found = inspect.getattr_static(found, part)
        assert " ".join(pydoc.getdoc(found).split()).startswith(chosen)
        checked += 1
    assert checked > 30


def test_a_rejected_answer_is_that_of_another_function():
    train = rows("python-preferences:train")
    true = {row["chosen"] for row in train}
    assert all(row["rejected"] != row["chosen"] for row in train)
    assert sum(row["rejected"] in true for row in train) >= len(train) - 1


VALUES = {word: value for value, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen".split()
)} | {word: 10 * tens for tens, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)}  # fmt: skip


def test_numbers_are_what_their_words_say():
    for row in both("python-numbers"):
        total = current = 0
        for word in row["source"].replace("-", " ").split():
            if word == "thousand":
                total, current = 1000 * current, 0
            elif word == "hundred":
                current *= 100
            elif word != "and":
                current += VALUES[word]
        assert str(total + current) == row["target"]
        assert re.fullmatch(r"(\w+ thousand ?)?(\w+ hundred( and |$))?[a-z-]*", row["source"])
    assert {len(row["target"]) for row in both("python-numbers")} == {1, 2, 3, 4}


def test_a_set_needs_a_part_and_takes_columns_but_no_format():
    assert read_records("python-numbers:eval", columns={"text": "source"}).rows[0].keys() == {"target", "text"}
    assert read_records("python-numbers:eval").where[3] == "python-numbers:eval[3]"
    for source, options, expected in (
        ("python-lines", {}, "names no part: expected python-lines:train or python-lines:eval"),
        ("python-lines:test", {}, "source 'python-lines:test' names no part"),
        ("python-lnes:train", {}, "did you mean 'python-lines'?"),
        ("python-numbers:eval", {"format": "csv"}, "is not of the format 'csv' but 'embedded': leave format out"),
    ):
        with pytest.raises(InputError) as caught:
            read_records(source, **options)
        assert expected in str(caught.value)
