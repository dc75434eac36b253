"""The pipelines: whole examples in rows, the same batches from any number of processes, and exact resumption."""

import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from flaxllm.data import Documents, Pieces, Stream, eval_batches, train_stream
from flaxllm.errors import InputError

MAX_LEN, BATCH = 12, 8
# Not fewer, because grain's shuffle takes the longer the fewer there are.
RAGGED = [np.arange(100 * i, 100 * i + 2 + i * 7 % MAX_LEN, dtype=np.int32) for i in range(1, 110)]
FULL = [np.arange(100 * i, 100 * i + MAX_LEN + 1, dtype=np.int32) for i in range(1, 65)]
PACKED = pytest.mark.parametrize("pack", [True, False], ids=["packed", "one a row"])


def next_token(piece: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What the language models learn from, and a random number for each token."""
    length = len(piece) - 1
    return {
        "tokens": piece[:-1],
        "targets": piece[1:],
        "weights": np.ones(length, np.float32),
        "noise": rng.integers(1, 2**31, length, dtype=np.int32),
    }


def empty_row(example=next_token, max_len=MAX_LEN) -> dict[str, np.ndarray]:
    made = example(RAGGED[0], np.random.default_rng(0))
    return {key: np.zeros(max_len, np.asarray(value).dtype) for key, value in made.items()}


@pytest.fixture
def stream() -> Iterator:
    """Makes streams and closes them."""
    made = []

    def make(source=RAGGED, example=next_token, *, batch_size=BATCH, max_len=MAX_LEN, seed=0, shards=2, **options):
        rows = options.pop("rows", (0, batch_size))
        made.append(train_stream(source, example, empty_row(example, max_len), batch_size=batch_size, seed=seed, shards=shards,
                                 rows=rows, **options))  # fmt: skip
        return made[-1]

    yield make
    for one in made:
        one.close()


def evaluation(source=RAGGED, example=next_token, *, rows=(0, BATCH), seed=0, pack=True) -> list[dict]:
    return list(
        eval_batches(source, example, empty_row(example), batch_size=BATCH, seed=seed, rows=rows, pack=pack)
    )


def take(made: Stream, count: int) -> list[dict]:
    return [next(made) for _ in range(count)]


def joined(parts: list[dict]) -> dict:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def assert_same(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert sorted(a) == sorted(b)
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def examples_of(batches: list[dict]) -> list[dict[str, np.ndarray]]:
    """The examples in the rows of batches, taken apart, after a look at how they lie there."""
    found = []
    for batch in batches:
        for row, segments in enumerate(batch["segments"]):
            last = segments.max()
            filled = np.count_nonzero(segments)
            for number in range(1, last + 1):
                where = np.flatnonzero(segments == number)
                assert len(where) and (np.diff(where) == 1).all()
                np.testing.assert_array_equal(batch["positions"][row, where], np.arange(len(where)))
                found.append({key: value[row, where] for key, value in batch.items() if value.ndim == 2})
            assert (np.diff(segments[:filled]) >= 0).all()
            for key, value in batch.items():
                assert value.ndim == 1 or not value[row, filled:].any(), key
    return found


def names(examples: list[dict]) -> list[int]:
    """The first token of each example, which tells it from all others."""
    return [int(example["tokens"][0]) for example in examples]


@PACKED
def test_a_batch_has_the_shapes_and_dtypes_of_its_rows(stream, pack):
    for batch in (next(stream(pack=pack)), evaluation(pack=pack)[0]):
        kinds = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
        numbers = dict.fromkeys(["tokens", "targets", "noise", "segments", "positions"], ("int32", (BATCH, MAX_LEN)))
        assert kinds == numbers | {"weights": ("float32", (BATCH, MAX_LEN)), "row": ("int32", (BATCH,))}
        np.testing.assert_array_equal(batch["row"], np.arange(BATCH))


@PACKED
def test_rows_hold_whole_examples_and_nothing_else(stream, pack):
    made = {int(piece[0]): piece for piece in RAGGED}
    for batches in (take(stream(pack=pack), 30), evaluation(pack=pack)):
        examples = examples_of(batches)
        for example in examples:
            piece = made[int(example["tokens"][0])]
            np.testing.assert_array_equal(example["tokens"], piece[:-1])
            np.testing.assert_array_equal(example["targets"], piece[1:])
            assert (example["weights"] == 1).all() and (example["noise"] > 0).all()
        per_row = [segments.max() for batch in batches for segments in batch["segments"]]
        assert max(per_row) > 1 if pack else max(per_row) == 1


@PACKED
def test_rows_can_be_as_long_as_their_batchs_longest_example_rounded_up(stream, pack):
    short = [item[: 3 + number % 5] for number, item in enumerate(RAGGED)]
    whole, cut = (stream(short, pack=pack, pad_to_multiple_of=multiple) for multiple in (None, 4))
    lengths = set()
    for _ in range(20):
        expected, batch = next(whole), next(cut)
        used = 1 + expected["segments"].any(axis=0).nonzero()[0].max()
        length = min(-(-used // 4) * 4, MAX_LEN)
        lengths.add(length)
        for key in ("tokens", "targets", "weights", "segments", "positions"):
            np.testing.assert_array_equal(batch[key], expected[key][:, :length])
        np.testing.assert_array_equal(batch["noise"], expected["noise"])
    assert pack or lengths == {8}


def test_a_process_that_makes_some_of_the_rows_cannot_cut_them(stream):
    with pytest.raises(InputError, match="several processes do not know of one another: leave it None"):
        stream(rows=(0, BATCH // 2), pad_to_multiple_of=4)


def test_no_segment_reaches_into_another_document(stream):
    sizes = np.random.default_rng(0).integers(1, 50, 40)
    tokens = np.concatenate([np.arange(size) + 1000 * i for i, size in enumerate(sizes, 1)]).astype(np.uint16)
    stops = np.cumsum(sizes)
    pieces = Pieces(Documents(tokens, np.stack([stops - sizes, stops], axis=1), 0), MAX_LEN + 1)
    for batches in (take(stream(pieces), 60), evaluation(pieces)):
        for example in examples_of(batches):
            assert len(set(example["tokens"] // 1000) | set(example["targets"] // 1000)) == 1
            assert len(example["tokens"]) <= MAX_LEN


def test_packing_fills_the_rows(stream):
    short = [piece[:5] for piece in RAGGED]
    filled = np.mean([batch["segments"] > 0 for batch in take(stream(short), 20)])
    assert filled > 0.9


@pytest.mark.parametrize("shards", [1, 2, 16])
def test_each_epoch_has_every_example_once_in_an_order_of_its_own(stream, shards):
    epochs = [names(examples_of([batch])) for batch in take(stream(FULL, batch_size=64, shards=shards, pack=False), 4)]
    for epoch in epochs:
        assert sorted(epoch) == [int(piece[0]) for piece in FULL]
    assert len(set(map(tuple, epochs))) == 4


def test_packed_examples_come_equally_often(stream):
    """A shard's rows are packed 64 at a time: together they hold the next examples of its order, and all of them."""
    made, counts = stream(batch_size=64, shards=1), Counter()
    for _ in range(6):
        counts.update(names(examples_of([next(made)])))
        assert len(counts) == len(RAGGED) and max(counts.values()) - min(counts.values()) <= 1
    assert min(counts.values()) > 4
    batch = next(stream(FULL, batch_size=2 * 64, shards=2))
    assert Counter(names(examples_of([batch]))) == {int(piece[0]): 2 for piece in FULL}


def test_rows_that_were_packed_together_come_in_a_random_order(stream):
    """First-fit packing alone would leave the first examples of the order in the first rows."""
    orders = [names(examples_of([next(stream(FULL, batch_size=64, shards=1, pack=pack))])) for pack in (True, False)]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_the_seed_alone_makes_the_order(stream):
    def order(seed):
        return names(examples_of(take(stream(FULL, batch_size=64, shards=1, seed=seed, pack=False), 3)))

    assert order(3) == order(3)
    orders = [order(seed) for seed in range(4)]
    epochs = {tuple(order[i : i + 64]) for order in orders for i in range(0, 192, 64)}
    assert len(epochs) == 12  # neighbouring seeds share none


def noise_by_example(batches: list[dict]) -> dict[int, list[bytes]]:
    noise = {}
    for example in examples_of(batches):
        noise.setdefault(int(example["tokens"][0]), []).append(example["noise"].tobytes())
    return noise


def test_an_examples_randomness_is_that_of_the_seed_the_epoch_and_the_example(stream):
    def noise_of_2_epochs(batch_size, **options):
        batches = take(stream(FULL, batch_size=batch_size, **options), 2 * 64 // batch_size)
        return {name: sorted(noise) for name, noise in noise_by_example(batches).items()}

    first = noise_of_2_epochs(64, shards=1)
    assert noise_of_2_epochs(128, shards=2) == noise_of_2_epochs(64, shards=8, pack=False) == first
    drawn = [noise for several in first.values() for noise in several]
    assert len(drawn) == 128 == len(set(drawn))
    other = noise_of_2_epochs(64, shards=1, pack=False, seed=1)
    assert not set(drawn) & {noise for several in other.values() for noise in several}


SPLITS = [(2, 4), (4, 4), (2, 2), (8, 8)]


@PACKED
@pytest.mark.parametrize(("processes", "shards"), SPLITS)
def test_processes_together_make_the_batch_that_one_makes(stream, pack, processes, shards):
    size = BATCH // processes
    parts = [
        take(stream(shards=shards, pack=pack, rows=(i * size, (i + 1) * size)), 12) for i in range(processes)
    ]
    assert_same([joined(list(several)) for several in zip(*parts)], take(stream(shards=shards, pack=pack), 12))


@PACKED
@pytest.mark.parametrize("shards", [1, 4])
def test_from_a_saved_state_come_exactly_the_batches_that_would_have_followed(stream, pack, shards):
    """Over several epochs, and while the threads are already ahead."""
    made, states, batches = stream(shards=shards, pack=pack), [], []
    states.append(json.dumps(made.state()))
    for _ in range(40):
        batches.append(next(made))
        time.sleep(0.001)
        states.append(json.dumps(made.state()))
    counts = Counter(names(examples_of(batches)))
    assert len(counts) == len(RAGGED) and min(counts.values()) > 1
    resumed = stream(shards=shards, pack=pack)
    for at in (37, 0, 7, 8, 9, 31, 32):  # rows are packed 64 at a time: 8 batches of one shard, or 32 of four
        resumed.restore(json.loads(states[at]))
        assert json.dumps(resumed.state()) == states[at]
        assert_same(take(resumed, 3), batches[at : at + 3])
    fresh = stream(shards=shards, pack=pack)
    fresh.restore(json.loads(states[7]))
    assert_same(take(fresh, 33), batches[7:])


@PACKED
def test_a_state_in_hand_does_not_change_with_the_stream(stream, pack):
    made = stream(pack=pack)
    take(made, 5)
    state = made.state()
    batches = take(made, 20)
    made.restore(state)
    assert_same(take(made, 20), batches)


@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 1), (2, 4), (4, 2)])
def test_states_of_any_number_of_processes_restore_in_any_other(stream, before, after):
    def processes(count):
        size = BATCH // count
        return [stream(shards=4, rows=(i * size, (i + 1) * size)) for i in range(count)]

    state = {}
    for made in processes(before):
        take(made, 11)
        state |= json.loads(json.dumps(made.state()))
    resumed = processes(after)
    for made in resumed:
        made.restore(state)
    batches = [joined(list(several)) for several in zip(*(take(made, 5) for made in resumed))]
    assert_same(batches, take(stream(shards=4), 16)[11:])


