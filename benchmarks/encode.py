"""Sentences a second of MiniLM, against transformers in torch and ONNX Runtime on the same cores.

    pip install -e '.[parity]' onnx onnxruntime && python benchmarks/encode.py

From token ids and a mask to the normalised mean of the hidden states, in float32, for batches of 1 and 32 full rows of 16
to 256 tokens. Each contender is a process of its own with its library's default threads; a round lets each take a turn of
at least half a second on every shape. They first show that they give the same vectors. ONNX Runtime gets the graph that
torch exports, with all of its own optimizations on. flaxllm has its layers unstacked, and works through a batch a thousand
tokens at a time (`nn.map_parts`), so that what a layer computes stays in the cache. All have huge pages from glibc
(flaxllm/memory.py), unless --small_pages.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from measure import conditions, report, spread
from processes import ask, serve, start

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

SHAPES = [(batch, length) for batch in (1, 32) for length in (16, 64, 128, 256)]
TURN_SECONDS = 0.5
TOKENS_AT_A_TIME = 1024

Encode = Callable[[np.ndarray, np.ndarray], np.ndarray]  # tokens and mask to vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", help="path of the JSON (default: benchmarks/results/encode.json)")
    parser.add_argument("--small_pages", action="store_true", help="leave glibc as it is")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        serve(_answers(CONTENDERS[arguments.contender]()))
        return
    names = list(CONTENDERS)
    pages = {} if arguments.small_pages else {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    processes = {name: start(__file__, name, os.environ | pages) for name in names}
    for shape in SHAPES:
        vectors = {name: np.array(ask(process, "vectors", *shape)) for name, process in processes.items()}
        for name in names:
            np.testing.assert_allclose(vectors[name], vectors["torch"], atol=1e-5, err_msg=f"{name} at {shape}")
    seconds = {(name, shape): [] for shape in SHAPES for name in names}
    for number in range(arguments.rounds):
        for shape in SHAPES:
            for name in names[number % len(names) :] + names[: number % len(names)]:
                seconds[name, shape].append(ask(processes[name], "turn", *shape))
    for process in processes.values():
        process.kill()
    where = conditions() | {package: version(package) for package in ("torch", "transformers", "onnxruntime")}
    where |= {"rounds": arguments.rounds, "huge_pages": not arguments.small_pages}
    report("encode", where, [_row(shape, seconds) for shape in SHAPES], arguments.out)


def _row(shape: tuple[int, int], seconds: dict) -> dict:
    times = {name: spread(seconds[name, shape]) for name in CONTENDERS}
    ours = times["flaxllm"]["median"]
    return {
        "batch": shape[0],
        "length": shape[1],
        **{f"{name} sentences/s": shape[0] / of["median"] for name, of in times.items()},
        **{f"of {name}": of["median"] / ours for name, of in times.items() if name != "flaxllm"},
        "slowest / fastest turn": times["flaxllm"]["max"] / times["flaxllm"]["min"],
    }


def _answers(encode: Encode) -> Callable[..., object]:
    def answer(what: str, batch: int, length: int) -> object:
        tokens = np.random.default_rng(0).integers(1000, 30000, (batch, length))
        mask = np.ones_like(tokens)
        return encode(tokens, mask).tolist() if what == "vectors" else _turn(lambda: encode(tokens, mask))

    return answer


def _turn(call: Callable[[], object]) -> float:
    """Seconds of a call, the mean over a turn; the first is not counted."""
    call()
    begin, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - begin < TURN_SECONDS:
        call()
        calls += 1
    return (time.perf_counter() - begin) / calls


def _flaxllm() -> Encode:
    import jax
    import jax.numpy as jnp

    from flaxllm import nn
    from flaxllm.pretrained import from_pretrained
    from real_weights import minilm_folder

    model, params = from_pretrained(minilm_folder())
    params = nn.unstack(params)

    def encode_rows(params: dict, tokens: jax.Array, valid: jax.Array) -> jax.Array:
        hidden = model.apply(params, tokens, valid=valid).hidden
        mean = jnp.einsum("btd,bt->bd", hidden, valid) / valid.sum(1)[:, None]
        return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)

    @jax.jit
    def encode(params: dict, tokens: jax.Array, valid: jax.Array) -> jax.Array:
        rows = max(1, TOKENS_AT_A_TIME // tokens.shape[1])
        return nn.map_parts(lambda part: encode_rows(params, *part), (tokens, valid), rows)

    return lambda tokens, mask: np.asarray(encode(params, tokens, mask.astype(bool)))


def _encoder():
    """MiniLM in torch with the mean and the norm, as a module from (tokens, mask)."""
    import torch
    from transformers import BertModel, logging

    logging.disable_progress_bar()

    from real_weights import minilm_folder

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = BertModel.from_pretrained(minilm_folder()).eval()

        def forward(self, tokens, mask):
            hidden = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
            weights = mask[..., None].to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1))

    return Encoder()


def _torch() -> Encode:
    import torch

    encoder = _encoder()

    @torch.inference_mode()
    def encode(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return encoder(torch.from_numpy(tokens), torch.from_numpy(mask)).numpy()

    return encode


def _onnxruntime() -> Encode:
    import onnxruntime
    import torch

    example = (torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long))
    axes = {name: {0: "batch", 1: "length"} for name in ("tokens", "mask")}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/encoder.onnx"
        torch.onnx.export(
            _encoder(), example, path, input_names=list(axes), output_names=["vectors"], dynamic_axes=axes, dynamo=False
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda tokens, mask: session.run(None, {"tokens": tokens, "mask": mask})[0]


CONTENDERS = {"flaxllm": _flaxllm, "torch": _torch, "onnxruntime": _onnxruntime}

if __name__ == "__main__":
    main()
