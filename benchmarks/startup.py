"""How long a person waits: from the command to the first step, and compile time against depth.

    python benchmarks/startup.py

The command is `launch.py` with the quickstart experiment, its corpus already tokenized; the time is that until
`metrics.jsonl` has its first line. Compile time is that of the whole train step at GPT-2's width (batch 4 x 256), with
the layers scanned, as in training, and unrolled.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from measure import conditions, report, spread

from flaxllm.models import preset
from flaxllm.nn import Context
from flaxllm.objectives import causal_lm
from flaxllm.training import default_config
from flaxllm.training.optimizer import make_optimizer, make_schedule
from flaxllm.training.state import make_state
from flaxllm.training.step import train_step

ROOT = Path(__file__).parents[1]
DEPTHS = (12, 24, 48)
BATCH, LENGTH = 4, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="path of the JSON (default: benchmarks/results/startup.json)")
    arguments = parser.parse_args()
    time_to_first_step()  # tokenizes
    rows = [_row("command to first step", [time_to_first_step() for _ in range(arguments.rounds)])]
    compiles = {(depth, unrolled): [] for unrolled in (False, True) for depth in DEPTHS}
    for _ in range(arguments.rounds):
        for way, seconds in compiles.items():
            seconds.append(compile_time(*way))
    rows += [_row(f"compile {depth} layers, {'unrolled' if unrolled else 'scanned'}", seconds)
             for (depth, unrolled), seconds in compiles.items()]  # fmt: skip
    report("startup", conditions() | {"rounds": arguments.rounds}, rows, arguments.out)


def _row(what: str, seconds: list[float]) -> dict:
    return {"what": what} | {f"{name} s": value for name, value in spread(seconds).items()}


def time_to_first_step() -> float:
    with tempfile.TemporaryDirectory() as workdir:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "launch.py", "--config=experiments/quickstart.py", f"--workdir={workdir}"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        metrics = Path(workdir) / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        process.kill()
        process.wait()
    return seconds


def compile_time(depth: int, unrolled: bool) -> float:
    """Seconds to trace, lower and compile a train step, on shapes alone."""
    jax.clear_caches()
    model = preset("gpt2-124m", num_layers=depth)
    config = default_config("gpt2-124m").optimizer
    optimizer = make_optimizer(config, make_schedule(config, 1000), model.param_specs())
    objective = causal_lm(model, None, LENGTH)
    terms = objective.terms

    def unrolled_terms(params: dict, batch: dict, ctx: Context) -> dict:
        layers = tuple(jax.tree.map(lambda x: x[layer], params["layers"]) for layer in range(depth))
        return terms(params | {"layers": layers}, batch, ctx)

    step = partial(
        train_step,
        objective=objective._replace(terms=unrolled_terms) if unrolled else objective,
        optimizer=optimizer,
        ctx=Context(),
        micro_batches=1,
        reduce=lambda tree: tree,
    )
    whole = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    batch = dict.fromkeys(("tokens", "targets", "segments", "positions"), whole) | {
        "weights": jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.float32),
        "row": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    }
    state = jax.eval_shape(lambda: make_state(model.init, optimizer, 0))
    start = time.perf_counter()
    jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