RESUME = f"""
import hashlib, json, sys
import numpy as np
from flaxllm.data import train_stream

source = [np.arange(100 * i, 100 * i + 2 + i * 7 % {MAX_LEN}, dtype=np.int32) for i in range(1, 110)]

def example(piece, rng):
    return {{"tokens": piece[:-1], "noise": rng.integers(1, 2**31, len(piece) - 1, dtype=np.int32)}}

empty_row = dict.fromkeys(("tokens", "noise"), np.zeros({MAX_LEN}, np.int32))
stream = train_stream(source, example, empty_row, batch_size={BATCH}, seed=5, shards=2, rows=(0, {BATCH}))
stream.restore(json.loads(sys.argv[1]))
for _ in range(10):
    batch = next(stream)
    print(hashlib.sha256(b"".join(batch[key].tobytes() for key in sorted(batch))).hexdigest())
"""


def test_another_process_goes_on_where_this_one_stopped_and_leaves_in_silence(stream):
    """The other one does not close its stream, whose threads are at work when the interpreter goes."""

    def example(piece, rng):
        return {"tokens": piece[:-1], "noise": rng.integers(1, 2**31, len(piece) - 1, dtype=np.int32)}

    made = stream(RAGGED, example, seed=5)
    take(made, 7)
    state = json.dumps(made.state())
    digests = [hashlib.sha256(b"".join(batch[key].tobytes() for key in sorted(batch))).hexdigest()
               for batch in take(made, 10)]  # fmt: skip
    command = [sys.executable, "-c", RESUME, state]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == digests


