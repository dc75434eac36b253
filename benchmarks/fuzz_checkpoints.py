"""Mutated checkpoints: each is refused in one sentence, or read as the safetensors library and json read it.

    python benchmarks/fuzz_checkpoints.py --cases 10000 --seed 0

A case takes a small checkpoint, of one file or of two shards, changes its files in one of many ways, and opens it and
reads all of its tensors. Whatever else comes of it (another exception, a message of more than a line or without the file,
tensors that an independent reader does not find, far more memory than the files have) is shown as a failure, and the exit
code is 1.
"""

import argparse
import collections
import faulthandler
import json
import random
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save

from flaxllm.errors import InputError
from flaxllm.pretrained.checkpoint import open_checkpoint
from flaxllm.pretrained.safetensors_file import DTYPES

Files = dict[str, bytes]
Mutation = Callable[[random.Random, Files], Files]

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
REFUSED, LOADED = "refused", "loaded"
HANGS_AFTER = 60  # seconds

_NUMBERS = (-1, 0, 1, 2, 8, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 10**4200, True, None, 1.5, 1e400, "4", [], {})
_TEXTS = (*DTYPES, "F4", "F6_E2M3", "f32", "float32", "", "\n", "\ud800", "\u2028", "x" * 10**5, None, 7, [], {}, ["F32"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts: dict[str, collections.Counter] = {name: collections.Counter() for name in MUTATIONS}
    names = list(MUTATIONS)
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        for case in range(arguments.cases):
            name = names[case % len(names)]
            faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
            outcome = outcome_of(mutate(name, random.Random(f"{arguments.seed} {case}")), Path(folder))
            counts[name][outcome if outcome in (REFUSED, LOADED) else "failed"] += 1
            if outcome not in (REFUSED, LOADED):
                print(f"case {case} of seed {arguments.seed}, {name}: {outcome}", file=sys.stderr)
    faulthandler.cancel_dump_traceback_later()
    _print(counts)
    sys.exit(any(found["failed"] for found in counts.values()))


def mutate(name: str, rng: random.Random) -> Files:
    """The files of a small checkpoint after the mutation of that name."""
    sharded = name.startswith("index") or name == "shard: that of the other" or rng.random() < 0.5
    return MUTATIONS[name](rng, small_checkpoint(sharded))


def outcome_of(files: Files, folder: Path) -> str:
    """`REFUSED`, `LOADED`, or what is wrong with how the checkpoint that these files are was met."""
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        found = _read(folder)
    except InputError as error:
        message = str(error)
        if len(message.splitlines()) != 1 or len(message) > 1000 or str(folder) not in message:
            return f"refused with {message!r}"
        outcome = REFUSED
    except Exception as error:
        return f"raised {error!r:.500}"
    else:
        try:
            outcome = LOADED if found == _reference(files) else "read otherwise than the independent reader reads it"
        except Exception as error:
            return f"read, though the independent reader refuses it ({error!r:.500})"
    # A parsed header takes more room than its text; an array as large as a false header claims would take far more still.
    taken, given = tracemalloc.get_traced_memory()[1] - before, sum(map(len, files.values()))
    return outcome if taken < 10**6 + 30 * given else f"took {taken} bytes for files of {given}"


def small_checkpoint(sharded: bool) -> Files:
    rng = np.random.default_rng(0)
    shards = [
        {
            "embed.weight": rng.standard_normal((4, 3), np.float32),
            "norm.weight": rng.standard_normal(5).astype(ml_dtypes.bfloat16),
            "scale": rng.standard_normal((2, 3)).astype(ml_dtypes.float8_e4m3fn),
            "mask": np.array([True, False, True]),
        },
        {
            "positions": np.arange(6, dtype=np.int64)[None],
            "step": np.array(3, np.int32),
            "none": np.zeros((0, 7), np.float16),
            "bytes": np.arange(9, dtype=np.uint8),
        },
    ]
    config = {"model_type": "bert", "hidden_size": 3, "layer_norm_eps": 1e-12, "id2label": {"0": "no", "1": "yes"}}
    if not sharded:
        return {SINGLE: save(shards[0] | shards[1], {"format": "pt"}), CONFIG: json.dumps(config, indent=1).encode()}
    index = {"metadata": {"total_size": 0}, "weight_map": {name: file for file, part in zip(SHARDS, shards) for name in part}}
    return {
        **{file: save(part, {"format": "pt"}) for file, part in zip(SHARDS, shards)},
        INDEX: json.dumps(index, indent=1).encode(),
        CONFIG: json.dumps(config, indent=1).encode(),
    }


def _read(folder: Path) -> tuple[str, dict]:
    checkpoint = open_checkpoint(folder)
    codes = {dtype: code for code, dtype in DTYPES.items()}
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        array = tensor.read()
        tensors[name] = (codes[array.dtype], list(array.shape), array.tobytes())
    return json.dumps(checkpoint.config), tensors


def _reference(files: Files) -> tuple[str, dict]:
    """The same by json and the safetensors library alone; any exception where they find the files wrong."""
    where = json.loads(files[INDEX])["weight_map"] if INDEX in files else {}
    tensors = {}
    for file in set(where.values()) or {SINGLE}:
        for name, fields in safetensors.deserialize(files[file]):
            if where.get(name, file) != file or name in tensors:
                raise ValueError(f"{name} is not where the index says")
            tensors[name] = (fields["dtype"], fields["shape"], bytes(fields["data"]))
    if where.keys() - tensors.keys():
        raise ValueError(f"{where.keys() - tensors.keys()} are missing")
    return json.dumps(json.loads(files[CONFIG])), tensors


def _print(counts: dict[str, collections.Counter]) -> None:
    table = Table("mutation", "cases", REFUSED, LOADED, "failed")
    total = sum(counts.values(), collections.Counter())
    for name, found in [*counts.items(), ("all", total)]:
        table.add_row(name, *(str(n) for n in (found.total(), found[REFUSED], found[LOADED], found["failed"])))
    Console().print(table)


def _on_shard(change: Callable[[random.Random, bytes], bytes]) -> Mutation:
    """A mutation that changes the bytes of one file of tensors."""

    def mutation(rng: random.Random, files: Files) -> Files:
        file = rng.choice([file for file in files if file.endswith(".safetensors")])
        return files | {file: change(rng, files[file])}

    return mutation


def _on_header(change: Callable[[random.Random, bytes], bytes]) -> Mutation:
    """A mutation that changes the text of one file's header; the length before it is put right."""

    def on_bytes(rng: random.Random, data: bytes) -> bytes:
        end = 8 + int.from_bytes(data[:8], "little")
        text = change(rng, data[8:end])
        return len(text).to_bytes(8, "little") + text + data[end:]

    return _on_shard(on_bytes)


def _on_tensors(change: Callable[[random.Random, dict], None]) -> Mutation:
    """A mutation that changes the tensors of one file's header, a dict, in place."""

    def on_text(rng: random.Random, text: bytes) -> bytes:
        header = json.loads(text)
        change(rng, header)
        return json.dumps(header).encode()

    return _on_header(on_text)


def _on_field(field: str, values: Callable[[random.Random, list], object]) -> Mutation:
    """A mutation that changes one field of one tensor."""

    def on_tensors(rng: random.Random, header: dict) -> None:
        fields = header[_a_tensor(rng, header)]
        fields[field] = values(rng, fields[field])

    return _on_tensors(on_tensors)


def _on_json(file: str, change: Callable[[random.Random, dict], object]) -> Mutation:
    """A mutation that changes the content of the index or of the config."""

    def mutation(rng: random.Random, files: Files) -> Files:
        content = json.loads(files[file])
        changed = change(rng, content)
        return files | {file: json.dumps(content if changed is None else changed).encode()}

    return mutation


def _on_text(file: str) -> Mutation:
    """A mutation that damages the text of the index or of the config."""
    return lambda rng, files: files | {file: rng.choice((_bit, _byte, _cut, _spliced, _nested))(rng, files[file])}


def _a_tensor(rng: random.Random, header: dict) -> str:
    return rng.choice([name for name in header if name != "__metadata__"])


def _bit(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def _byte(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([rng.choice((*b'0123456789-.,:"[]{}\\ \n', 0, 255))]) + data[place + 1 :]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _longer(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.randint(1, 64))


def _spliced(rng: random.Random, data: bytes) -> bytes:
    """A stretch of it left out, or put in again elsewhere."""
    begin, end, place = sorted(rng.randrange(len(data)) for _ in range(3))
    return data[:begin] + data[end:] if rng.random() < 0.5 else data[:place] + data[begin:end] + data[place:]


def _nested(rng: random.Random, data: bytes) -> bytes:
    """A deep nest, sometimes closed, in the place of its first value."""
    depth = rng.choice((10, 500, 5_000, 50_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    nest = opening * depth + b"0" + closing * (depth if rng.random() < 0.8 else depth - 1)
    key, _, rest = data.partition(b":")
    return key + b":" + nest + b"," + b'"more":' + rest


def _data_bit(rng: random.Random, data: bytes) -> bytes:
    start = 8 + int.from_bytes(data[:8], "little")
    return data[:start] + _bit(rng, data[start:])


def _length(rng: random.Random, data: bytes) -> bytes:
    there = int.from_bytes(data[:8], "little")
    length = rng.choice((0, 1, 2, there - 1, there + 1, len(data), 10**8 + 1, 2**31, 2**63, 2**64 - 1, rng.getrandbits(64)))
    return length.to_bytes(8, "little") + data[8:]


def _length_bit(rng: random.Random, data: bytes) -> bytes:
    return _bit(rng, data[:8]) + data[8:]


def _other_numbers(rng: random.Random, numbers: list) -> object:
    changed = list(numbers)
    way = rng.randrange(4)
    if way == 0 and changed:
        changed[rng.randrange(len(changed))] = rng.choice((*_NUMBERS, rng.randrange(100)))
    elif way == 1:
        changed.insert(rng.randint(0, len(changed)), rng.choice(_NUMBERS))
    elif way == 2:
        rng.shuffle(changed)
    else:
        return rng.choice((*_NUMBERS, changed[:-1], changed * 40))
    return changed


def _near_number(rng: random.Random, numbers: list) -> list:
    changed = list(numbers)
    changed[rng.randrange(2)] += rng.choice((-8, -4, -1, 1, 4, 8))
    return changed


def _swap_offsets(rng: random.Random, header: dict) -> None:
    first, second = (header[_a_tensor(rng, header)] for _ in range(2))
    first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]


def _swap_names(rng: random.Random, header: dict) -> None:
    first, second = (_a_tensor(rng, header) for _ in range(2))
    header[first], header[second] = header[second], header[first]


def _drop_tensor(rng: random.Random, header: dict) -> None:
    del header[_a_tensor(rng, header)]


def _drop_field(rng: random.Random, header: dict) -> None:
    fields = header[_a_tensor(rng, header)]
    del fields[rng.choice(list(fields))]


def _rename(rng: random.Random, header: dict) -> None:
    header[rng.choice([text for text in _TEXTS if isinstance(text, str)])] = header.pop(_a_tensor(rng, header))


def _not_fields(rng: random.Random, header: dict) -> None:
    header[_a_tensor(rng, header)] = rng.choice((*_TEXTS, *_NUMBERS))


def _other_metadata(rng: random.Random, header: dict) -> None:
    header["__metadata__"] = rng.choice((*_NUMBERS, {"format": 1}, {"format": None}, {}, {"a": {"b": "c"}}))


def _tensor_twice(rng: random.Random, text: bytes) -> bytes:
    header = json.loads(text)
    name = _a_tensor(rng, header)
    return text.rstrip()[:-1] + f",{json.dumps(name)}:{json.dumps(header[name])}}}".encode()


def _moved(rng: random.Random, index: dict) -> None:
    files = (*SHARDS, "../model.safetensors", "/etc/passwd", "..", ".", "", CONFIG, INDEX, "no.safetensors", "a\0.safetensors")
    name = rng.choice(list(index["weight_map"]))
    index["weight_map"][name] = rng.choice((*files, f"./{SHARDS[0]}", f"{SHARDS[0]}/", *_TEXTS, *_NUMBERS))


def _unlisted(rng: random.Random, index: dict) -> None:
    del index["weight_map"][rng.choice(list(index["weight_map"]))]


def _listed(rng: random.Random, index: dict) -> None:
    index["weight_map"][rng.choice(("new", "", "\n"))] = rng.choice(SHARDS)


def _other_map(rng: random.Random, index: dict) -> object:
    if rng.random() < 0.3:
        return rng.choice((*_NUMBERS, [index]))
    index["weight_map"] = rng.choice((*_TEXTS, *_NUMBERS, list(index["weight_map"])))
    return None


def _other_value(rng: random.Random, config: dict) -> object:
    if rng.random() < 0.2:
        return rng.choice([value for value in (*_TEXTS, *_NUMBERS, [config]) if value is not None])
    config[rng.choice(list(config))] = rng.choice((*_TEXTS, *_NUMBERS))
    return None


def _missing(rng: random.Random, files: Files) -> Files:
    left_out = rng.choice(list(files))
    return {name: data for name, data in files.items() if name != left_out}


def _in_both(rng: random.Random, files: Files) -> Files:
    return files | {SHARDS[rng.randrange(2)]: files[SHARDS[rng.randrange(2)]]}


MUTATIONS: dict[str, Mutation] = {
    "nothing": lambda rng, files: files,
    "shard: a bit of its data": _on_shard(_data_bit),
    "shard: a bit of its length": _on_shard(_length_bit),
    "shard: another length": _on_shard(_length),
    "shard: cut short": _on_shard(_cut),
    "shard: goes on": _on_shard(_longer),
    "shard: spliced": _on_shard(_spliced),
    "shard: noise": _on_shard(lambda rng, data: rng.randbytes(rng.randrange(200))),
    "shard: that of the other": _in_both,
    "header: a bit": _on_header(_bit),
    "header: a byte": _on_header(_byte),
    "header: cut short": _on_header(_cut),
    "header: spliced": _on_header(_spliced),
    "header: deep nest": _on_header(_nested),
    "header: metadata": _on_tensors(_other_metadata),
    "header: tensor twice": _on_header(_tensor_twice),
    "header: tensor left out": _on_tensors(_drop_tensor),
    "header: tensor renamed": _on_tensors(_rename),
    "header: tensors swapped": _on_tensors(_swap_names),
    "header: no fields": _on_tensors(_not_fields),
    "header: field left out": _on_tensors(_drop_field),
    "header: dtype": _on_field("dtype", lambda rng, _: rng.choice(_TEXTS)),
    "header: shape": _on_field("shape", _other_numbers),
    "header: offsets": _on_field("data_offsets", _other_numbers),
    "header: offsets moved": _on_field("data_offsets", _near_number),
    "header: offsets swapped": _on_tensors(_swap_offsets),
    "index: text": _on_text(INDEX),
    "index: file of a tensor": _on_json(INDEX, _moved),
    "index: tensor left out": _on_json(INDEX, _unlisted),
    "index: tensor more": _on_json(INDEX, _listed),
    "index: weight map": _on_json(INDEX, _other_map),
    "config: text": _on_text(CONFIG),
    "config: value": _on_json(CONFIG, _other_value),
    "file missing": _missing,
}


if __name__ == "__main__":
    main()
