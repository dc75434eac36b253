"""Memory and time of attention, forward and backward, by length and implementation.

Causal, batch 1, 12 heads of 64; float32 on a CPU, bfloat16 on an accelerator. What needs more memory than
there is, by the compiler's own account, is not run.

    python benchmarks/attention.py --lengths 1024,2048 --rounds 5
"""

import argparse
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.stages import Compiled
from measure import alternate, conditions, report, spread

from flaxllm import nn

HEADS, HEAD_DIM = 12, 64
GIB = 2**30


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384", help="separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="where the JSON goes, instead of benchmarks/results/attention.json")
    args = parser.parse_args()
    here = conditions()
    rows = [row for length in args.lengths.split(",") for row in measure_length(int(length), args.rounds)]
    report("attention", here, rows, args.out)


def measure_length(length: int, rounds: int) -> list[dict]:
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    keys = jax.random.split(jax.random.PRNGKey(0), 4)
    arrays = [jax.random.normal(key, (1, length, HEADS, HEAD_DIM), dtype) for key in keys]
    compiled = {name: compile_step(name, arrays) for name in nn.IMPLEMENTATIONS if runs_here(name)}
    needed = {name: step.memory_analysis().temp_size_in_bytes for name, step in compiled.items()}
    available = available_bytes()
    ways = {name: partial(step, *arrays) for name, step in compiled.items() if needed[name] < available}
    seconds = alternate(ways, rounds)
    rows = []
    for name in compiled:
        row = {"length": length, "implementation": name, "temporaries_gib": needed[name] / GIB}
        if name in ways:
            row |= {f"seconds_{which}": value for which, value in spread(seconds[name]).items()}
        else:
            row["note"] = f"does not fit ({needed[name] / GIB:.1f} GiB)"
        rows.append(row)
    return rows


def runs_here(name: str) -> bool:
    return name != "cudnn" or jax.default_backend() == "gpu"


def compile_step(name: str, arrays: list[jax.Array]) -> Compiled:
    """The output and the gradients of queries, keys and values, as one program."""

    def step(q, k, v, dout):
        out, pull = jax.vjp(partial(nn.attention, causal=True, ctx=nn.Context(attention=name)), q, k, v)
        return out, pull(dout)

    return jax.jit(step).lower(*arrays).compile()


def available_bytes() -> int:
    """Free memory of the device; on a CPU, what the system can give without swapping."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = meminfo.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    main()