def test_a_state_of_another_number_of_shards_is_refused(stream):
    state = stream(shards=4).state()
    with pytest.raises(InputError, match="is of 4 shards, the stream has 2: set data.shards as it was"):
        stream(shards=2).restore(state)


def test_a_state_that_lacks_a_shard_is_refused(stream):
    state = stream(shards=4, rows=(0, 4)).state()
    with pytest.raises(InputError, match=r"lacks shards \[2, 3\] of 4: join the states of all processes"):
        stream(shards=4).restore(state)
    with pytest.raises(InputError, match=r"lacks shards \[0, 1\] of 2"):
        stream(shards=2).restore({})


def test_a_closed_stream_has_no_threads_and_no_batches(stream):
    before = set(threading.enumerate())
    made = stream(shards=4)
    next(made)
    assert len(set(threading.enumerate()) - before) == 4
    made.close()
    assert not set(threading.enumerate()) - before
    with pytest.raises(ValueError, match="closed"):
        next(made)
    made.close()


def test_a_stream_that_nobody_holds_stops_its_threads():
    before = set(threading.enumerate())
    next(train_stream(FULL, next_token, empty_row(), batch_size=8, seed=0, shards=2, rows=(0, 8)))
    assert not set(threading.enumerate()) - before


@PACKED
@pytest.mark.parametrize("cuts", [[0, 8], [0, 4, 8], [0, 1, 3, 8], range(9)], ids=str)
@pytest.mark.parametrize("count", [1, 7, 8, 109])
def test_evaluation_has_every_predicted_token_once_however_rows_are_shared(pack, cuts, count):
    source = RAGGED[:count]
    parts = [evaluation(source, pack=pack, rows=rows) for rows in pairwise(cuts)]
    assert len({len(batches) for batches in parts}) == 1
    targets = [batch["targets"][batch["weights"] > 0] for batches in parts for batch in batches]
    expected = np.concatenate([piece[1:] for piece in source])
    np.testing.assert_array_equal(np.sort(np.concatenate(targets)), np.sort(expected))
    together = [joined(list(several)) for several in zip(*parts)]
    assert_same(together, evaluation(source, pack=pack))
    for batch in together:
        assert batch["tokens"].shape == (BATCH, MAX_LEN)
        np.testing.assert_array_equal(batch["row"], np.arange(BATCH))


