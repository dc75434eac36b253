"""`flaxllm serve` as a process: what it says, how it ends, and what it refuses before it loads anything."""

import builtins
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import jax
import pytest

import flaxllm
from data.frozen_tokenizers import load
from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.nn import Context
from flaxllm.serving import run, serve
from flaxllm.serving.batch import Batch
from serving.live import writer

PROGRAM = """
import sys
from flaxllm.serving import serve
serve(sys.argv[1], port=sys.argv[2], slots="2", max_len="32", served_model_name="tiny, other")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, _, tokenizer = writer()
    folder = tmp_path_factory.mktemp("checkpoint")
    flaxllm.save_pretrained(folder, model, model.init(jax.random.PRNGKey(3)), tokenizer)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_says_where_it_is_and_ends_when_it_is_told_to(folder, number):
    environment = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, "-c", PROGRAM, str(folder), "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        lines = []
        while not lines or "curl" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        assert "serving tiny, other (gpt)" in lines[-2] and "2 slots of 32 tokens" in lines[-2]
        url = re.search(r"http://127\.0\.0\.1:\d+", lines[-2])[0]
        answer = httpx.post(f"{url}/v1/completions", json={"model": "other", "prompt": "secret", "max_tokens": 3}, timeout=60)
        assert answer.status_code == 200
        with httpx.stream("POST", f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 31, "stream": True}) as answer:
            events = answer.iter_lines()
            next(events)
            process.send_signal(number)
            assert [event for event in events if event][-1] == "data: [DONE]"  # what is written is ended first
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, rest
    assert rest.splitlines()[-1] == "ended" and "POST /v1/completions 200" in rest
    assert "Traceback" not in rest and "secret" not in rest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(port="x"), "--port is 'x': expected a whole number from 0 to 65535"),
        (dict(slots=0), "--slots is 0: expected"),
        (dict(max_len="1"), "--max_len is '1'"),
        (dict(max_queue=-1), "--max_queue is -1"),
        (dict(served_model_name="a,,b"), "has an empty name"),
        (dict(dtype="int8", port=0), "dtype"),
        (dict(path="nowhere", port=0), "nowhere"),
    ],
)
def test_what_cannot_be_is_said(folder, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        serve(**{"path": str(folder)} | options)


def test_a_port_that_is_taken_is_said_first():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 cannot be served"):
            serve("nowhere", port=port)


def test_what_cannot_be_served_is_said():
    model = build("t5", dict(vocab_size=50, num_layers=1, num_heads=2, head_dim=4, d_model=8, d_mlp=8), head="encoder")
    with pytest.raises(InputError, match="this t5 model has the head 'encoder', which writes no text"):
        Batch(model, {}, 2, 32, Context())


@pytest.mark.parametrize("name", ["starlette", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_named(monkeypatch, name):
    real = builtins.__import__

    def without(wanted, *rest, **named):
        if wanted == name:
            raise ImportError(f"No module named {name!r}", name=name)
        return real(wanted, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=rf"serving needs {name}, .*pip install 'flaxllm\[serve\]'"):
        serve("nowhere")


def test_encoders_are_loaded_without_a_head(tmp_path):
    sizes = dict(vocab_size=500, max_len=64, num_layers=1, num_heads=2, head_dim=4, d_model=8, d_mlp=8)
    model = build("bert", sizes)
    flaxllm.save_pretrained(tmp_path, model, model.init(jax.random.PRNGKey(0)), load("bert"))
    service = run.load_service(tmp_path, ("tiny",), 2, 32, 4)
    assert service.scheduler is None and service.encoder.model.head is None
    assert service.encoder([service.encode(["a"], "input")[0]]).shape == (1, 8)
