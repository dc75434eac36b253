"""Models that transform their prompt (T5, Marian) are served as those that write on after it."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from data.frozen_tokenizers import load
from flaxllm.decoding import generate, prepare
from flaxllm.models import build
from flaxllm.nn import Context
from flaxllm.serving.batch import Batch
from flaxllm.serving.metrics import Metrics
from flaxllm.serving.scheduler import Scheduler
from flaxllm.serving.service import Service
from flaxllm.serving.spelling import Spelling
from serving.live import running

SLOTS, MAX_LEN, NEW = 3, 64, 10
SIZES = dict(vocab_size=520, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=32, max_len=MAX_LEN, eos_token=500)
MODELS = {"t5": build("t5", SIZES | dict(init_factor=3.0)), "transformer": build("transformer", SIZES)}
PROMPTS = ["The house", "a", "one two three four five six seven eight nine ten eleven", "x = 1", "Hello there, how"]
TOKENIZER = load("qwen2")


@pytest.fixture(scope="module", params=sorted(MODELS))
def served(request):
    model = MODELS[request.param]
    params = prepare(model, model.init(jax.random.PRNGKey(1)))
    scheduler = Scheduler(Batch(model, params, SLOTS, MAX_LEN, Context()), 20)
    scheduler.batch.warm_up()
    service = Service(model, TOKENIZER, ("tiny",), scheduler, None, Metrics(scheduler), Spelling(TOKENIZER), 60, 0)
    with running(service) as live:
        yield live, model, params


def test_a_text_is_what_generate_makes_of_its_source_whatever_else_is_written(served):
    live, model, params = served
    sources = [TOKENIZER(prompt).tokens[0] for prompt in PROMPTS]
    rows = [generate(model, params, [source] * SLOTS, NEW, temperature=0).rows()[0] for source in sources]
    expected = [TOKENIZER.decode([token for token in row if token < 500]) for row in rows]
    assert len(set(expected)) > 2  # the source matters

    def ask(number: int) -> dict:
        return live.complete(PROMPTS[number % len(PROMPTS)], max_tokens=NEW, temperature=0)

    with ThreadPoolExecutor(SLOTS + 2) as pool:
        for number, answer in enumerate(pool.map(ask, range(4 * len(PROMPTS)))):
            assert answer["choices"][0]["text"] == expected[number % len(PROMPTS)]
            assert answer["usage"]["prompt_tokens"] == len(sources[number % len(PROMPTS)])


def test_a_source_and_its_text_have_room_of_their_own(served):
    live, _, _ = served
    answer = live.post("/v1/completions", prompt=[7] * MAX_LEN, max_tokens=MAX_LEN - 1, logit_bias={"500": -100})
    assert answer["usage"] == {"prompt_tokens": MAX_LEN, "completion_tokens": MAX_LEN - 1, "total_tokens": 2 * MAX_LEN - 1}
    for body, param in ((dict(prompt=[7] * (MAX_LEN + 1)), "prompt"), (dict(prompt=[7], max_tokens=MAX_LEN), "max_tokens")):
        error = live.post("/v1/completions", expected=400, **body)["error"]
        assert error["code"] == "context_length_exceeded" and error["param"] == param


def test_what_needs_a_prompt_to_write_on_after_is_refused(served):
    live, _, _ = served
    error = live.post("/v1/completions", expected=400, prompt="a", echo=True)["error"]
    assert error["param"] == "echo" and "does not write on" in error["message"]


def test_a_rows_next_source_leaves_nothing_of_the_one_before(served):
    live, _, _ = served
    short = live.complete("a", max_tokens=NEW, temperature=0)["choices"][0]["text"]
    for _ in range(2 * SLOTS):
        live.complete(np.arange(MAX_LEN).tolist(), max_tokens=2)
    assert live.complete("a", max_tokens=NEW, temperature=0)["choices"][0]["text"] == short