def test_evaluation_keeps_the_order_and_is_always_the_same():
    assert names(examples_of(evaluation(FULL))) == [int(piece[0]) for piece in FULL]
    assert_same(evaluation(), evaluation())
    noise = [noise_by_example(evaluation(seed=seed, pack=pack)) for seed, pack in ((0, True), (0, False), (1, True))]
    assert noise[0] == noise[1]
    assert all(noise[0][name] != noise[2][name] for name in noise[0])


OUTSIDE = [(0, 10), (-2, 2), (4, 4), (6, 2)]


@pytest.mark.parametrize("rows", [*OUTSIDE, (0, 3), (1, 4)])
def test_rows_that_cannot_be_one_process_are_refused(stream, rows):
    expected = f"rows {rows[0]} to {rows[1]} of a batch of 8 cannot be one process's, which takes whole shards"
    with pytest.raises(InputError, match=expected):
        stream(shards=4, rows=rows)


@pytest.mark.parametrize("rows", OUTSIDE)
def test_rows_outside_the_batch_are_not_evaluated(rows):
    with pytest.raises(InputError, match=f"rows {rows[0]} to {rows[1]} of a batch of 8 cannot be one process's"):
        evaluation(rows=rows)


@pytest.mark.parametrize("shards", [3, 16, 0, -2])
def test_shards_that_do_not_divide_the_batch_are_refused(stream, shards):
    with pytest.raises(InputError, match=f"batch_size 8 cannot be cut into {shards} shards: use a divisor of it"):
        stream(shards=shards)


def refused(stream, source, example) -> list[str]:
    """What training and evaluation say of an example that cannot be."""
    said = []
    for pack in (True, False):
        with pytest.raises(InputError) as caught:
            take(stream(source, example, pack=pack), 50)
        said.append(str(caught.value))
        with pytest.raises(InputError) as caught:
            evaluation(source, example, pack=pack)
        said.append(str(caught.value))
    return said


