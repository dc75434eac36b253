"""Load time and peak memory of `from_pretrained`, against transformers'.

    pip install -e '.[parity]' && python benchmarks/load.py

MiniLM (safetensors), SmolLM2-135M (GGUF, dequantized by both) and a random Llama of 1.2 GB in float32 (three shards of
safetensors). Each load is the only one of a fresh process, the contenders in turn: "warm" with the files in the page cache,
"cold" after they were dropped from it. The time is from the call until a byte of every page of every tensor was read,
without the imports. The memory is the most that was resident during that time, above what was resident after the imports,
by Linux's own counters. Mind that transformers maps the files: where they are warm, it copies nothing.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from measure import conditions, report, spread
from processes import ask, serve, start

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

PAGE = 4096
RANDOM = dict(vocab_size=32000, num_layers=16, num_heads=16, num_kv_heads=4, head_dim=64, d_model=1024, d_mlp=4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="path of the JSON (default: benchmarks/results/load.json)")
    parser.add_argument("--contender", choices=[*CONTENDERS, "maker"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        serve(_write_random if arguments.contender == "maker" else partial(_measure, arguments.contender))
        return
    from real_weights import minilm_folder, smollm2_gguf

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        _ask_fresh("maker", folder)
        for name, path in {"MiniLM": minilm_folder(), "SmolLM2 GGUF": smollm2_gguf(), "random Llama": Path(folder)}.items():
            for cache in ("warm", "cold"):
                rows.extend({"model": name, "cache": cache} | row for row in _compare(path, cache, arguments.rounds))
    where = conditions() | {package: version(package) for package in ("torch", "transformers")}
    report("load", where | {"rounds": arguments.rounds}, rows, arguments.out)


def _compare(path: Path, cache: str, rounds: int) -> list[dict]:
    names = list(CONTENDERS)
    if cache == "warm":
        _ask_fresh(names[0], str(path), cache)  # reads the files into the page cache
    answers = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % 2 :] + names[: number % 2]:
            answers[name].append(_ask_fresh(name, str(path), cache))
    seconds = {name: spread([answer["seconds"] for answer in answers[name]]) for name in names}
    return [
        {
            "contender": name,
            "weights MiB": round(answers[name][0]["weights"] / 2**20),
            **{f"{kind} s": value for kind, value in seconds[name].items()},
            "of transformers": seconds[name]["median"] / seconds["transformers"]["median"],
            "peak of weights": spread([answer["peak"] / answer["weights"] for answer in answers[name]])["median"],
        }
        for name in names
    ]


def _ask_fresh(contender: str, *question: str) -> object:
    process = start(__file__, contender)
    answer = ask(process, *question)
    process.stdin.close()
    process.wait()
    return answer


def _measure(contender: str, path: str, cache: str) -> dict[str, float]:
    load = CONTENDERS[contender](Path(path))
    if cache == "cold":
        _drop_from_cache(Path(path))
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    before, begin = _resident("VmRSS"), time.perf_counter()
    weights = _touch(load())
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "weights": weights, "peak": _resident("VmHWM") - before}


def _drop_from_cache(path: Path) -> None:
    for file in path.glob("*.safetensors") if path.is_dir() else [path]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _resident(kind: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def _touch(arrays: Iterable[np.ndarray]) -> int:
    """Read a byte of every page, so that what was only mapped is there too. Returns the bytes of all."""
    size = 0
    for array in arrays:
        array.reshape(-1).view(np.uint8)[::PAGE].sum()
        size += array.nbytes
    return size


def _flaxllm(path: Path) -> Callable[[], list[np.ndarray]]:
    import gguf  # noqa: F401 (read on demand, as the model's own modules are below)
    import jax

    from flaxllm.pretrained import from_pretrained

    return lambda: [np.asarray(x) for x in jax.tree.leaves(from_pretrained(path)[1])]


def _transformers(path: Path) -> Callable[[], list[np.ndarray]]:
    import gguf  # noqa: F401
    import torch
    import transformers

    if path.suffix == ".gguf":
        load = partial(transformers.LlamaForCausalLM.from_pretrained, path.parent, gguf_file=path.name)
    else:
        name = transformers.AutoConfig.from_pretrained(path).architectures[0]
        load = partial(getattr(transformers, name).from_pretrained, path)
    return lambda: [p.detach().view(torch.uint8).numpy() for p in load().parameters()]


CONTENDERS = {"flaxllm": _flaxllm, "transformers": _transformers}


def _write_random(folder: str) -> None:
    import jax

    from flaxllm.models import build
    from flaxllm.pretrained import save_pretrained

    model = build("llama", RANDOM)
    save_pretrained(folder, model, model.init(jax.random.PRNGKey(0)), max_shard_bytes=5 * 10**8)


if __name__ == "__main__":
    main()
