"""safetensors: every dtype to the byte against the format's own library, and one sentence for each way a header can lie."""

import json
import os
import tracemalloc
from io import FileIO
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from flaxllm.errors import InputError
from flaxllm.pretrained import byte_ranges
from flaxllm.pretrained.safetensors_file import DTYPES, read_safetensors, write_safetensors


def noise(dtype: np.dtype, shape: tuple[int, ...] = (3, 5)) -> np.ndarray:
    """An array of every kind of bits that the dtype allows, NaNs of many kinds among them."""
    size = int(np.prod(shape)) * dtype.itemsize
    data = np.random.default_rng(0).integers(0, 2 if dtype == np.bool_ else 256, size, dtype=np.uint8)
    return data.view(dtype).reshape(shape)


def pending(tensors: dict[str, np.ndarray]) -> dict:
    return {name: (array.shape, array.dtype, lambda array=array: array) for name, array in tensors.items()}


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_safetensors(path, pending(tensors), {"format": "pt"})


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def by_the_library(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    found = safetensors.deserialize(path.read_bytes())
    return {name: (fields["dtype"], fields["shape"], bytes(fields["data"])) for name, fields in found}


def complaint(path: Path) -> str:
    """What is said of a file that cannot be opened or read, which must be one sentence that names it."""
    with pytest.raises(InputError) as caught:
        for tensor in read_safetensors(path).values():
            tensor.read()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600 and str(path) in message
    return message


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("code", DTYPES)
def test_the_library_reads_each_dtype_that_is_written(path, code):
    arrays = {"matrix": noise(DTYPES[code]), "number": noise(DTYPES[code], ()), "none": noise(DTYPES[code], (2, 0, 3))}
    write(path, arrays)
    expected = {name: (code, list(array.shape), array.tobytes()) for name, array in arrays.items()}
    assert by_the_library(path) == expected


@pytest.mark.parametrize("code", DTYPES)
def test_each_dtype_that_the_library_writes_is_read(path, code):
    arrays = {"matrix": noise(DTYPES[code]), "number": noise(DTYPES[code], ()), "none": noise(DTYPES[code], (2, 0, 3))}
    save_file(arrays, path)
    tensors = read_safetensors(path)
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        found = tensors[name].read()
        assert tensors[name].shape == found.shape == array.shape
        assert tensors[name].dtype == found.dtype == array.dtype
        assert found.tobytes() == array.tobytes() and tensors[name].file == path


def test_the_codes_are_those_of_the_format():
    """By name as the library's own table has them, so that a pair that is exchanged both ways is found."""
    names = {"BOOL": "bool", "U8": "uint8", "F16": "float16", "C64": "complex64", "F8_E8M0": "float8_e8m0fnu"}
    names |= {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz"}
    assert names.items() <= {code: dtype.name for code, dtype in DTYPES.items()}.items()


def test_numbers_keep_their_values(path):
    wide = {"a": np.array([-(2**63), 2**63 - 1]), "b": np.array([2**64 - 1], np.uint64), "c": np.array([1e-300])}
    halves = {"d": np.array([1.5, -2], ml_dtypes.bfloat16), "e": np.array([448.0], ml_dtypes.float8_e4m3fn)}
    save_file(wide | halves, path)
    found = {name: tensor.read().tolist() for name, tensor in read_safetensors(path).items()}
    assert found == {"a": [-(2**63), 2**63 - 1], "b": [2**64 - 1], "c": [1e-300], "d": [1.5, -2.0], "e": [448.0]}


def test_tensors_come_in_the_order_of_the_file(path):
    header = {name: {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]} for name, at in (("a", 2), ("b", 0), ("c", 1))}
    tensors = read_safetensors(write_raw(path, header, b"\1\2\3"))
    assert [(name, tensor.read().tolist()) for name, tensor in tensors.items()] == [("b", [1]), ("c", [2]), ("a", [3])]


def test_each_reading_gives_an_array_of_the_callers_own(path):
    write(path, {"a": np.arange(4.0)})
    tensor = read_safetensors(path)["a"]
    first = tensor.read()
    first += 1
    assert first.tolist() == [1, 2, 3, 4] and tensor.read().tolist() == [0, 1, 2, 3]


def test_a_system_that_reads_little_at_a_time_is_asked_again(path, monkeypatch):
    class Slow(FileIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:7])

    array = noise(np.dtype(np.float64))
    write(path, {"a": array})
    monkeypatch.setattr(byte_ranges, "open", lambda path, mode, buffering: Slow(path, mode), raising=False)
    assert read_safetensors(path)["a"].read().tobytes() == array.tobytes()


def test_wide_dtypes_come_first_so_that_every_tensor_is_aligned(path):
    dtypes = {"a": "U8", "b": "F64", "c": "BF16", "d": "F32", "e": "BOOL", "f": "F64", "g": "F16"}
    write(path, {name: noise(DTYPES[code], (3,)) for name, code in dtypes.items()})
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert list(header) == ["b", "f", "d", "c", "g", "a", "e"]
    assert all((start + fields["data_offsets"][0]) % DTYPES[fields["dtype"]].itemsize == 0 for fields in header.values())


