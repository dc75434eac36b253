"""Pieces of text to batches, by grain: shuffled, made into examples, packed into rows, and exactly resumable.

A training stream is a fixed number of logical shards. Shard s takes every shards-th example of the shuffled order,
packs them by itself, and yields its own share of the rows of every batch. A process owns whole shards, so that neither
the number of processes nor that of devices changes a batch.
"""

import hashlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import grain
import numpy as np

from flaxllm.errors import InputError

Example = dict[str, np.ndarray]
MakeExample = Callable[[np.ndarray, np.random.Generator], Example]
Batch = dict[str, np.ndarray]

_PACKING_BINS = 64
_PREFETCHED_BATCHES = 2
_OURS = ("segments", "positions", "row")
_IN_THIS_THREAD = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


class Stream:
    """An endless iterator of batches, made in background threads, whose position can be saved and taken up again."""

    def __init__(self, iterators: dict[int, grain.DatasetIterator], shards: int, rows: tuple[int, int]):
        self._iterators = iterators
        self._shards = shards
        self._rows = rows
        # A thread still in grain's native code when the interpreter goes would abort it: this also runs at exit.
        self._finalizer = weakref.finalize(self, _close, iterators)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        if not self._iterators:
            raise ValueError("this stream of batches was closed")
        parts = [next(iterator) for iterator in self._iterators.values()]
        batch = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return batch | {"row": np.arange(*self._rows, dtype=np.int32)}

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
    source: Sequence[np.ndarray],
    example: MakeExample,
    *,
    batch_size: int,
    max_len: int,
    seed: int,
    shards: int,
    rows: tuple[int, int],
    pack: bool = True,
) -> Stream:
    """Endless batches from `source`, reshuffled each epoch; an example's randomness is that of (seed, epoch, index).

    `rows` = (start, stop) are the rows of the global batch that this process makes. A batch holds the example's keys,
    `segments` and `positions`, `[stop - start, max_len]`: examples count from 1 in a row, positions from 0 in each
    example, and everything is 0 where there is none; and `row`, int32 `[stop - start]`, the global row numbers.
    Without `pack` each row holds one example.

    Raises:
      InputError: `shards` does not divide `batch_size`, `rows` cuts a shard, or there is nothing to read.
    """
    if shards < 1 or batch_size % shards:
        raise InputError(f"batch_size {batch_size} cannot be cut into {shards} shards: use a divisor of it")
    rows_per_shard = batch_size // shards
    _check_rows(rows, batch_size, rows_per_shard)
    keys = _keys(source, example)
    examples = (
        grain.MapDataset.source(source)
        .random_map(_checked(example, max_len), seed=_derived(seed, "example"))
        .shuffle(seed=_derived(seed, "shuffle"))
        .repeat()
    )
    iterators = {}
    for shard in range(rows[0] // rows_per_shard, rows[1] // rows_per_shard):
        packed = _rows(examples[shard::shards], keys, max_len, pack, bin_seed=_derived(seed, f"bins of {shard}"))
        batches = packed.batch(rows_per_shard, drop_remainder=True)
        ahead = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=_PREFETCHED_BATCHES)
        iterators[shard] = iter(ahead)
    return Stream(iterators, shards, rows)


def eval_batches(
    source: Sequence[np.ndarray],
    example: MakeExample,
    *,
    batch_size: int,
    max_len: int,
    seed: int,
    rows: tuple[int, int],
    pack: bool = True,
) -> Iterator[Batch]:
    """All of `source` exactly once and always the same, in batches as those of `train_stream`.

    The last batch is filled up with empty rows, so that every process sees the same number of batches; the randomness
    of an example is that of (seed, index).

    Raises:
      InputError: `rows` does not lie in the batch, or there is nothing to read.
    """
    _check_rows(rows, batch_size, 1)
    keys = _keys(source, example)
    examples = grain.MapDataset.source(source).random_map(
        _checked(example, max_len), seed=_derived(seed, "example")
    )
    packed = _rows(examples, keys, max_len, pack)
    return iter(packed.batch(batch_size, batch_fn=partial(_own_rows, batch_size=batch_size, rows=rows)))


