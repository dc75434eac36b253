"""Tokens a second of the server with 1, 8 and 32 clients that stream, against `generate` with as many rows.

    pip install -e '.[serve,test]' && python benchmarks/serve.py

GPT-2 124M with random weights. Each client asks for a text again as soon as it has one, after a prompt of its own; the
server has as many slots as there are clients, and they are in another process, as they would be. In turn with that `generate`
writes as many texts of the same lengths at once, with the server's parameters and at rest meanwhile. Every stream must have
all of its tokens. Each token is a character of its own, and the one that ends a text is beyond the model's vocabulary.
"""

import argparse
import json
import multiprocessing
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import jax
import numpy as np
import uvicorn
from measure import conditions, report, spread

from flaxllm import preset
from flaxllm.data import char_level
from flaxllm.decoding import generate, prepare
from flaxllm.nn import Context
from flaxllm.serving.app import make_app
from flaxllm.serving.batch import Batch
from flaxllm.serving.metrics import Metrics
from flaxllm.serving.run import Server
from flaxllm.serving.scheduler import Scheduler
from flaxllm.serving.service import Service
from flaxllm.serving.spelling import Spelling

SMALL = dict(num_layers=4, num_heads=4, head_dim=32, d_model=128, d_mlp=512, vocab_size=8000)
FIRST_CHARACTER = 0x10000  # beyond the surrogates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=2, help="texts that each client asks for in a round")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=96, help="tokens of a text")
    parser.add_argument("--small", action="store_true", help="a model of 2 million parameters")
    parser.add_argument("--out", help="path of the JSON (default: benchmarks/results/serve.json)")
    arguments = parser.parse_args()
    model = preset("gpt2-124m", **(SMALL if arguments.small else {}))
    params = prepare(model, model.init(jax.random.PRNGKey(0)))
    rows = [_measure(model, params, clients, arguments) for clients in arguments.clients]
    asked = {name: getattr(arguments, name) for name in ("rounds", "texts", "prompt", "new", "small")}
    report("serve", conditions() | asked, rows, arguments.out)


def _measure(model, params: dict, clients: int, arguments: argparse.Namespace) -> dict:
    tokenizer = char_level([chr(FIRST_CHARACTER + token) for token in range(model.config.vocab_size)])
    batch = Batch(model, params, clients, arguments.prompt + arguments.new, Context())
    batch.warm_up()
    scheduler = Scheduler(batch, 2 * clients)
    scheduler.start()
    spelling = Spelling(tokenizer)
    service = Service(model, tokenizer, ("gpt2",), scheduler, None, Metrics(scheduler), spelling, 600, 0)
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(uvicorn.Config(make_app(service), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/completions"
    prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, (clients, arguments.prompt)).tolist()
    served, offline, first = [], [], []
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for number in range(arguments.rounds + 1):  # the first is not counted
            seconds, to_first = pool.apply(_ask_all, (url, prompts, arguments.texts, arguments.new))
            begin = time.perf_counter()
            for _ in range(arguments.texts):
                lengths = generate(model, params, prompts, arguments.new, temperature=0, stop_tokens=()).lengths
                assert (lengths == arguments.new).all()
            if number:
                served.append(seconds)
                offline.append(time.perf_counter() - begin)
                first += to_first
    server.should_exit = True
    thread.join()
    tokens = clients * arguments.texts * arguments.new
    return {
        "clients": clients,
        "served tokens/s": tokens / spread(served)["median"],
        "offline tokens/s": tokens / spread(offline)["median"],
        "share of offline": statistics.median(theirs / ours for ours, theirs in zip(served, offline)),
        "first token ms, median": 1e3 * statistics.median(first),
        "first token ms, worst": 1e3 * max(first),
    }


def _ask_all(url: str, prompts: list[list[int]], texts: int, new: int) -> tuple[float, list[float]]:
    """Seconds until all clients have all their texts, and to the first token of each."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool, httpx.Client(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        times = pool.map(lambda prompt: [_ask(client, url, prompt, new) for _ in range(texts)], prompts)
        firsts = [first for of_client in times for first in of_client]
    return time.perf_counter() - begin, firsts


def _ask(client: httpx.Client, url: str, prompt: list[int], new: int) -> float:
    options = {"max_tokens": new, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    begin, first, usage = time.perf_counter(), None, None
    with client.stream("POST", url, json={"prompt": prompt} | options) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - begin
                usage = json.loads(line.removeprefix("data: "))["usage"] or usage
    assert usage["completion_tokens"] == new, usage
    return first


if __name__ == "__main__":
    main()
