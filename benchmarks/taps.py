"""What one tap costs: a forward pass that returns it, beside one that returns none.

    python benchmarks/taps.py

Hidden states of MiniLM's shape (32 rows of 64 tokens) and of GPT-2 124M's (1 row of 256), in float32, with random
parameters, by alternating calls. A tap has to be written down: beside what it adds stands the time of a copy of as many
bytes into new memory (each read once and written once). Attention is the einsum in all, which shows its weights. The
process has huge pages from glibc (flaxllm/memory.py).
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from measure import alternate, conditions, report, spread

from flaxllm.memory import restart_with_huge_pages
from flaxllm.models import Model, preset
from flaxllm.nn import Context, Taps

MINILM = preset("bert-base", num_layers=6, num_heads=12, head_dim=32, d_model=384, d_mlp=1536)
SHAPES = {"MiniLM": (MINILM, 32, 64), "GPT-2 124M": (preset("gpt2-124m"), 1, 256)}
TAPS = ("layers/out", "layers/attention/weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", help="path of the JSON (default: benchmarks/results/taps.json)")
    arguments = parser.parse_args()
    restart_with_huge_pages()
    where = conditions() | {"rounds": arguments.rounds}
    rows = [row for name in SHAPES for row in _rows(name, *SHAPES[name], arguments.rounds)]
    report("taps", where, rows, arguments.out)


def _rows(shape: str, model: Model, batch: int, length: int, rounds: int) -> list[dict]:
    params = model.init(jax.random.PRNGKey(0))
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, length))
    tapped = {name: _forward(model, (name,)) for name in TAPS}
    values = {name: forward(params, tokens)[1][name] for name, forward in tapped.items()}
    copy = jax.jit(lambda x: x + 1.0)
    ways = {"none": partial(_forward(model, ()), params, tokens)}
    ways |= {name: partial(forward, params, tokens) for name, forward in tapped.items()}
    ways |= {f"copy of {name}": partial(copy, value) for name, value in values.items()}
    seconds = alternate(ways, rounds)
    return [_row(shape, name, seconds, values[name].nbytes) for name in TAPS]


def _row(shape: str, name: str, seconds: dict[str, list[float]], size: int) -> dict:
    added = [tapped - plain for tapped, plain in zip(seconds[name], seconds["none"])]
    copied = spread(seconds[f"copy of {name}"])["median"]
    return {
        "shape": shape,
        "tap": name,
        "MB": size / 1e6,
        "ms without": 1e3 * spread(seconds["none"])["median"],
        "ms with": 1e3 * spread(seconds[name])["median"],
        "ms added (median of rounds)": 1e3 * statistics.median(added),
        "ms of a copy": 1e3 * copied,
        "GB/s of a copy": 2e-9 * size / copied,
    }


def _forward(model: Model, names: tuple[str, ...]) -> Callable:
    ctx = Context(taps=Taps(returned=names) if names else None, attention="einsum")

    @jax.jit
    def forward(params: dict, tokens: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        output = model.apply(params, tokens, ctx=ctx)
        return output.hidden, output.taps

    return forward


if __name__ == "__main__":
    main()
