"""`/v1/embeddings`, against the mean of the hidden states of each text alone."""

import base64

import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest

from data.frozen_tokenizers import load
from flaxllm.decoding import buckets
from flaxllm.models import build
from flaxllm.serving import embeddings
from flaxllm.serving.embeddings import Encoder
from flaxllm.serving.metrics import Metrics
from flaxllm.serving.service import Service
from flaxllm.serving.spelling import Spelling
from serving.live import running

TEXTS = ["The dog ran.", "hello", "", "the quick brown fox jumps over the lazy dog", "Hello world " * 9]
MODEL = build(
    "bert", dict(vocab_size=500, max_len=64, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=32, init_stddev=0.4), head=None
)
PARAMS = MODEL.init(jax.random.PRNGKey(0))
TOKENIZER = load("bert")


def expected(tokens: list[int]) -> np.ndarray:
    hidden = np.asarray(MODEL.apply(PARAMS, jnp.array([tokens])).hidden[0], np.float64)
    return hidden.mean(0) / np.linalg.norm(hidden.mean(0))


@pytest.fixture(scope="module")
def live():
    encoder = Encoder(MODEL, MODEL.init(jax.random.PRNGKey(0)))
    with running(Service(MODEL, TOKENIZER, ("tiny",), None, encoder, Metrics(), Spelling(TOKENIZER), 60, 0)) as server:
        yield server


def test_a_text_alone_or_with_others_has_the_vector_of_its_hidden_states(live):
    rows = [TOKENIZER(text).tokens[0].tolist() for text in TEXTS]
    wanted = [expected(row) for row in rows]
    answer = live.post("/v1/embeddings", input=TEXTS)
    assert [item["index"] for item in answer["data"]] == list(range(len(TEXTS)))
    np.testing.assert_allclose([item["embedding"] for item in answer["data"]], wanted, atol=1e-5)
    assert answer["usage"] == {"prompt_tokens": sum(map(len, rows)), "total_tokens": sum(map(len, rows))}
    for given in (TEXTS[1], rows[1], [TEXTS[1]], [rows[1]]):
        np.testing.assert_allclose(live.post("/v1/embeddings", input=given)["data"][0]["embedding"], wanted[1], atol=1e-5)


def test_base64_has_the_same_numbers(live):
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)  # asks for base64 itself
    got = client.embeddings.create(model="tiny", input=TEXTS[:2])
    plain = live.post("/v1/embeddings", input=TEXTS[:2], encoding_format="float")
    np.testing.assert_array_equal([item.embedding for item in got.data], [item["embedding"] for item in plain["data"]])
    raw = live.post("/v1/embeddings", input=TEXTS[0], encoding_format="base64")["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(raw), "<f4"), np.float32(plain["data"][0]["embedding"]))


def test_texts_are_cut_into_parts_that_change_nothing(live, monkeypatch):
    texts = [text + word for text in TEXTS[:2] for word in ("a", "b", "c", "d", "e")]
    whole = live.post("/v1/embeddings", input=texts)["data"]
    monkeypatch.setitem(buckets.TOKENS_AT_A_TIME, "cpu", 48)
    embeddings._encode.clear_cache()
    parts = live.post("/v1/embeddings", input=texts)["data"]
    np.testing.assert_allclose(*([item["embedding"] for item in data] for data in (whole, parts)), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (dict(), "input"),
        (dict(input=[]), "input"),
        (dict(input=["a"] * 2049), "input"),
        (dict(input="dog " * 70), "input"),
        (dict(input=[500]), "input"),
        (dict(input="a", dimensions=8), "dimensions"),
        (dict(input="a", encoding_format="hex"), "encoding_format"),
        (dict(input="a", user=1), "user"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(live, body, param):
    assert live.post("/v1/embeddings", 400, **body)["error"]["param"] == param


def test_an_encoder_writes_nothing(live):
    live.post("/v1/completions", 404, prompt="a")
    assert live.get("/health").status_code == 200 and live.get("/v1/models/tiny").json()["max_model_len"] == 64
