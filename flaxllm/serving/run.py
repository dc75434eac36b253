"""`flaxllm serve`: a model loaded, its programs compiled, and its routes opened until it is told to end."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import uvicorn
from rich.console import Console

from flaxllm.console import lead_console, say, scaled
from flaxllm.data import load_tokenizer
from flaxllm.data.json_file import brief
from flaxllm.errors import InputError
from flaxllm.nn import Context
from flaxllm.pretrained import BASE, from_pretrained
from flaxllm.pretrained.checkpoint import open_checkpoint
from flaxllm.pretrained.load import model_of
from flaxllm.serving.app import make_app
from flaxllm.serving.batch import Batch
from flaxllm.serving.embeddings import Encoder
from flaxllm.serving.metrics import Metrics
from flaxllm.serving.scheduler import Scheduler
from flaxllm.serving.service import Service
from flaxllm.serving.spelling import Spelling

API_KEY = "FLAXLLM_API_KEY"  # the variable that a key is taken from: a command's arguments are seen by all users
_ENCODERS = ("bert",)
_DRAIN_SECONDS = 30


def serve(
    path: str | Path,
    port: int | str = 8000,
    host: str = "127.0.0.1",
    slots: int | str = 8,
    max_len: int | str = 2048,
    max_queue: int | str = 64,
    served_model_name: str | None = None,
    dtype: str | None = None,
    timeout: float | str = 600,
    api_key: str | None = None,
) -> None:
    """Serve a checkpoint until SIGINT or SIGTERM; what is being written then has 30 seconds to end.

    `slots` texts of up to `max_len` tokens (prompt included; of an encoder-decoder, each of the two) are written at once and
    `max_queue` wait; of one request that takes more than `timeout` seconds nothing more is written. `served_model_name` has
    names, separated by commas. `api_key` is asked of every client; it may stand in the environment as FLAXLLM_API_KEY.

    Raises:
      InputError: a value that an option cannot have, an address that is taken, or a checkpoint that cannot be served.
    """
    console = lead_console()
    names = tuple(name.strip() for name in (served_model_name or Path(path).name).split(","))
    if not all(names):
        raise InputError(f"--served_model_name={served_model_name} has an empty name: give names separated by commas")
    sizes = {"slots": (slots, 1), "max_len": (max_len, 2), "max_queue": (max_queue, 1), "timeout": (timeout, 1)}
    slots, max_len, max_queue, timeout = (_whole(name, value, low, 2**31 - 1) for name, (value, low) in sizes.items())
    listening = _bind(host, _whole("port", port, 0, 65535))
    try:
        service = load_service(path, names, slots, max_len, max_queue, dtype, timeout)
        app = make_app(service, api_key or os.environ.get(API_KEY), report=lambda line: say(console, line))
        if service.scheduler is not None:
            say(console, f"compiling for {slots} slots of {service.max_len} tokens")
            service.scheduler.batch.warm_up()
            service.scheduler.start()
        _introduce(console, service, host, listening.getsockname()[1])
        run_app(app, listening)
    finally:
        listening.close()
    say(console, "ended")


def load_service(
    path: str | Path,
    names: tuple[str, ...],
    slots: int,
    max_len: int,
    max_queue: int,
    dtype: str | None = None,
    timeout: float = 600,
) -> Service:
    """A checkpoint made ready; its scheduler does not run yet.

    Raises:
      InputError: it cannot be loaded, or not be served.
    """
    encodes = model_of(open_checkpoint(path)).family in _ENCODERS
    model, params = from_pretrained(path, head=BASE if encodes else None, dtype=dtype)
    tokenizer = load_tokenizer(path)
    scheduler = None if encodes else Scheduler(Batch(model, params, slots, max_len, Context()), max_queue)
    encoder = Encoder(model, params) if encodes else None
    return Service(
        model, tokenizer, names, scheduler, encoder, Metrics(scheduler), Spelling(tokenizer), timeout, int(time.time())
    )


def run_app(app: Any, listening: socket.socket) -> None:
    """Answer at a bound socket until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=_DRAIN_SECONDS
    )
    Server(config).run(sockets=[listening])


class Server(uvicorn.Server):
    """One that takes a signal as the wish to end, and no more: uvicorn's own would raise it again and die of it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        is_main = threading.current_thread() is threading.main_thread()  # no other can be told of signals
        numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise InputError(f"port {port} of {host} cannot be served ({error.strerror}): choose another with --port") from error
    return listening


def _whole(name: str, value: int | float | str, low: int, high: int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise InputError(f"--{name} is {brief(value)}: expected a whole number from {low} to {high}")
    return number


def _introduce(console: Console, service: Service, host: str, port: int) -> None:
    device = jax.devices()[0]
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    name = service.names[0]
    if service.scheduler is not None:
        batch = service.scheduler.batch
        held = f"{batch.num_rows} slots of {batch.max_len} tokens, {scaled(batch.num_bytes, 1024)}B"
        path, body = "completions", f'{{"model": "{name}", "prompt": "Once upon a time", "max_tokens": 32}}'
    else:
        held = f"texts of up to {service.max_len} tokens"
        path, body = "embeddings", f'{{"model": "{name}", "input": "A text."}}'
    say(console, f"serving {', '.join(service.names)} ({service.model.family}) at {where} on {device.device_kind}: {held}")
    say(console, f"  curl {where}/v1/{path} -H 'Content-Type: application/json' -d '{body}'")