def test_what_lies_otherwise_in_memory_is_written_in_row_order(path):
    array = np.arange(12.0).reshape(3, 4)
    views = {"a": array.T, "b": array[::2, 1:3], "c": array[:, 1], "d": array[0, ::-1]}
    write(path, views)
    assert by_the_library(path) == {name: ("F64", list(view.shape), view.tobytes()) for name, view in views.items()}


def test_one_tensor_at_a_time_is_in_memory_while_writing(path):
    size = 10**6
    tensors = {f"{i}": ((size,), np.dtype(np.uint8), lambda: np.ones(size, np.uint8)) for i in range(5)}
    tracemalloc.start()
    write_safetensors(path, tensors, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size < peak < 1.5 * size


@pytest.mark.parametrize(
    ("array", "shape", "dtype"),
    [(np.zeros(3), (4,), "float64"), (np.zeros((2, 2)), (4,), "float64"), (np.zeros(4, np.float32), (4,), "int32")],
)
def test_an_array_that_is_not_what_was_announced_is_not_written(path, array, shape, dtype):
    with pytest.raises(InputError, match=r"tensor 'a' came as float\d\d\[.*\]: expected"):
        write_safetensors(path, {"a": (shape, np.dtype(dtype), lambda: array)}, {})


@pytest.mark.parametrize(("name", "dtype"), [("a", "complex128"), ("a", "longdouble"), ("__metadata__", "float32")])
def test_what_the_format_has_no_place_for_is_refused(path, name, dtype):
    with pytest.raises(InputError, match=f"cannot hold a tensor '{name}' of .*: expected one of BOOL, U8"):
        write_safetensors(path, pending({name: np.zeros(2, dtype)}), {})


def f32(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LYING_HEADERS = {
    "no JSON": (b"{", "the header of "),
    "no UTF-8": (b'{"\xff": 1}', "invalid start byte"),
    "no object": ([1, 2], "holds [1, 2]: expected a JSON object"),
    "a nest": (b"[" * 10**5, "is not a sound JSON object ("),
    "a nest of objects": (b'{"a":' * 10**5, "is not a sound JSON object ("),
    "a number without end": (b'{"a": 1' + b"0" * 5000 + b"}", "Exceeds the limit"),
    "a tensor twice": (b'{"a": 1, "a": 1}', "the key 'a' is there twice"),
    "a field twice": (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "the key 'dtype' is there twice"),
    "half a pair": ({"a\ud800": f32()}, "tensor 'a\\ud800' has half of a surrogate pair"),
    "metadata": ({"__metadata__": {"a": 1}, "a": f32()}, "has the metadata {'a': 1}: expected strings by name"),
    "metadata of text": ({"__metadata__": "pt", "a": f32()}, "has the metadata 'pt': expected strings by name"),
    "no fields": ({"a": 7}, "tensor 'a' is described by 7: expected its dtype, shape and data_offsets"),
    "a field less": ({"a": {"dtype": "F32", "shape": [2]}}, "expected its dtype, shape and data_offsets"),
    "unknown dtype": ({"a": f32(dtype="f32")}, "tensor 'a' has the dtype 'f32': expected one of BOOL, U8, I8,"),
    "dtype of half a byte": ({"a": f32([16], dtype="F4")}, "tensor 'a' has the dtype 'F4': expected one of"),
    "dtype of three quarters": ({"a": f32([32], dtype="F6_E2M3")}, "has the dtype 'F6_E2M3': expected one of"),
    "dtype as a list": ({"a": f32(dtype=["F32"])}, "tensor 'a' has the dtype ['F32']: expected one of"),
    "shape of text": ({"a": f32("2")}, "tensor 'a' has the shape '2': expected at most 64 whole numbers"),
    "shape below zero": ({"a": f32([-1, -2])}, "tensor 'a' has the shape [-1, -2]"),
    "shape of truths": ({"a": f32([True, 2])}, "tensor 'a' has the shape [True, 2]"),
    "shape of fractions": ({"a": f32([2.0])}, "tensor 'a' has the shape [2.0]"),
    "shape of 65 axes": ({"a": f32([1] * 64 + [2])}, "expected at most 64 whole numbers that memory could hold"),
    "shape beyond numbers": ({"a": f32([0, 2**63], [0, 0])}, "that memory could hold"),
    "empty shape beyond memory": ({"a": f32([0, 2**61], [0, 0])}, "that memory could hold"),
    "shape beyond memory": ({"a": f32([2**40, 2**40])}, "that memory could hold"),
    "shape beyond the file": ({"a": f32([2**40])}, f"takes {2**42} bytes, but its data_offsets [0, 8] hold 8"),
    "shape too small": ({"a": f32([1])}, "tensor 'a' is F32[1], which takes 4 bytes, but its data_offsets [0, 8] hold 8"),
    "offsets of text": ({"a": f32(offsets="08")}, "tensor 'a' has the data_offsets '08': expected its first byte"),
    "one offset": ({"a": f32(offsets=[8])}, "tensor 'a' has the data_offsets [8]"),
    "three offsets": ({"a": f32(offsets=[0, 8, 8])}, "tensor 'a' has the data_offsets [0, 8, 8]"),
    "offsets below zero": ({"a": f32(offsets=[-8, 0])}, "tensor 'a' has the data_offsets [-8, 0]"),
    "offsets in turn": ({"a": f32(offsets=[8, 0])}, "tensor 'a' has the data_offsets [8, 0]"),
    "offsets beyond numbers": ({"a": f32(offsets=[10**4200, 10**4200 + 8])}, "tensor 'a' has the data_offsets [1000"),
    "offsets of fractions": ({"a": f32(offsets=[0, 8.0])}, "tensor 'a' has the data_offsets [0, 8.0]"),
    "out of the file": ({"a": f32(offsets=[8, 16])}, "tensor 'a' ends at byte 16 after the header, but 8 bytes follow it"),
    "file cut short": ({"a": f32([4], [0, 16])}, "but 8 bytes follow it: the file is cut short"),
    "file goes on": ({"a": f32([1], [0, 4])}, "goes on for 4 bytes after tensor 'a'"),
    "nothing but data": ({}, "goes on for 8 bytes after the header"),
    "hole at the start": ({"a": f32([1], [4, 8])}, "tensor 'a' leaves a hole after the header, as it begins at byte 4"),
    "hole": ({"a": f32([1], [0, 4]), "b": f32([2], [6, 8], "U8")}, "tensor 'b' leaves a hole after tensor 'a'"),
    "overlap": ({"a": f32(), "b": f32([1], [4, 8])}, "tensor 'b' overlaps tensor 'a', as it begins at byte 4 and not at 8"),
    "the same bytes": ({"a": f32(), "b": f32()}, "tensor 'b' overlaps tensor 'a'"),
    "no truths": ({"a": f32([8], [0, 8], "BOOL")}, "tensor 'a' is of booleans, but has bytes other than 0 and 1"),
    "a long name of two lines": ({"a\n" * 10**4: 7}, "tensor 'a\\na"),
}


@pytest.mark.parametrize("lie", LYING_HEADERS)
def test_a_lying_header_is_refused_with_what_is_wrong(path, lie):
    header, message = LYING_HEADERS[lie]
    assert message in complaint(write_raw(path, header, b"\2" * 8))


@pytest.mark.parametrize("size", range(8))
def test_a_file_without_room_for_a_header_is_refused(path, size):
    path.write_bytes(b"\0" * size)
    assert f"has {size} bytes, too few for safetensors" in complaint(path)


@pytest.mark.parametrize("length", [3, 100, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(path, length):
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    assert f"says that its header has {length} bytes, but has 10 in all: it is cut short" in complaint(path)


def test_a_header_longer_than_the_format_allows_is_not_even_read(path):
    with open(path, "wb") as file:
        file.write((10**8 + 1).to_bytes(8, "little"))
        file.truncate(10**8 + 100)  # takes no room on the disk
    assert "has a header of 100000001 bytes: the format allows 100000000 at most" in complaint(path)


def test_a_file_that_git_lfs_left_out_is_known(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "is a Git LFS pointer and not the weights: fetch them with `git lfs pull`" in complaint(path)


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(path):
    assert complaint(path) == f"{path} cannot be read (No such file or directory): check the file"
    path.mkdir()
    assert complaint(path) == f"{path} cannot be read (Is a directory): check the file"


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"\0")


CHANGES = {
    "longer": (append, "was changed after it was opened, before its tensor 'a' was read"),
    "shorter": (lambda path: os.truncate(path, path.stat().st_size - 1), "was changed after it was opened"),
    "others of the same size": (lambda path: (write(path, {"a": np.ones(4)}), os.utime(path, (0, 0))), "was changed after"),
    "gone": (os.unlink, "cannot be read (No such file or directory)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_it_was_opened_is_refused(path, change):
    write(path, {"a": np.zeros(4)})
    tensor = read_safetensors(path)["a"]
    CHANGES[change][0](path)
    with pytest.raises(InputError) as caught:
        tensor.read()
    assert CHANGES[change][1] in str(caught.value)


def test_a_file_that_ends_while_it_is_read_is_refused(path, monkeypatch):
    write(path, {"a": np.zeros(4)})
    tensor = read_safetensors(path)["a"]
    size, stamp = path.stat().st_size, (path.stat().st_size, path.stat().st_mtime_ns)
    monkeypatch.setattr(byte_ranges, "stamp", lambda file: stamp)
    os.truncate(path, size - 9)
    with pytest.raises(InputError, match="ended while it was read"):
        tensor.read()