def _check_rows(rows: tuple[int, int], batch_size: int, multiple: int) -> None:
    start, stop = rows
    if not 0 <= start < stop <= batch_size or start % multiple or stop % multiple:
        raise InputError(
            f"rows {start} to {stop} of a batch of {batch_size} cannot be one process's, which takes whole "
            f"shards of {multiple} rows: let the number of processes divide data.shards"
        )


def _keys(source: Sequence[np.ndarray], example: MakeExample) -> list[str]:
    """The names of an example's arrays."""
    if not len(source):
        raise InputError("there is no text to make examples of: every document has fewer than two tokens")
    keys = list(example(source[0], np.random.default_rng(0)))
    taken = sorted(set(keys).intersection(_OURS))
    if taken:
        raise InputError(f"an example has a key {taken[0]!r}, which the batch fills itself: name it otherwise")
    return keys


def _checked(example: MakeExample, max_len: int) -> MakeExample:
    def make(piece: np.ndarray, rng: np.random.Generator) -> Example:
        made = example(piece, rng)
        lengths = {key: len(value) for key, value in made.items()}
        if len(set(lengths.values())) != 1 or max(lengths.values()) > max_len:
            raise InputError(f"an example has lengths {lengths}: one length of at most {max_len} was expected")
        return made

    return make


def _rows(
    examples: grain.MapDataset, keys: list[str], max_len: int, pack: bool, bin_seed: int | None = None
) -> grain.IterDataset:
    """Rows of `max_len`; with a `bin_seed`, those that were packed together come in a random order."""
    if not pack:
        return examples.map(partial(_padded, max_len=max_len)).to_iter_dataset(_IN_THIS_THREAD)
    packed = grain.experimental.FirstFitPackIterDataset(
        examples.to_iter_dataset(_IN_THIS_THREAD),
        length_struct=dict.fromkeys(keys, max_len),
        num_packing_bins=_PACKING_BINS,
        shuffle_bins=bin_seed is not None,
        seed=bin_seed or 0,
    )
    return packed.map(partial(_one_segmentation, keys=keys))


def _padded(example: Example, max_len: int) -> Example:
    """One example as a row."""
    length = len(next(iter(example.values())))
    row = example | {"segments": np.ones(length, np.int32), "positions": np.arange(length, dtype=np.int32)}
    return {key: np.pad(value, (0, max_len - length)) for key, value in row.items()}


def _one_segmentation(row: Example, keys: list[str]) -> Example:
    """grain gives each key its own segments and positions; here they are the same for all."""
    shared = {"segments": row[f"{keys[0]}_segment_ids"], "positions": row[f"{keys[0]}_positions"]}
    return {key: row[key] for key in keys} | shared


def _own_rows(made: Sequence[Example], batch_size: int, rows: tuple[int, int]) -> Batch:
    """This process's rows of a batch, of which only the first `len(made)` have anything in them."""
    empty = {key: np.zeros_like(value) for key, value in made[0].items()}
    own = [*made, *[empty] * (batch_size - len(made))][slice(*rows)]
    batch = {key: np.stack([row[key] for row in own]) for key in empty}
    return batch | {"row": np.arange(*rows, dtype=np.int32)}


def _derived(seed: int, purpose: str) -> int:
    """A seed of 32 bits of its own for each purpose: grain adds the epoch to that of a shuffle, so that neighbouring
    seeds would share their orders."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:4], "little")


def _close(iterators: dict[int, grain.DatasetIterator]) -> None:
    for iterator in iterators.values():
        iterator.close()
    # Left to the interpreter's exit, they would be closed once more, among modules that are gone.
    iterators.clear()
