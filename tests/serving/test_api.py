"""What is true of all routes: names, keys, errors, limits, clients that go, what is counted."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.live import MAX_LEN, MAX_QUEUE, NAMES, SLOTS, Live, make_service, running, tokens_of, wait_for

CHAT = [{"role": "user", "content": "Hi"}]
LONG = dict(prompt="a", max_tokens=MAX_LEN - 1, logit_bias={"500": -100})


def test_the_models_are_named(live):
    assert [model["id"] for model in live.get("/v1/models").json()["data"]] == list(NAMES)
    assert live.get(f"/v1/models/{NAMES[1]}").json()["id"] == NAMES[1]
    assert live.complete("a", max_tokens=1, model=NAMES[1])["model"] == NAMES[1]
    assert live.post(f"/v1/engines/{NAMES[1]}/completions", prompt="a", max_tokens=1)["model"] == NAMES[1]
    assert live.complete("a", max_tokens=1)["model"] == NAMES[0]
    for answer in (
        live.get("/v1/models/gpt-4").json(),
        live.post("/v1/completions", 404, prompt="a", model="gpt-4"),
        live.post("/v1/engines/gpt-4/completions", 404, prompt="a"),
        live.post("/v1/chat/completions", 404, messages=CHAT, model="gpt-4"),
    ):
        assert answer["error"]["code"] == "model_not_found" and answer["error"]["param"] == "model"


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("completions", dict(suffix="b"), "suffix", "not before a suffix"),
        ("completions", dict(tempreature=1), "tempreature", "did you mean 'temperature'"),
        ("completions", dict(top_k=5), "top_k", "there is no parameter 'top_k'"),
        ("completions", dict(temperature=2.1), "temperature", "expected a number from 0 to 2"),
        ("completions", dict(temperature=True), "temperature", "expected a number"),
        ("completions", dict(max_tokens=1.0), "max_tokens", "expected a whole number"),
        ("completions", dict(max_tokens=-1), "max_tokens", "expected a whole number"),
        ("completions", dict(n=0), "n", "expected a whole number from 1 to 128"),
        ("completions", dict(best_of=2, n=3), "best_of", "n is 3"),
        ("completions", dict(best_of=2, stream=True), "best_of", "cannot be streamed"),
        ("completions", dict(prompt=["a"] * 3, n=100), "n", "more than the 256"),
        ("completions", dict(stop=["a"] * 17), "stop", "up to 16"),
        ("completions", dict(stop=""), "stop", "none of them empty"),
        ("completions", dict(logprobs=6), "logprobs", "from 0 to 5"),
        ("completions", dict(logit_bias={"520": 1}), "logit_bias", "has the token 520"),
        ("completions", dict(logit_bias={"a": 1}), "logit_bias", "expected an object"),
        ("completions", dict(logit_bias={"1": 101}), "logit_bias", "from -100 to 100"),
        ("completions", dict(prompt=[1, 520]), "prompt", "has the token 520"),
        ("completions", dict(prompt=[]), "prompt", "expected a string"),
        ("completions", dict(prompt=["a", [1]]), "prompt", "expected a string"),
        ("completions", dict(seed=2**63), "seed", "expected a whole number"),
        ("completions", dict(stream_options={"include_usage": True}), "stream_options", "for streams"),
        ("completions", dict(stream=True, stream_options={"x": True}), "stream_options", "include_usage"),
        ("completions", dict(user=3), "user", "expected a string"),
        ("chat/completions", dict(messages=[]), "messages", "a list of messages"),
        ("chat/completions", dict(messages=None), "messages", "missing"),
        ("chat/completions", dict(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages", "no text"),
        ("chat/completions", dict(top_logprobs=2), "top_logprobs", "needs logprobs"),
        ("chat/completions", dict(max_tokens=2, max_completion_tokens=3), "max_tokens", "differ"),
        ("chat/completions", dict(tool_choice="required"), "tool_choice", "'auto' or 'none'"),
        ("chat/completions", dict(response_format={"type": "json_object"}), "response_format", "type 'text'"),
        ("chat/completions", dict(functions=[]), "functions", "describe functions as tools"),
        ("chat/completions", dict(max_tokens=MAX_LEN), "max_tokens", str(MAX_LEN)),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(live, path, body, param, message):
    given = {"prompt": "a"} if path == "completions" else {"messages": CHAT}
    error = live.post(f"/v1/{path}", 400, **given | body)["error"]
    assert error["param"] == param and message in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"prompt": "a", "temperature": NaN}', 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": ' + b"[" * 100_000, 400),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400),
        (b"\xff\xfe", 400),
        (b" " * (8 * 2**20 + 1), 413),
    ],
)
def test_what_is_no_request_is_refused(live, body, status):
    answer = httpx.post(f"{live.url}/v1/completions", content=body, timeout=60)
    assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_routes_that_are_not_there(live):
    assert live.get("/v1/nothing").status_code == 404 and "/v1/nothing" in live.get("/v1/nothing").json()["error"]["message"]
    assert live.get("/v1/completions").status_code == 405
    assert live.post("/v1/embeddings", 404, input="a")["error"]["type"] == "invalid_request_error"


def test_the_tokenizer_answers(live):
    text = "Hello <|im_end|> wörld"
    answer = live.post("/tokenize", prompt=text, return_token_strs=True)
    assert answer["tokens"] == tokens_of(text) and answer["count"] == len(tokens_of(text))
    assert answer["max_model_len"] == MAX_LEN and len(answer["token_strs"]) == answer["count"]
    assert live.post("/detokenize", tokens=answer["tokens"]) == {"prompt": text}
    assert live.post("/detokenize", tokens=[500, 519])["prompt"] == "<|endoftext|>"
    assert live.post("/tokenize", 400)["error"]["param"] == "prompt"
    info = live.get("/tokenizer_info").json()
    assert (info["eos_token"], info["eos_token_id"]) == ("<|im_end|>", 502) and "im_start" in info["chat_template"]


def test_what_is_done_is_counted(live):
    def value(name: str) -> float:
        lines = live.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = ("requests_total", "prompt_tokens_total", "completion_tokens_total", "time_to_first_token_seconds_count")
    before = [value(f"flaxllm_{name}") for name in names]
    live.complete("Hello there, how", max_tokens=5, logit_bias={"500": -100})
    live.post("/v1/completions", 400, suffix="b")
    wait_for(lambda: value("flaxllm_requests_total") >= before[0] + 3)
    assert [value(f"flaxllm_{name}") - was for name, was in zip(names[1:], before[1:])] == [9, 5, 1]
    assert value('flaxllm_requests_total{code="400",path="/v1/completions"}') >= 1
    assert value("flaxllm_slots") == SLOTS and value("flaxllm_queue_length") == 0
    assert live.lines[-1].startswith("GET /metrics 200") and not any("Hello" in line for line in live.lines)


def test_where_the_queue_is_full_clients_are_to_come_again(live):
    scheduler = live.service.scheduler
    blocked = threading.Event()
    scheduler.run(lambda: blocked.wait(30))  # nothing is written meanwhile
    try:
        with ThreadPoolExecutor(2) as pool:
            pool.submit(lambda: live.post("/v1/completions", prompt="a", max_tokens=1, n=MAX_QUEUE))
            wait_for(lambda: scheduler.num_waiting == MAX_QUEUE)
            answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "a", "max_tokens": 1}, timeout=60)
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "queue_full"
            answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "a", "stream": True}, timeout=60)
            assert answer.status_code == 429
            blocked.set()
    finally:
        blocked.set()
    live.wait_until_idle()
    live.complete(["a"] * (MAX_QUEUE + 3), max_tokens=1)  # where nobody waits there may be more


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_go_free_their_slots(live, stream):
    scheduler = live.service.scheduler
    ended = []
    submit = scheduler.submit

    def watched(jobs):
        for job in jobs:
            job.on_end = lambda how, on_end=job.on_end: (ended.append(how), on_end(how))
        submit(jobs)

    scheduler.submit = watched
    go = threading.Event()
    scheduler.run(lambda: go.wait(30))
    try:
        with httpx.Client(timeout=60) as client:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{live.url}/v1/completions", json=LONG | {"n": SLOTS + 2, "stream": stream}, timeout=0.5)
        wait_for(lambda: all(job.cancelled for job in scheduler._waiting) and scheduler.num_waiting)
    finally:
        go.set()
        scheduler.submit = submit
    live.wait_until_idle()
    assert ended == ["cancelled"] * (SLOTS + 2)
    assert live.complete("a", max_tokens=2)["choices"]


def test_a_client_that_goes_in_the_middle_of_a_stream_frees_its_slot(live):
    with httpx.stream("POST", f"{live.url}/v1/completions", json=LONG | {"stream": True}, timeout=60) as answer:
        next(answer.iter_lines())
    live.wait_until_idle()
    assert live.service.scheduler.batch.num_active == 0


def test_what_takes_too_long_is_given_up():
    service = make_service(timeout=0.2)
    with running(service) as live:
        free = threading.Event()
        service.scheduler.run(lambda: free.wait(30))
        try:
            assert live.post("/v1/completions", 504, prompt="a")["error"]["code"] == "timeout"
        finally:
            free.set()
        live.wait_until_idle()


def test_a_key_is_asked_for():
    with running(make_service(), api_key="secret") as live:
        assert live.get("/health").json() == {"status": "ok"}
        for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "Bearer sécret"}):
            answer = httpx.get(f"{live.url}/v1/models", headers={name: value.encode() for name, value in headers.items()})
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{live.url}/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_a_failure_is_told_and_the_server_goes_on(live, monkeypatch):
    batch = live.service.scheduler.batch
    step, calls = batch._step_all, []

    def fails_once(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return step(*arguments, **named)

    monkeypatch.setattr(batch, "_step_all", fails_once)
    assert live.post("/v1/completions", 500, **LONG)["error"]["code"] == "internal_error"
    assert live.complete("a", max_tokens=2)["choices"]
    live.wait_until_idle()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 600) | st.floats(-3, 3) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
GOOD = {
    "prompt": st.text(max_size=8) | st.lists(st.integers(0, 519), min_size=1, max_size=4),
    "max_tokens": st.integers(0, 3),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "n": st.integers(1, 3),
    "best_of": st.integers(1, 3),
    "stop": st.text(min_size=1, max_size=2) | st.lists(st.text(min_size=1, max_size=2), max_size=4),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "logprobs": st.integers(0, 5),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 519).map(str), st.floats(-100, 100), max_size=4),
    "user": st.text(max_size=3),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "model": st.sampled_from(NAMES),
}
NAMES_OF_FIELDS = [*GOOD, "suffix", "top_k", "echo", ""]
requests = st.fixed_dictionaries({}, optional=GOOD | {"max_tokens": st.integers(0, 3)})


def fuzz(live: Live, body: dict, bad: dict) -> None:
    """Any request gets an answer or is refused for something that it has; the server does neither fail nor hang."""
    given = {"max_tokens": 2} | body | bad
    answer = httpx.post(f"{live.url}/v1/completions", content=json.dumps(given), timeout=60)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["param"] in given or error["param"] is None and any("\ud800" <= c < "\ue000" for c in json.dumps(given))
    else:
        assert "suffix" not in given or given["suffix"] is None
        assert set(given) <= {*GOOD, "echo", "suffix"}


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests, st.dictionaries(st.sampled_from(NAMES_OF_FIELDS) | st.text(max_size=5), json_values, max_size=2))
def test_any_request_is_answered_or_refused(live, body, bad):
    if not (bad.get("echo") and bad["echo"] is True):  # the many lengths of prompts would be compiled each
        fuzz(live, body, bad)
