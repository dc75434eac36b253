"""Time and memory of the language-model loss and its gradient: what the product chooses, against the plain form.

    python benchmarks/loss.py

Vocabularies of 50k and 250k, 512 and 8192 tokens, width 768, float32. "plain" is log-softmax and a gather, as it is
written down; "whole" is `cross_entropy` with all the logits at once; "chunked" holds at most `--chunk_bytes` of them.
Memory is what the compiled program sets aside beside its inputs and outputs.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
from measure import alternate, conditions, report, spread

from flaxllm.objectives.cross_entropy import chunks_needed, cross_entropy

WIDTH, ROW = 768, 512
VOCABULARIES, TOKENS = (50_257, 250_112), (512, 8192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk_bytes", type=int, default=2**28)
    parser.add_argument("--max_bytes", type=int, default=12 * 2**30, help="what needs more is not run")
    parser.add_argument("--out", help="path of the JSON (default: benchmarks/results/loss.json)")
    arguments = parser.parse_args()
    rows = []
    for vocab_size in VOCABULARIES:
        for tokens in TOKENS:
            rows.extend(_compare(vocab_size, tokens, arguments))
    report("loss", conditions() | {"rounds": arguments.rounds, "chunk_bytes": arguments.chunk_bytes}, rows, arguments.out)


def _compare(vocab_size: int, tokens: int, arguments: argparse.Namespace) -> list[dict]:
    batch = tokens // ROW
    chunks = chunks_needed(batch, ROW, vocab_size, arguments.chunk_bytes)
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    inputs = (
        jax.random.normal(keys[0], (batch, ROW, WIDTH)),
        0.02 * jax.random.normal(keys[1], (vocab_size, WIDTH)),
        jax.random.randint(keys[2], (batch, ROW), 0, vocab_size),
    )
    losses = {"plain": _plain, "whole": partial(_ours, chunks=1), "chunked": partial(_ours, chunks=chunks)}
    compiled = {
        name: jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*inputs).compile() for name, loss in losses.items()
    }
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in compiled.items()}
    runnable = {
        name: partial(program, *inputs) for name, program in compiled.items() if memory[name] <= arguments.max_bytes
    }
    seconds = alternate(runnable, arguments.rounds)
    for name, program in runnable.items():
        print(f"{vocab_size} x {tokens}, {name}: loss {float(program()[0]):.6f}", flush=True)
    return [
        {"vocabulary": vocab_size, "tokens": tokens, "loss": name, "chunks": chunks if name == "chunked" else 1}
        | {"memory MiB": round(memory[name] / 2**20)}
        | ({"seconds": spread(seconds[name])["median"]} if name in seconds else {"seconds": "does not fit"})
        | ({"of plain": _ratio(seconds, name)} if {"plain", name} <= seconds.keys() else {})
        for name in losses
    ]


def _ratio(seconds: dict[str, list[float]], name: str) -> float:
    return spread(seconds[name])["median"] / spread(seconds["plain"])["median"]


def _plain(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(hidden @ table.T)
    return -jnp.take_along_axis(log_probabilities, targets[..., None], -1).mean()


def _ours(hidden: jax.Array, table: jax.Array, targets: jax.Array, chunks: int) -> jax.Array:
    term = cross_entropy(lambda h: h @ table.T, hidden, targets, jnp.ones(targets.shape), chunks=chunks)["loss"]
    return term.sum / term.weight


if __name__ == "__main__":
    main()
