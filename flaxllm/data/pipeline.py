"""Pieces of text to batches, by grain: shuffled, made into examples, packed into rows, and exactly resumable.

A training stream is a fixed number of logical shards. Shard s takes every shards-th example of the shuffled order,
packs them by itself, and yields its own share of the rows of every batch. A process owns whole shards, so that neither
the number of processes nor that of devices changes a batch.
"""

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np

from flaxllm.errors import InputError

Example = dict[str, np.ndarray]
MakeExample = Callable[[Any, np.random.Generator], Example]
Batch = dict[str, np.ndarray]

_PACKING_BINS = 64
_PREFETCHED_BATCHES = 2
_TOKENS, _SEGMENTS, _POSITIONS, _ROW = "tokens", "segments", "positions", "row"
_ALONG_TOKENS = (_TOKENS, _SEGMENTS, _POSITIONS, "token_types", "targets", "places", "weights")
_IN_THIS_THREAD = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


class Stream:
    """An endless iterator of batches, made in background threads, whose position can be saved and taken up again."""

    def __init__(
        self, iterators: dict[int, grain.DatasetIterator], shards: int, rows: tuple[int, int], multiple: int | None
    ):
        self._iterators = iterators
        self._shards = shards
        self._rows = rows
        self._multiple = multiple
        # A thread still in grain's native code when the interpreter goes would abort it: this also runs at exit.
        self._finalizer = weakref.finalize(self, _close, iterators)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        if not self._iterators:
            raise ValueError("this stream of batches was closed")
        parts = [next(iterator) for iterator in self._iterators.values()]
        batch = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        batch = batch if self._multiple is None else _cut(batch, self._multiple)
        return batch | {_ROW: np.arange(*self._rows, dtype=np.int32)}

    def state(self) -> dict[str, dict]:
        """The position after the last batch handed out, of each shard that this process owns (json-able)."""
        return {
            str(shard): {"shards": self._shards, "iterator": iterator.get_state()}
            for shard, iterator in self._iterators.items()
        }

    def restore(self, states: dict[str, dict]) -> None:
        """Goes to the position that `states`, gathered from any number of processes, describes.

        Raises:
          InputError: a shard of this process is missing, or they are of a stream of another number of shards.
        """
        counts = {state["shards"] for state in states.values()}
        if counts - {self._shards}:
            raise InputError(
                f"the saved data state is of {min(counts - {self._shards})} shards, the stream has {self._shards}: "
                "set data.shards as it was"
            )
        missing = [shard for shard in self._iterators if str(shard) not in states]
        if missing:
            raise InputError(
                f"the saved data state lacks shards {missing} of {self._shards}: join the states of all processes"
            )
        for shard, iterator in self._iterators.items():
            iterator.set_state(states[str(shard)]["iterator"])

    def close(self) -> None:
        """Stops the threads; no batch can be had any more."""
        self._finalizer()


def train_stream(
    items: Sequence[Any],
    example: MakeExample,
    empty_row: Example,
    *,
    batch_size: int,
    seed: int,
    shards: int,
    rows: tuple[int, int],
    pack: bool = True,
    pad_to_multiple_of: int | None = None,
) -> Stream:
    """Endless batches of examples of `items`, reshuffled each epoch; an example's randomness is that of (seed, epoch, index).

    `empty_row` has zeros of the shapes and dtypes of a row; an example has the same arrays, as long or shorter. `rows` =
    (start, stop) are the rows of the global batch that this process makes. A batch holds these arrays, `[stop - start, ...]`,
    beside `tokens` also `segments` and `positions` (beside `decoder_tokens` `decoder_segments` and so on): examples count
    from 1 in a row, positions from 0 in each example, and everything is 0 where there is none; and `row`, int32
    `[stop - start]`, the global row numbers. Without `pack` each row holds one example. With `pad_to_multiple_of` a batch's
    rows are only as long as the longest example in it, rounded up to a multiple: its tokens, and the segments, positions,
    token_types, targets, places and weights beside them.

    Raises:
      InputError: `shards` does not divide `batch_size`, `rows` cuts a shard, or there is nothing to read; rows are to be cut
        that are a part of a batch only, whose other parts may have longer ones.
    """
    if shards < 1 or batch_size % shards:
        raise InputError(f"batch_size {batch_size} cannot be cut into {shards} shards: use a divisor of it")
    rows_per_shard = batch_size // shards
    _check_rows(rows, batch_size, rows_per_shard)
    _check(items, empty_row)
    if pad_to_multiple_of is not None and rows != (0, batch_size):
        raise InputError(
            f"data.pad_to_multiple_of {pad_to_multiple_of} makes a batch as long as what is in it, which several processes "
            "do not know of one another: leave it None"
        )
    examples = (
        grain.MapDataset.source(items)
        .random_map(_checked(example, empty_row, pack), seed=_derived(seed, "example"))
        .shuffle(seed=_derived(seed, "shuffle"))
        .repeat()
    )
    iterators = {}
    for shard in range(rows[0] // rows_per_shard, rows[1] // rows_per_shard):
        packed = _rows(examples[shard::shards], empty_row, pack, bin_seed=_derived(seed, f"bins of {shard}"))
        batches = packed.batch(rows_per_shard, drop_remainder=True)
        ahead = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=_PREFETCHED_BATCHES)
        iterators[shard] = iter(ahead)
    return Stream(iterators, shards, rows, pad_to_multiple_of)


