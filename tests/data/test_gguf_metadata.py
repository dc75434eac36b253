"""The header of GGUF files, against the `gguf` package's writer and reader, and damaged in every way."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxllm.data.gguf_metadata import read_header, read_metadata
from flaxllm.errors import InputError

FILE = Path(__file__).parent / "fixtures" / "tokenizers" / "spm.gguf"
VALUES = {
    "uint8": 200, "int8": -100, "uint16": 60000, "int16": -30000, "uint32": 2**32 - 1, "int32": -(2**31), "uint64": 2**64 - 1,
    "int64": -(2**63), "float32": 0.5, "float64": 1e300, "bool": True, "string": "naïve 語\n", "array": ["a", "", "語"],
}  # fmt: skip


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_metadata(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_of_every_kind_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind, value in VALUES.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_array("x.numbers", [1, 2, 3])
    writer.add_array("x.floats", [0.5, -2.0])
    writer.add_tensor("w", np.zeros((3, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = read_metadata(path)
    expected = {f"x.{kind}": value for kind, value in VALUES.items()}
    expected |= {"general.architecture": "llama", "x.numbers": [1, 2, 3], "x.floats": [0.5, -2.0]}
    assert {key: metadata[key] for key in expected} == expected
    assert type(metadata["x.bool"]) is bool


def test_a_file_is_read_as_by_the_gguf_package():
    fields = gguf.GGUFReader(FILE).fields.values()
    assert read_metadata(FILE) == {field.name: field.contents() for field in fields if not field.name.startswith("GGUF.")}


def test_what_is_no_gguf_file_is_refused(tmp_path):
    path = tmp_path / "x.gguf"
    assert refused(path) == f"{path} cannot be read (No such file or directory): check the file"
    path.write_bytes(b"")
    assert refused(path).startswith(f"{path} is damaged or cut short")
    path.write_bytes(b"PK\3\4" + b"\0" * 100)
    assert refused(path).startswith(f"{path} is no GGUF file: it starts with b'PK")
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + b"\0" * 100)
    assert refused(path).startswith(f"{path} is GGUF of version 1: expected 2 or 3")


@pytest.mark.parametrize("header", [
    struct.pack("<QQ", 0, 2**63),
    struct.pack("<QQQ", 0, 1, 2**62),
    struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 4, 2**60),
    struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 8, 2**60),
    struct.pack("<QQQ1sI", 0, 1, 1, b"k", 77),
    struct.pack("<QQQ1sIQ", 0, 1, 1, b"k", 8, 4) + b"abc",
    struct.pack("<QQQ1sI", 0, 1, 1, b"\xff", 0) + b"\0",
    struct.pack("<QQQ1s", 0, 1, 1, b"k") + struct.pack("<IIQ", 9, 9, 1) * 1000,
    struct.pack("<QQQ1sI", 0, 1, 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 100_000,
])  # fmt: skip
def test_lengths_that_lie_are_refused_before_memory_is_set_aside(tmp_path, header):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + header)
    assert refused(path).startswith(f"{path} is damaged or cut short")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cut=st.floats(0, 1), where=st.floats(0, 1), byte=st.integers(0, 255))
def test_a_mutated_file_is_read_or_refused(tmp_path_factory, cut, where, byte):
    content = bytearray(FILE.read_bytes())
    content[int(where * 2000)] = byte
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content[: int(cut * len(content))])
    try:
        read_header(path)
    except InputError as error:
        assert str(error).startswith(str(path))
