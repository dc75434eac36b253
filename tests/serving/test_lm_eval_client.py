"""lm-eval's local-completions against the server, without a hub: the server's own tokenizer over HTTP."""

import numpy as np
import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")  # of lm-eval's extra [api], without which it has no clients

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402

from flaxllm.adapters.lm_eval import HarnessModel  # noqa: E402
from flaxllm.decoding import generate  # noqa: E402
from serving.live import MAX_LEN, NAMES, tokens_of, writer  # noqa: E402

PAIRS = [
    ("The house is", " wonderful"),
    ("The house is ", "small, and the garden behind it is larger"),
    ("", "A word"),
    ("Where do you", " go"),
]


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


@pytest.fixture(scope="module")
def client(live) -> LocalCompletionsAPI:
    client = LocalCompletionsAPI(f"{live.url}/v1/completions", model=NAMES[0], max_length=MAX_LEN, batch_size=2, max_retries=1)
    assert client.tokenizer_backend == "remote"
    return client


@pytest.fixture(scope="module")
def lm() -> HarnessModel:
    model, params, tokenizer = writer()
    return HarnessModel(model=model, params=params, tokenizer=tokenizer, batch_size=4)


def assert_same(answers: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    np.testing.assert_allclose([x for x, _ in answers], [x for x, _ in expected], rtol=1e-5)
    assert [best for _, best in answers] == [best for _, best in expected]


def test_the_client_gets_the_scores_of_the_adapter(client, lm):
    assert client.prefix_token_id == lm.prefix_token_id == 501 and client.eot_token_id == lm.eot_token_id == 502
    requests = asked("loglikelihood", *PAIRS)
    assert_same(client.loglikelihood(requests, disable_tqdm=True), lm.loglikelihood(requests, disable_tqdm=True))


def test_so_it_does_of_what_is_greedy_and_of_what_the_end_of_text_follows(client, lm):
    model, params, _ = writer()
    prompt = tokens_of("The house is")
    (greedy,) = generate(model, params, [prompt], 4, temperature=0, stop_tokens=()).rows()
    ends = lm._loglikelihood_tokens([(None, [5, token], [500]) for token in range(500)], disable_tqdm=True)
    before_end = [best for _, best in ends].index(True)  # after it the one token that the client has written ends the text
    requests = [(None, prompt, greedy), (None, prompt, greedy[::-1]), (None, [5], [before_end])]
    expected = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [best for _, best in expected[:2]] == [True, False]
    assert_same(client._loglikelihood_tokens(requests), expected)


def test_rolling_windows_of_one_length_give_one_sum(client):
    model, params, tokenizer = writer()
    lm = HarnessModel(model=model, params=params, tokenizer=tokenizer, max_length=MAX_LEN - 2)  # the client leaves two free
    requests = asked("loglikelihood_rolling", ("The house is wonderful. " * 12,), ("It is.",))
    assert len(tokens_of(requests[0].args[0])) > MAX_LEN
    answers, expected = (each.loglikelihood_rolling(requests, disable_tqdm=True) for each in (client, lm))
    np.testing.assert_allclose(answers, expected, rtol=1e-5)


def test_texts_are_those_of_the_adapter(client, lm):
    settings = dict(until=["\n"], max_gen_toks=8)
    requests = asked("generate_until", ("The house is", settings), ("Where do you", settings))
    assert client.generate_until(requests) == lm.generate_until(requests, disable_tqdm=True)