@PACKED
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"b": np.zeros(MAX_LEN + 1, np.int32)}, "an example has 'b' as int32[13]: expected int32[12] at most"),
        ({"b": np.zeros(3, np.int64)}, "an example has 'b' as int64[3]: expected int32[12] at most"),
        ({"b": np.zeros((), np.int32)}, "an example has 'b' as int32[]: expected int32[12] at most"),
        ({"c": np.zeros(3, np.int32)}, "an example has the arrays tokens, b, c, where tokens, b were expected"),
    ],
)
def test_an_example_that_does_not_fit_its_row_is_refused(stream, pack, wrong, message):
    def example(piece, rng):
        fitting = {"tokens": piece[:-1], "b": piece[:-1]}
        return fitting | wrong if piece[0] == 900 else fitting

    with pytest.raises(InputError, match=re.escape(message)):
        take(stream(RAGGED, example, pack=pack), 50)
    with pytest.raises(InputError, match=re.escape(message)):
        evaluation(RAGGED, example, pack=pack)


def test_packed_arrays_of_unequal_lengths_are_refused(stream):
    def example(piece, rng):
        return {"tokens": piece[:-1], "b": piece[:1] if piece[0] == 900 else piece[:-1]}

    with pytest.raises(InputError, match=r"an example has lengths \{'tokens': 4, 'b': 1\}: one length was expected"):
        take(stream(RAGGED, example), 50)


def pairs(piece: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A source and a target of other lengths."""
    half = len(piece) // 2
    return {"tokens": piece[:half], "decoder_tokens": piece[half:], "decoder_targets": piece[half:] + 1}


def test_a_source_and_its_target_are_packed_together(stream):
    room = {"tokens": np.zeros(20, np.int32), **dict.fromkeys(("decoder_tokens", "decoder_targets"), np.zeros(16, np.int32))}
    source = [piece for piece in RAGGED if len(piece) > 3]
    found = {}
    for batch in eval_batches(source, pairs, room, batch_size=BATCH, seed=0, rows=(0, BATCH)):
        np.testing.assert_array_equal(batch["decoder_targets"], batch["decoder_tokens"] + (batch["decoder_segments"] > 0))
        for row in range(BATCH):
            for number in range(1, batch["segments"][row].max() + 1):
                sides = [batch[f"{p}tokens"][row][batch[f"{p}segments"][row] == number] for p in ("", "decoder_")]
                positions = [batch[f"{p}positions"][row][batch[f"{p}segments"][row] == number] for p in ("", "decoder_")]
                for side, place in zip(sides, positions):
                    np.testing.assert_array_equal(place, np.arange(len(side)))
                found[int(sides[0][0])] = np.concatenate(sides)
            assert batch["segments"][row].max() == batch["decoder_segments"][row].max()
    assert len(found) == len(source)
    for piece in source:
        np.testing.assert_array_equal(found[int(piece[0])], piece)


def test_arrays_without_tokens_keep_their_shape(stream):
    def example(piece, rng):
        return {"tokens": piece[:3], "label": np.int32(piece[0]), "scores": np.full(2, 0.5, np.float32)}

    room = {"tokens": np.zeros(4, np.int32), "label": np.zeros((), np.int32), "scores": np.zeros(2, np.float32)}
    batches = list(eval_batches(RAGGED[:9], example, room, batch_size=BATCH, seed=0, rows=(0, BATCH), pack=False))
    assert [batch["label"].tolist() for batch in batches] == [[100, 200, 300, 400, 500, 600, 700, 800], [900] + [0] * 7]
    assert batches[1]["scores"].tolist() == [[0.5, 0.5]] + [[0, 0]] * 7
    assert batches[0]["segments"][0].tolist() == [1, 1, 1, 0][: len(RAGGED[0])] + [0] * (4 - min(4, len(RAGGED[0])))


@pytest.mark.parametrize("key", ["segments", "positions", "row"])
def test_a_key_that_the_batch_fills_is_refused(stream, key):
    said = refused(stream, RAGGED, lambda piece, rng: {"tokens": piece, key: piece})
    assert said == [f"an example has a key {key!r}, which the batch fills itself: name it otherwise"] * 4


def test_a_source_without_pieces_is_refused(stream):
    assert all("there is nothing to make examples of" in said for said in refused(stream, [], next_token))
