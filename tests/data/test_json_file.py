"""JSON objects: read as json reads them, or refused in one sentence that names the file."""

import json
import math

import pytest

from flaxllm.data.json_file import brief, parse_object, read_object
from flaxllm.errors import InputError

OBJECT = {"a": [1, -2.5, None, True, "naïve 語 \n"], "b": {"c": {}, "d": {"c": 1}}, "": "x" * 1000}

BAD = {
    b"": "Expecting value",
    b'{"a": 1': "Expecting ',' delimiter",
    b'{"a": \xff}': "invalid start byte",
    '{"a": 1}'.encode("utf-16"): "invalid start byte",
    b"[" * 10**5: "recursion",
    b'{"a":' * 10**5: "recursion",
    b'{"a": 1' + b"0" * 5000 + b"}": "Exceeds the limit",
    b'{"a": 1, "b": 2, "a": 1}': "the key 'a' is there twice",
    b'{"a": {"b": 1, "b": 2}}': "the key 'b' is there twice",
    b"[1]": "holds [1]: expected a JSON object",
    b'"' + b"x" * 10**5 + b'"': "xxx...xxx",
    b"null": "holds None: expected a JSON object",
}


def test_an_object_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.json"
    for escape in (True, False):
        path.write_text(json.dumps(OBJECT, ensure_ascii=escape), encoding="utf-8")
        assert read_object(path) == OBJECT
    assert math.isinf(parse_object(b'{"a": Infinity}', "it")["a"])  # as Python writes what it has


@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
def test_what_is_no_object_is_refused_in_one_sentence(tmp_path, data):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_object(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ") and BAD[data] in message
    assert "\n" not in message and len(message) < 500


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no\.json cannot be read \(No such file or directory\)"):
        read_object(tmp_path / "no.json")


@pytest.mark.parametrize("value", ["a\nb\u2028c\ud800", "x" * 10**6, list(range(10**5)), 10**4200, {"a": [[[[[[[1]]]]]]]}], ids=type)
def test_a_value_is_shown_on_one_short_line(value):
    shown = brief(value)
    assert len(shown.splitlines()) == 1 and len(shown) <= 200 and shown.isprintable()