def eval_batches(
    items: Sequence[Any],
    example: MakeExample,
    empty_row: Example,
    *,
    batch_size: int,
    seed: int,
    rows: tuple[int, int],
    pack: bool = True,
) -> Iterator[Batch]:
    """All of `items` exactly once and always the same, in batches as those of `train_stream`; without `pack`, in their order.

    The last batch is filled up with empty rows, so that every process sees the same number of batches; the randomness
    of an example is that of (seed, index).

    Raises:
      InputError: `rows` does not lie in the batch, or there is nothing to read.
    """
    _check_rows(rows, batch_size, 1)
    _check(items, empty_row)
    examples = grain.MapDataset.source(items).random_map(
        _checked(example, empty_row, pack), seed=_derived(seed, "example")
    )
    packed = _rows(examples, empty_row, pack)
    return iter(packed.batch(batch_size, batch_fn=partial(_own_rows, batch_size=batch_size, rows=rows)))


def with_segments(empty_row: Example) -> Example:
    """An empty row, and the segments and positions that come beside its tokens."""
    lengths = {name: len(empty_row[key]) for key in _token_keys(empty_row) for name in _segment_keys([key])}
    return dict(empty_row) | {name: np.zeros(length, np.int32) for name, length in lengths.items()}


def _check_rows(rows: tuple[int, int], batch_size: int, multiple: int) -> None:
    start, stop = rows
    if not 0 <= start < stop <= batch_size or start % multiple or stop % multiple:
        raise InputError(
            f"rows {start} to {stop} of a batch of {batch_size} cannot be one process's, which takes whole "
            f"shards of {multiple} rows: let the number of processes divide data.shards"
        )


def _check(items: Sequence[Any], empty_row: Example) -> None:
    if not len(items):
        raise InputError("there is nothing to make examples of: every document has fewer than two tokens, or no record fits")
    taken = sorted({_ROW, *_segment_keys(empty_row)}.intersection(empty_row))
    if taken:
        raise InputError(f"an example has a key {taken[0]!r}, which the batch fills itself: name it otherwise")


def _checked(example: MakeExample, empty_row: Example, pack: bool) -> MakeExample:
    def make(item: Any, rng: np.random.Generator) -> Example:
        made = {key: np.asarray(value) for key, value in example(item, rng).items()}
        _check_fits(made, empty_row)
        if pack:
            _check_one_length(made)
        return made

    return make


def _check_fits(made: Example, empty_row: Example) -> None:
    if made.keys() != empty_row.keys():
        raise InputError(f"an example has the arrays {', '.join(made)}, where {', '.join(empty_row)} were expected")
    for key, value in made.items():
        room = empty_row[key]
        if value.ndim != room.ndim or value.dtype != room.dtype or any(a > b for a, b in zip(value.shape, room.shape)):
            raise InputError(
                f"an example has {key!r} as {value.dtype}{list(value.shape)}: expected {room.dtype}{list(room.shape)} at most"
            )


