"""Checkpoints: what comes back is bit for bit what was saved, or it does not come back."""

import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxllm.errors import InputError
from flaxllm.training.checkpoint import Checkpoints, digest
from flaxllm.training.state import TrainState


def make_state(step: int) -> TrainState:
    """Random numbers, which no compression hides a flipped bit in."""
    normal = np.random.default_rng(step).standard_normal
    params = {"table": jnp.asarray(normal((64, 32)), jnp.float32), "half": jnp.asarray(normal(100), jnp.bfloat16)}
    moments = (jax.tree.map(lambda x: x * 2, params), jnp.int32(step))
    return TrainState(jnp.int32(step), params, moments, jax.random.PRNGKey(step))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def save(directory: Path, *steps: int) -> None:
    with Checkpoints(directory, keep=3) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"step": step, "text": "é\n"})


def restore(directory: Path, wanted=None, accept=lambda metadata: None, keep: int | None = 3) -> tuple:
    """What `restore` gives, and what it reported."""
    reports = []
    with Checkpoints(directory, keep) as checkpoints:
        found = checkpoints.restore(abstract(make_state(0)) if wanted is None else wanted, accept, reports.append)
    return found, reports


def assert_same_bits(left, right) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(directory, 3, 7)
    return directory


@pytest.fixture
def directory(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def array_files(directory: Path, step: int) -> list[Path]:
    """Where orbax keeps the values: all files under a folder called "d"."""
    return sorted(p for p in (directory / str(step) / "state").rglob("*") if p.is_file() and p.parent.name == "d")


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_the_last_checkpoint_comes_back_bit_for_bit(directory):
    (step, state, metadata), reports = restore(directory)
    assert (step, metadata, reports) == (7, {"step": 7, "text": "é\n"}, [])
    assert_same_bits(state, make_state(7))


def test_an_empty_directory_has_none(tmp_path):
    assert restore(tmp_path / "new") == (None, [])


def test_only_the_last_are_kept(tmp_path):
    save(tmp_path / "c", 1, 2, 3, 4, 5)
    assert sorted(int(p.name) for p in (tmp_path / "c").iterdir() if p.name.isdigit()) == [3, 4, 5]


def test_what_is_saved_is_the_state_of_the_call_even_if_it_is_donated_at_once(tmp_path):
    state = TrainState(jnp.int32(0), {"big": jnp.zeros((2000, 1000))}, (), jax.random.PRNGKey(0))
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    with Checkpoints(tmp_path / "c", keep=3) as checkpoints:
        for step in range(3):
            checkpoints.save(step, state, {})
            for _ in range(10):
                state = advance(state)
    for step in (2, 1, 0):
        (found, restored, _), _ = restore(tmp_path / "c", abstract(state))
        assert found == step
        np.testing.assert_array_equal(restored.params["big"], 10.0 * step)
        shutil.rmtree(tmp_path / "c" / str(step))


@pytest.mark.parametrize("part", range(12))
def test_one_flipped_bit_in_the_arrays_is_found_reported_and_passed_over(directory, part):
    files = array_files(directory, 7)
    sizes = np.cumsum([8 * path.stat().st_size for path in files])
    bit = int(np.random.default_rng(part).integers(sizes[-1]))
    index = int(np.searchsorted(sizes, bit, side="right"))
    flip(files[index], bit - int(sizes[index] - 8 * files[index].stat().st_size))
    (step, state, _), reports = restore(directory)
    if step == 7:  # bytes that hold no value, such as padding
        assert_same_bits(state, make_state(7))
        pytest.skip("the bit was none of the arrays'")
    assert step == 3
    assert_same_bits(state, make_state(3))
    assert len(reports) == 1 and "7 is damaged" in reports[0] and "put aside as damaged-7" in reports[0]
    assert (directory / "damaged-7").is_dir() and not (directory / "7").exists()


def test_a_flip_that_the_file_format_lets_pass_is_found_by_the_digest(tmp_path, monkeypatch):
    save(tmp_path / "c", 3, 7)
    wrong = make_state(7)
    bits = np.asarray(wrong.params["table"]).copy()
    bits.view(np.uint32)[5, 5] ^= 1 << 3
    wrong = wrong.replace(params=wrong.params | {"table": jnp.asarray(bits)})
    directory = tmp_path / "c"
    with Checkpoints(tmp_path / "other", keep=1) as other:
        other.save(7, wrong, {})
    shutil.rmtree(directory / "7" / "state")
    shutil.copytree(tmp_path / "other" / "7" / "state", directory / "7" / "state")
    (step, state, _), reports = restore(directory)
    assert step == 3 and "params/table does not have the digest" in reports[0]


@pytest.mark.parametrize("how", ["truncated", "emptied", "file lost", "record flipped", "record lost", "state lost"])
def test_a_damaged_checkpoint_is_passed_over(directory, how):
    place = directory / "7"
    largest = max(array_files(directory, 7), key=lambda path: path.stat().st_size)
    record = place / "record" / "metadata"
    damage = {
        "truncated": lambda: os.truncate(largest, largest.stat().st_size // 2),
        "emptied": lambda: os.truncate(largest, 0),
        "file lost": largest.unlink,
        "record flipped": lambda: record.write_text(record.read_text().replace('"step": 7', '"step": 6')),
        "record lost": lambda: shutil.rmtree(place / "record"),
        "state lost": lambda: shutil.rmtree(place / "state"),
    }
    before = record.read_text()
    damage[how]()
    assert how != "record flipped" or record.read_text() != before
    (step, state, _), reports = restore(directory)
    assert step == 3 and len(reports) == 1 and "damaged" in reports[0]
    assert_same_bits(state, make_state(3))


def test_where_all_are_damaged_there_is_none(directory):
    for step in (3, 7):
        os.truncate(max(array_files(directory, step), key=lambda path: path.stat().st_size), 10)
    found, reports = restore(directory)
    assert found is None and len(reports) == 2


def test_a_step_whose_damaged_checkpoint_was_put_aside_can_be_saved_again(directory):
    for _ in range(2):
        os.truncate(max(array_files(directory, 7), key=lambda path: path.stat().st_size), 10)
        assert restore(directory)[0][0] == 3
        save(directory, 7)
    assert restore(directory)[0][0] == 7
    assert {"damaged-7", "damaged-7.1"} <= {path.name for path in directory.iterdir()}


def test_what_a_kill_left_unfinished_is_no_checkpoint(directory):
    shutil.copytree(directory / "7", directory / "9.orbax-checkpoint-tmp-1")
    (step, *_), reports = restore(directory)
    assert (step, reports) == (7, [])


def test_somebody_elses_directory_is_not_changed(directory):
    os.truncate(max(array_files(directory, 7), key=lambda path: path.stat().st_size), 10)
    before = sorted(directory.rglob("*"))
    (step, *_), reports = restore(directory, keep=None)
    assert step == 3 and len(reports) == 1
    assert sorted(directory.rglob("*")) == before


def test_a_part_of_the_state_can_be_restored_alone(directory):
    (_, parts, _), _ = restore(directory, {"params": abstract(make_state(0).params)})
    assert list(parts) == ["params"]
    assert_same_bits(parts["params"], make_state(7).params)


def test_a_state_with_other_tensors_is_refused_and_nothing_is_put_aside(directory):
    wanted = abstract(make_state(0))
    wider = wanted.replace(params=wanted.params | {"table": jax.ShapeDtypeStruct((64, 33), jnp.float32)})
    with pytest.raises(InputError, match=r"params/table: float32\[64, 32\] there, float32\[64, 33\] here"):
        restore(directory, wider)
    more = wanted.replace(params=wanted.params | {"new": jax.ShapeDtypeStruct((), jnp.float32)})
    with pytest.raises(InputError, match=r"params/new: nothing there"):
        restore(directory, more)
    assert (directory / "7").is_dir()


def test_a_refusal_of_the_metadata_reaches_the_caller(directory):
    def refuse(metadata):
        raise InputError(f"not {metadata['step']}")

    with pytest.raises(InputError, match="not 7"):
        restore(directory, accept=refuse)


def test_arrays_come_back_with_the_sharding_that_is_asked_for(directory):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    split = NamedSharding(mesh, PartitionSpec("b", "a"))
    whole = NamedSharding(mesh, PartitionSpec())
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split if x.ndim == 2 else whole), make_state(0)
    )
    (_, state, _), _ = restore(directory, wanted)
    assert state.params["table"].sharding.is_equivalent_to(split, 2)
    assert_same_bits(state, make_state(7))


def test_the_digest_does_not_depend_on_how_an_array_is_split():
    x = jax.random.normal(jax.random.PRNGKey(0), (16, 8, 4))
    mesh = Mesh(np.array(jax.devices()), ("a",))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "a")))
    assert int(jax.jit(digest)(split)) == int(digest(x))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(["float32", "bfloat16", "int32", "uint8", "bool"]), st.integers(0, 2**30))
def test_the_digest_sees_every_flipped_bit(dtype, where):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 7)), dtype)
    data = bytearray(np.asarray(x).tobytes())
    bit = where % (8 * len(data))
    bit = bit - bit % 8 if dtype == "bool" else bit
    data[bit // 8] ^= 1 << bit % 8
    flipped = jnp.asarray(np.frombuffer(bytes(data), x.dtype).reshape(x.shape))
    assert int(digest(flipped)) != int(digest(x))


def test_the_digest_sees_elements_that_change_places():
    x = jnp.arange(12.0).reshape(3, 4)
    assert len({int(digest(y)) for y in (x, x[::-1], x[:, ::-1], x.at[0, 0].set(5.0).at[1, 1].set(0.0))}) == 4
