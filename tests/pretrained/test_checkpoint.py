"""Checkpoints: the same tensors however a folder keeps them, written whole or not at all, and nothing unsound let through."""

import fnmatch
import json
import os
import pickle
import runpy
import sys
import tracemalloc
import types
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from flaxllm.errors import InputError
from flaxllm.pretrained.checkpoint import INDEX, MAX_SHARD_BYTES, WEIGHTS, Checkpoint, open_checkpoint, write_checkpoint

FUZZ = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "fuzz_checkpoints.py"))
CONFIG = {"model_type": "bert", "name": "naïve", "nested": {"a": [1, 2.5, None, True]}}
TENSORS = {
    "embed": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
    "eighth": np.array([448.0, -1], ml_dtypes.float8_e4m3fn),
    "step": np.array(2**62),
    "none": np.zeros((0, 3), np.float16),
    "mask": np.array([True, False]),
}


def pending(tensors: dict[str, np.ndarray]) -> dict:
    return {name: (array.shape, array.dtype, lambda array=array: array) for name, array in tensors.items()}


def write(folder: Path, tensors: dict[str, np.ndarray] = TENSORS, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    write_checkpoint(folder, CONFIG, pending(tensors), max_shard_bytes)


def bits(tensors: dict[str, np.ndarray]) -> dict[str, tuple]:
    return {name: (array.shape, array.dtype.name, array.tobytes()) for name, array in tensors.items()}


def content(checkpoint: Checkpoint) -> dict[str, tuple]:
    return bits({name: tensor.read() for name, tensor in checkpoint.tensors.items()})


def complaint(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        content(open_checkpoint(path))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def foreign(folder: Path, *names: str) -> Path:
    """A folder as others write them: a config, and files of one tensor each, named as the file."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in names:
        save_file({name: np.ones(2)}, folder / name)
    return folder


def foreign_sharded(folder: Path, changes: dict | None = None) -> Path:
    """A sharded folder as others write them; `changes` are made to its weight map."""
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    foreign(folder, *shards)
    weight_map = {name: name for name in shards} | (changes or {})
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("max_shard_bytes", [MAX_SHARD_BYTES, 20, 1])
def test_what_is_written_is_read_back_to_the_byte(tmp_path, max_shard_bytes):
    write(tmp_path, max_shard_bytes=max_shard_bytes)
    checkpoint = open_checkpoint(tmp_path)
    assert content(checkpoint) == bits(TENSORS)
    assert checkpoint.config == CONFIG and checkpoint.path == tmp_path


@pytest.mark.parametrize("max_shard_bytes", [MAX_SHARD_BYTES, 20, 1])
def test_a_checkpoint_that_is_written_again_keeps_every_byte(tmp_path, max_shard_bytes):
    write(tmp_path / "a", max_shard_bytes=20)
    tensors = {name: (t.shape, t.dtype, t.read) for name, t in open_checkpoint(tmp_path / "a").tensors.items()}
    write_checkpoint(tmp_path / "b", CONFIG, tensors, max_shard_bytes)
    assert content(open_checkpoint(tmp_path / "b")) == bits(TENSORS)


def test_others_open_what_is_written(tmp_path):
    numbers = {name: array for name, array in TENSORS.items() if name != "eighth"}  # numpy has no such dtype for the library
    write(tmp_path, numbers)
    assert sorted(os.listdir(tmp_path)) == ["config.json", WEIGHTS]
    assert bits(load_file(tmp_path / WEIGHTS)) == bits(numbers)
    with safe_open(tmp_path / WEIGHTS, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize(
    ("sizes", "parts"), [((4, 6, 1, 2, 30, 2), ["ab", "cd", "e", "f"]), ((30, 4, 6, 9, 2), ["a", "bc", "d", "e"])]
)
def test_shards_are_filled_in_order_up_to_the_limit_and_listed_in_the_index(tmp_path, sizes, parts):
    write(tmp_path, {name: np.ones(size, np.uint8) for name, size in zip("abcdef", sizes)}, max_shard_bytes=10)
    files = [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    assert sorted(os.listdir(tmp_path)) == ["config.json", *files, INDEX]
    assert ["".join(sorted(load_file(tmp_path / file))) for file in files] == parts
    index = json.loads((tmp_path / INDEX).read_text())
    weight_map = {name: file for file, part in zip(files, parts) for name in part}
    assert index == {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}


ORDER = [  # what is read first where all that follow are there, too
    [WEIGHTS, INDEX, "other.safetensors", "pytorch_model.bin"],
    [INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "pytorch_model.bin"],
    ["other.safetensors", "a.gguf", "pytorch_model.bin", "pytorch_model.bin.index.json", "._other.safetensors"],
    ["a.gguf", "pytorch_model.bin", "._b.gguf"],
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5"],
    ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"],
    ["pytorch_model.bin", "a.safetensors", "b.safetensors"],
]


@pytest.mark.parametrize("names", ORDER, ids=lambda names: names[0])
def test_the_first_kind_of_weights_that_there_is_is_opened(tmp_path, monkeypatch, names):
    opened = []
    for module, function in {
        "checkpoint.read_safetensors": "safetensors",
        "torch_file.read_torch": "torch",
    }.items():
        monkeypatch.setattr(f"flaxllm.pretrained.{module}", lambda path, kind=function: opened.append(path.name) or {})
    monkeypatch.setattr("flaxllm.pretrained.checkpoint._read_index", lambda path: opened.append(path.name) or {})
    gguf = types.SimpleNamespace(open_gguf=lambda path: opened.append(path.name) or Checkpoint(path, {}, {}))
    monkeypatch.setitem(sys.modules, "flaxllm.pretrained.gguf_file", gguf)
    for name in ["config.json", *names]:
        (tmp_path / name).write_text("{}")
    open_checkpoint(tmp_path)
    assert opened == names[:1]


@pytest.mark.parametrize(("name", "fetched"), [(WEIGHTS, 1), (INDEX, 1), ("model-x.safetensors", 1), ("pytorch_model.bin", 2)])
def test_torch_weights_are_fetched_from_the_hub_only_where_there_are_no_others(tmp_path, monkeypatch, name, fetched):
    asked = []
    for kind in ("checkpoint._read_file", "checkpoint._read_index"):
        monkeypatch.setattr(f"flaxllm.pretrained.{kind}", lambda path: {})

    def resolve(path_or_id: str, patterns: tuple[str, ...]) -> Path:
        asked.append(patterns)
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            (tmp_path / name).touch()
        return tmp_path

    monkeypatch.setattr("flaxllm.pretrained.checkpoint.resolve", resolve)
    (tmp_path / "config.json").write_text("{}")
    open_checkpoint("org/name")
    assert len(asked) == fetched and all("config.json" in patterns for patterns in asked)


def test_a_file_is_opened_by_its_own_path(tmp_path):
    foreign(tmp_path, "a.safetensors", "b.safetensors")
    assert list(open_checkpoint(tmp_path / "b.safetensors").tensors) == ["b.safetensors"]
    assert open_checkpoint(str(tmp_path / "a.safetensors")).path == tmp_path
    foreign_sharded(tmp_path / "shards")
    assert len(open_checkpoint(tmp_path / "shards" / INDEX).tensors) == 2


def test_a_gguf_file_is_handed_on_without_a_config(tmp_path, monkeypatch):
    given = Checkpoint(tmp_path / "a.gguf", {"from": "gguf"}, {})
    monkeypatch.setitem(sys.modules, "flaxllm.pretrained.gguf_file", types.SimpleNamespace(open_gguf=lambda path: given))
    (tmp_path / "a.gguf").touch()
    assert open_checkpoint(tmp_path / "a.gguf") is given and open_checkpoint(tmp_path) is given


def test_a_tensor_that_no_index_lists_is_found_in_its_file(tmp_path):
    folder = foreign_sharded(tmp_path)
    save_file({"model-00002-of-00002.safetensors": np.ones(2), "more": np.ones(1)}, folder / "model-00002-of-00002.safetensors")
    assert "more" in open_checkpoint(folder).tensors


FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))

BAD_INDEXES = {
    "not JSON": (b"{", "is not a sound JSON object"),
    "a list": (b"[]", "holds []: expected a JSON object"),
    "no map": (b"{}", "has the weight_map None: expected the file of each tensor by its name"),
    "an empty map": (b'{"weight_map": {}}', "has the weight_map {}"),
    "a list as map": (b'{"weight_map": ["a"]}', "has the weight_map ['a']"),
    "a tensor twice": (b'{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}', "the key 'a' is there twice"),
    "no name": ({FIRST: 7}, f"has tensor '{FIRST}' in 7: expected a .safetensors or .bin file beside it"),
    "above": ({FIRST: f"../{FIRST}"}, f"in '../{FIRST}': expected a .safetensors or .bin file beside it"),
    "absolute": ({FIRST: f"/tmp/{FIRST}"}, f"in '/tmp/{FIRST}': expected"),
    "below": ({FIRST: f"a/{FIRST}"}, f"in 'a/{FIRST}': expected"),
    "the folder": ({FIRST: ".."}, "in '..': expected"),
    "nothing": ({FIRST: ""}, "in '': expected"),
    "itself": ({FIRST: INDEX}, f"in '{INDEX}': expected"),
    "a null byte": ({FIRST: "a\0.safetensors"}, r"in 'a\x00.safetensors': expected"),
    "two lines": ({FIRST: "a\nb.safetensors"}, r"in 'a\nb.safetensors': expected"),
    "half a pair": ({FIRST: "\ud800.safetensors"}, r"in '\ud800.safetensors': expected"),
    "a missing file": ({FIRST: "no.safetensors"}, "lacks no.safetensors, which model.safetensors.index.json names"),
    "a missing tensor": ({"new": FIRST}, f"{FIRST} lacks the tensor 'new', which {INDEX} has there"),
    "the other file": ({FIRST: SECOND}, f"{SECOND} lacks the tensor '{FIRST}', which {INDEX} has there"),
    "exchanged": ({FIRST: SECOND, SECOND: FIRST}, "lacks the tensor"),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path, case):
    change, message = BAD_INDEXES[case]
    foreign_sharded(tmp_path, change if isinstance(change, dict) else None)
    if isinstance(change, bytes):
        (tmp_path / INDEX).write_bytes(change)
    assert message in complaint(tmp_path) and str(tmp_path) in complaint(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    foreign_sharded(tmp_path)
    save_file({FIRST: np.ones(2), SECOND: np.ones(2)}, tmp_path / SECOND)
    assert complaint(tmp_path).startswith(f"tensor '{FIRST}' is in both {tmp_path / FIRST} and {tmp_path / SECOND}")


BAD_CONFIGS = {
    "{": "is not a sound JSON object",
    "[1]": "holds [1]: expected a JSON object",
    "[" * 10**5: "is not a sound JSON object",
    '{"a":' * 10**5: "is not a sound JSON object",
    '{"a": 1, "a": 2}': "the key 'a' is there twice",
    '{"a": 1' + "0" * 5000 + "}": "Exceeds the limit",
    "\udcff": "invalid start byte",
    "": "is not a sound JSON object",
}


@pytest.mark.parametrize("text", BAD_CONFIGS, ids=range(len(BAD_CONFIGS)))
def test_a_config_that_is_no_object_is_refused(tmp_path, text):
    foreign(tmp_path, WEIGHTS)
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    assert complaint(tmp_path).startswith(f"{tmp_path / 'config.json'} ") and BAD_CONFIGS[text] in complaint(tmp_path)


def test_a_folder_without_a_config_says_so(tmp_path):
    foreign(tmp_path, WEIGHTS)
    (tmp_path / "config.json").unlink()
    assert complaint(tmp_path).startswith(f"{tmp_path} has no config.json, which says what model the weights are of")


NO_WEIGHTS = {
    (): "holds no weights: expected one of model.safetensors, model.safetensors.index.json, a .gguf file, pytorch_model.bin",
    ("tf_model.h5",): "holds no weights",
    ("a.safetensors", "b.safetensors"): "holds ['a.safetensors', 'b.safetensors']: name the file to open",
    ("a.gguf", "a.safetensors", "b.safetensors"): "holds ['a.safetensors', 'b.safetensors']: name the file to open",
    ("a.gguf", "b.gguf"): "holds ['a.gguf', 'b.gguf']: name the file to open",
    (FIRST,): f"holds ['{FIRST}'] but no {INDEX}, which says what is in which: fetch it too",
    (FIRST, SECOND): f"but no {INDEX}",
}


@pytest.mark.parametrize("names", NO_WEIGHTS, ids=" ".join)
def test_a_folder_that_does_not_say_what_its_weights_are_is_refused(tmp_path, names):
    foreign(tmp_path, *names)
    assert complaint(tmp_path).startswith(f"{tmp_path} ") and NO_WEIGHTS[names] in complaint(tmp_path)


def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path):
    foreign(tmp_path, "other.safetensors")
    (tmp_path / WEIGHTS).symlink_to(tmp_path / "blob")
    assert complaint(tmp_path) == f"{tmp_path / WEIGHTS} cannot be read (No such file or directory): check the file"


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.h5").touch()
    assert complaint(tmp_path / "model.h5").startswith(f"{tmp_path / 'model.h5'} is no checkpoint: expected a folder, or a file")


def test_a_path_that_leads_nowhere_names_the_nearest(tmp_path):
    foreign(tmp_path / "bert-base", WEIGHTS)
    assert complaint(tmp_path / "bert-bas").endswith(f"did you mean {str(tmp_path / 'bert-base')!r}?")


class Evil:
    def __reduce__(self):
        return (os.mkdir, (os.environ["FLAXLLM_TEST_EVIL"],))


def evil_file(folder: Path, monkeypatch) -> Path:
    """A pickle that makes a folder when it is unpickled, as the weights of a checkpoint; the folder it would make."""
    made = folder / "made"
    monkeypatch.setenv("FLAXLLM_TEST_EVIL", str(made))
    foreign(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))
    return made


def test_torch_weights_ask_for_torch_where_it_is_not_installed_and_nothing_else_does(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    made = evil_file(tmp_path, monkeypatch)
    message = complaint(tmp_path)
    assert message.startswith(f"{tmp_path / 'pytorch_model.bin'} can be read by torch only, which is not installed")
    assert not made.exists()
    write(tmp_path)
    assert content(open_checkpoint(tmp_path)) == bits(TENSORS)


@pytest.mark.parity
def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    made = evil_file(tmp_path, monkeypatch)
    assert "is damaged or holds more than tensors" in complaint(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    assert "is damaged or holds more than tensors" in complaint(tmp_path)
    assert not made.exists()


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_is_read_to_the_byte(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    kinds = ["float32", "float16", "bfloat16", "float64", "int64", "uint8", "bool"]
    kinds += ["float8_e4m3fn", "float8_e5m2"] if zipped else []  # which are younger than the other form
    state = {kind: torch.tensor([[0.0, 1], [2, 3]]).to(getattr(torch, kind)).T for kind in kinds}
    state |= {"number": torch.tensor(3.5), "none": torch.zeros(0, 2), "parameter": torch.nn.Parameter(torch.ones(2))}
    state |= {"conjugate": torch.tensor([1 + 2j]).conj(), "negative": torch.tensor([1 + 2j]).conj().imag}
    foreign(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    tensors = open_checkpoint(tmp_path).tensors
    assert list(tensors) == list(state)
    for name, tensor in state.items():
        found = tensors[name].read()
        assert found.dtype.name == str(tensor.dtype).removeprefix("torch.") and found.shape == tuple(tensor.shape)
        expected = tensor.resolve_conj() if tensor.is_complex() else tensor.detach().double().resolve_neg()
        assert found.astype(expected.numpy().dtype).tolist() == expected.tolist() and found.flags.writeable


@pytest.mark.parity
def test_sharded_torch_weights_are_read_and_what_is_no_tensor_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    foreign(tmp_path)
    for name in "ab":
        torch.save({name: torch.ones(2)}, tmp_path / f"pytorch_model-{name}.bin")
    index = {"weight_map": {name: f"pytorch_model-{name}.bin" for name in "ab"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert content(open_checkpoint(tmp_path)) == bits({name: np.ones(2, np.float32) for name in "ab"})
    for state, message in (
        ({"model": {"a": torch.ones(2)}}, "holds a dict under 'model': expected tensors by name"),
        ({"a": torch.ones(2, device="meta")}, "tensor 'a' is without values, on torch's device meta: expected a dense one"),
        (torch.ones(2), "holds a Tensor: expected tensors by name"),
        ({"a": torch.ones(2).to_sparse()}, "tensor 'a' is torch.sparse_coo of float32: expected a dense one"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "tensor 'a' is torch.strided of complex128"),
    ):
        torch.save(state, tmp_path / "pytorch_model.bin")
        assert message in complaint(tmp_path)


OLD = {"old": np.zeros(3), "older": np.ones(3)}


class Stopped(Exception):
    """Stands for a process that is killed: from the chosen moment on, nothing in the folder changes any more."""


def stop_after(monkeypatch, count: int) -> None:
    left = [count]

    def counted(method):
        def call(self, *args, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Stopped
            return method(self, *args, **options)

        return call

    for name in ("replace", "unlink", "write_text"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))


@pytest.mark.parametrize("sharded", [(False, False), (False, True), (True, False), (True, True)])
def test_a_write_that_is_stopped_leaves_the_old_checkpoint_or_the_new_or_none(tmp_path, monkeypatch, sharded):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # this writes many checkpoints
    was_sharded, is_sharded = (24 if which else MAX_SHARD_BYTES for which in sharded)
    write(tmp_path / "fresh", max_shard_bytes=is_sharded)
    seen = set()
    for count in range(30):
        folder = tmp_path / f"{count}"
        write(folder, OLD, was_sharded)
        (folder / "config.json").write_text('{"model_type": "old"}')
        with monkeypatch.context() as patches:
            stop_after(patches, count)
            try:
                write(folder, max_shard_bytes=is_sharded)
                stopped = False
            except Stopped:
                stopped = True
        try:
            found = open_checkpoint(folder)
            seen.add(found.config["model_type"])
            assert content(found) == bits(OLD if found.config["model_type"] == "old" else TENSORS)
        except InputError as error:
            assert "holds no weights" in str(error) or "but no model.safetensors.index.json" in str(error)
        write(folder, max_shard_bytes=is_sharded)  # and the next one clears up
        assert sorted(os.listdir(folder)) == sorted(os.listdir(tmp_path / "fresh"))
    assert seen == {"old", "bert"} and not stopped


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    write(tmp_path, OLD)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def fails() -> np.ndarray:
        raise InputError("the source is damaged")

    for limit in (MAX_SHARD_BYTES, 1):
        with pytest.raises(InputError, match="the source is damaged"):
            write_checkpoint(tmp_path, CONFIG, pending(TENSORS) | {"last": ((2,), np.dtype(np.float32), fails)}, limit)
        assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_checkpoint_replaces_the_shards_of_another_and_nothing_else(tmp_path):
    write(tmp_path, OLD, 24)
    others = ("tokenizer.json", "notes.safetensors.md", "model-of-mine.safetensors")
    for name in others:
        (tmp_path / name).write_text("kept")
    (tmp_path / f"{FIRST}.partial").write_text("left over by a run that was killed")
    write(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(["config.json", WEIGHTS, *others])
    assert content(open_checkpoint(tmp_path)) == bits(TENSORS)


@pytest.mark.parametrize("limits", [(MAX_SHARD_BYTES, 1), (1, MAX_SHARD_BYTES), (20, 1), (MAX_SHARD_BYTES, MAX_SHARD_BYTES)])
def test_a_checkpoint_may_be_written_over_the_one_it_is_read_from(tmp_path, limits):
    write(tmp_path, max_shard_bytes=limits[0])
    tensors = {name: (t.shape, t.dtype, t.read) for name, t in open_checkpoint(tmp_path).tensors.items()}
    write_checkpoint(tmp_path, CONFIG, tensors, limits[1])
    assert content(open_checkpoint(tmp_path)) == bits(TENSORS)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file cannot be written \(File exists\): check the folder and its disk"):
        write(tmp_path / "file")


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, monkeypatch):
    write(tmp_path, OLD)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        write(tmp_path)
    assert content(open_checkpoint(tmp_path)) == bits(OLD) and len(os.listdir(tmp_path)) == 2


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Iterator[Path]:
    tracemalloc.start()  # memory is among what is looked at
    yield tmp_path_factory.mktemp("mutated")
    tracemalloc.stop()


@settings(max_examples=300, deadline=20_000, derandomize=True)
@given(st.sampled_from(sorted(FUZZ["MUTATIONS"])), st.randoms(use_true_random=True))
def test_a_mutated_checkpoint_is_refused_in_a_sentence_or_read_as_its_library_reads_it(scratch, mutation, rng):
    assert FUZZ["outcome_of"](FUZZ["mutate"](mutation, rng), scratch) in (FUZZ["REFUSED"], FUZZ["LOADED"])