def _check_one_length(made: Example) -> None:
    for tokens in _token_keys(made):
        lengths = {key: len(value) for key, value in made.items() if _prefix(key) == _prefix(tokens)}
        if len(set(lengths.values())) != 1:
            raise InputError(f"an example has lengths {lengths}: one length was expected")


def _token_keys(keys: Iterable[str]) -> list[str]:
    """The arrays that get segments and positions beside them."""
    return [key for key in keys if key == _TOKENS or key.endswith(f"_{_TOKENS}")]


def _segment_keys(keys: Iterable[str]) -> list[str]:
    return [f"{_prefix(key)}{name}" for key in _token_keys(keys) for name in (_SEGMENTS, _POSITIONS)]


def _prefix(key: str) -> str:
    """What comes before the name of an array: "decoder_" of decoder_tokens, and of what lies along it."""
    return key[: key.rfind("_") + 1]


def _rows(examples: grain.MapDataset, empty_row: Example, pack: bool, bin_seed: int | None = None) -> grain.IterDataset:
    """Full rows; with a `bin_seed`, those that were packed together come in a random order."""
    if not pack:
        return examples.map(partial(_padded, room=with_segments(empty_row))).to_iter_dataset(_IN_THIS_THREAD)
    packed = grain.experimental.FirstFitPackIterDataset(
        examples.to_iter_dataset(_IN_THIS_THREAD),
        length_struct={key: len(value) for key, value in empty_row.items()},
        num_packing_bins=_PACKING_BINS,
        shuffle_bins=bin_seed is not None,
        seed=bin_seed or 0,
    )
    return packed.map(partial(_one_segmentation, keys=tuple(empty_row)))


def _padded(example: Example, room: Example) -> Example:
    """One example as a row."""
    row = dict(example)
    for key in _token_keys(example):
        segments, positions = _segment_keys([key])
        length = len(example[key])
        row |= {segments: np.ones(length, np.int32), positions: np.arange(length, dtype=np.int32)}
    return {key: _filled_up(value, room[key]) for key, value in row.items()}


def _filled_up(value: np.ndarray, room: np.ndarray) -> np.ndarray:
    whole = np.zeros_like(room)
    whole[tuple(slice(size) for size in value.shape)] = value
    return whole


def _one_segmentation(row: Example, keys: tuple[str, ...]) -> Example:
    """grain gives each array its own segments and positions; here those along the same tokens share theirs."""
    shared = {}
    for key in _token_keys(keys):
        segments, positions = _segment_keys([key])
        shared |= {segments: row[f"{key}_segment_ids"], positions: row[f"{key}_positions"]}
    return {key: row[key] for key in keys} | shared


def _cut(batch: Batch, multiple: int) -> Batch:
    """A batch without the last places of its rows that hold nothing in any, but for a multiple of places."""
    cut = dict(batch)
    for tokens in _token_keys(batch):
        used = batch[f"{_prefix(tokens)}{_SEGMENTS}"].any(axis=0)
        length = -(-(used.nonzero()[0].max(initial=0) + 1) // multiple) * multiple
        along = [name for name in (f"{_prefix(tokens)}{name}" for name in _ALONG_TOKENS) if name in batch]
        cut |= {name: batch[name][:, :length] for name in along if batch[name].ndim > 1}
    return cut


def _own_rows(made: Sequence[Example], batch_size: int, rows: tuple[int, int]) -> Batch:
    """This process's rows of a batch, of which only the first `len(made)` have anything in them."""
    empty = {key: np.zeros_like(value) for key, value in made[0].items()}
    own = [*made, *[empty] * (batch_size - len(made))][slice(*rows)]
    batch = {key: np.stack([row[key] for row in own]) for key in empty}
    return batch | {_ROW: np.arange(*rows, dtype=np.int32)}


def _derived(seed: int, purpose: str) -> int:
    """A seed of 32 bits of its own for each purpose: grain adds the epoch to that of a shuffle, so that neighbouring
    seeds would share their orders."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:4], "little")


def _close(iterators: dict[int, grain.DatasetIterator]) -> None:
    for iterator in iterators.values():
        iterator.close()
    # Left to the interpreter's exit, they would be closed once more, among modules that are gone.
    iterators.clear()
