"""One optimizer step of GPT-2 124M in float32, against torch and against the floor that matrix products set.

    pip install -e '.[parity]' && python benchmarks/train_step.py

flaxllm runs as launch.py does, with huge pages from glibc (flaxllm/memory.py); --huge_pages gives them to every contender.
A batch of 4 x 256 random tokens, AdamW with clipping at 1, no dropout. Each contender is a process of its own. A round
lets each take three steps, of which the first is not counted: it brings caches and memory back, which a virtual machine
may have given away meanwhile. The peers are transformers' GPT2LMHeadModel, eager and under torch.compile, with torch's
fused AdamW. The floor is the time that the step's matrix products would take at the best rate that jax, torch or numpy
reaches on a 4096-cubed product in the same rounds.
"""

import argparse
import os
import time
from collections.abc import Callable

from measure import conditions, report, spread
from processes import ask, serve, start

BATCH, LENGTH, VOCAB = 4, 256, 50257
CUBE = 4096
COUNTED_STEPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", help="path of the JSON (default: in benchmarks/results)")
    parser.add_argument("--huge_pages", action="store_true", help="huge pages for every contender")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        serve(_answers(CONTENDERS[arguments.contender]()))
        return
    processes, first = {}, {}
    for name in CONTENDERS:  # one after another: none compiles while another is timed
        huge_pages = arguments.huge_pages or name == "flaxllm"
        pages = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if huge_pages else {}
        processes[name] = start(__file__, name, os.environ | pages)
        first[name] = ask(processes[name], "first")
    seconds = {name: [] for name in CONTENDERS}
    for number in range(arguments.rounds):
        for name in _rotated(list(CONTENDERS), number):
            seconds[name].append(ask(processes[name], "turn"))
    for process in processes.values():
        process.kill()
    name = "train_step_huge_pages" if arguments.huge_pages else "train_step"
    where = conditions() | _torch_versions() | {"huge_pages": arguments.huge_pages, "rounds": arguments.rounds}
    report(name, where, list(_rows(seconds, first)), arguments.out)


def _rows(seconds: dict[str, list[float]], first: dict[str, float]):
    from flaxllm.models import preset

    operations = 3 * preset("gpt2-124m").matmul_flops(BATCH * LENGTH, LENGTH)
    products = {name: values for name, values in seconds.items() if name.startswith("product")}
    best_rate = 2 * CUBE**3 / min(min(values) for values in products.values())
    for name, values in seconds.items():
        times = spread(values)
        row = {"contender": name, "seconds": times["median"], "min": times["min"], "max": times["max"]}
        if name in products:
            yield row | {"GFLOP/s": 2 * CUBE**3 / times["min"] / 1e9}
            continue
        yield row | {
            "tokens/s": BATCH * LENGTH / times["median"],
            "GFLOP/s": operations / times["median"] / 1e9,
            "share of floor": operations / best_rate / times["median"],
            "first step": first[name],
        }


def _rotated(names: list[str], number: int) -> list[str]:
    first = number % len(names)
    return names[first:] + names[:first]


def _answers(step: Callable[[], None]) -> Callable[[str], float]:
    """The seconds of the first step, with all compilation, or those of a step in a turn."""

    def answer(question: str) -> float:
        seconds = _seconds_of(step)
        if question == "first":
            return seconds
        return sum(_seconds_of(step) for _ in range(COUNTED_STEPS)) / COUNTED_STEPS

    return answer


def _seconds_of(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _flaxllm() -> Callable[[], None]:
    from functools import partial

    import jax
    import numpy as np

    from flaxllm.nn import Context
    from flaxllm.objectives import causal_lm
    from flaxllm.parallel import make_mesh, mesh_placement
    from flaxllm.training import default_config
    from flaxllm.training.config import make_model
    from flaxllm.training.optimizer import make_optimizer, make_schedule
    from flaxllm.training.state import make_state
    from flaxllm.training.step import train_step

    config = default_config("gpt2-124m")
    model = make_model(config, VOCAB)
    specs = model.param_specs()
    placement = mesh_placement(make_mesh("data:-1"), specs)
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, 1000), specs)
    step = partial(
        train_step,
        objective=causal_lm(model, None, LENGTH),
        optimizer=optimizer,
        ctx=Context(),
        micro_batches=1,
        reduce=placement.reduce,
    )
    compiled = placement.compile(step, returns_state=True)
    state = placement.create(lambda: make_state(model.init, optimizer, 0))
    shape, tokens = (BATCH, LENGTH), np.random.default_rng(0).integers(0, VOCAB, (BATCH, LENGTH + 1), np.int32)
    batch = placement.batch({
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones(shape, np.float32),
        "segments": np.ones(shape, np.int32),
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape),
        "row": np.arange(BATCH, dtype=np.int32),
    })

    def step_in_place() -> None:
        nonlocal state
        state, _ = compiled(state, batch)
        jax.block_until_ready(state)

    return step_in_place


def _torch(compiled: bool) -> Callable[[], None]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(0, VOCAB, (BATCH, LENGTH))
    call = torch.compile(model) if compiled else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        call(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def _jax_product() -> Callable[[], None]:
    import jax
    import jax.numpy as jnp

    x = jnp.ones((CUBE, CUBE))
    product = jax.jit(jnp.matmul)
    return lambda: product(x, x).block_until_ready()


def _torch_product() -> Callable[[], None]:
    import torch

    x = torch.ones(CUBE, CUBE)
    return lambda: x @ x


def _numpy_product() -> Callable[[], None]:
    import numpy as np

    x = np.ones((CUBE, CUBE), np.float32)
    return lambda: x @ x


def _torch_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in ("torch", "transformers")}


CONTENDERS = {
    "flaxllm": _flaxllm,
    "torch eager": lambda: _torch(compiled=False),
    "torch compile": lambda: _torch(compiled=True),
    "product, jax": _jax_product,
    "product, torch": _torch_product,
    "product, numpy": _numpy_product,
}

if __name__ == "__main__":
    main()
