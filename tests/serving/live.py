"""A server of a tiny model in a thread of this process, and what tests ask it."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import httpx
import jax
import uvicorn

from data.frozen_tokenizers import load
from flaxllm.data import Tokenizer
from flaxllm.decoding import generate, prepare
from flaxllm.models import Model, build
from flaxllm.nn import Context
from flaxllm.serving.app import make_app
from flaxllm.serving.batch import Batch
from flaxllm.serving.metrics import Metrics
from flaxllm.serving.run import Server
from flaxllm.serving.scheduler import Scheduler
from flaxllm.serving.service import Service
from flaxllm.serving.spelling import Spelling

SLOTS, MAX_LEN, MAX_QUEUE = 4, 128, 6
NAMES = ("tiny", "text-davinci-003")
VOCAB = 520  # more than the tokenizer has


@cache
def writer() -> tuple[Model, dict, Tokenizer]:
    """A GPT of random weights whose texts are varied, with a byte-level BPE that has a chat template."""
    sizes = dict(vocab_size=VOCAB, max_len=MAX_LEN, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=32)
    model = build("gpt", sizes | dict(init_stddev=0.4, eos_token=500))
    return model, prepare(model, model.init(jax.random.PRNGKey(3))), load("qwen2")


@dataclass
class Live:
    """A server that answers at `url`."""

    url: str
    service: Service
    lines: list[str]

    def post(self, path: str, expected: int = 200, **body: object) -> dict:
        answer = httpx.post(f"{self.url}{path}", json=body, timeout=60)
        assert answer.status_code == expected, answer.text
        return answer.json()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=60)

    def complete(self, prompt: object, **body: object) -> dict:
        return self.post("/v1/completions", prompt=prompt, **body)

    def chunks(self, path: str = "/v1/completions", **body: object) -> list[dict]:
        """What a stream sends, without its end."""
        with httpx.stream("POST", f"{self.url}{path}", json=body | {"stream": True}, timeout=60) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]

    def wait_until_idle(self) -> None:
        scheduler = self.service.scheduler
        wait_for(lambda: scheduler.num_waiting == 0 and scheduler.batch.num_active == 0 and scheduler.batch.is_idle)


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def make_service(timeout: float = 60, max_queue: int = MAX_QUEUE) -> Service:
    model, params, tokenizer = writer()
    scheduler = Scheduler(Batch(model, params, SLOTS, MAX_LEN, Context()), max_queue)
    spelling = Spelling(tokenizer)
    return Service(model, tokenizer, NAMES, scheduler, None, Metrics(scheduler), spelling, timeout, 0)


@contextmanager
def running(service: Service, api_key: str | None = None) -> Iterator[Live]:
    """The service at a port of its own."""
    lines: list[str] = []
    if service.scheduler is not None:
        service.scheduler.start()
    app = make_app(service, api_key, lines.append)
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    wait_for(lambda: server.started)
    yield Live(f"http://127.0.0.1:{listening.getsockname()[1]}", service, lines)
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()
    listening.close()


def tokens_of(text: str) -> list[int]:
    return writer()[2](text).tokens[0].tolist()


def offline(prompts: list[list[int]], max_new: int, seed: int = 0, **options: object) -> list[list[int]]:
    """What `generate` writes after these prompts in as many rows as the server has."""
    model, params, _ = writer()
    written = []
    for begin in range(0, len(prompts), SLOTS):
        rows = prompts[begin : begin + SLOTS]
        rows = rows + rows[:1] * (SLOTS - len(rows))
        written += generate(model, params, rows, max_new, seeds=list(range(seed + begin, seed + begin + SLOTS)), **options).rows()
    return written[: len(prompts)]


def decoded(tokens: list[int]) -> str:
    """The text of tokens that only the model has, or that end it, left out."""
    return writer()[2].decode([token for token in tokens if token < 500 or token == 503])
