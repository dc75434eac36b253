"""`/v1/completions` as clients see it, against `generate`."""

import json
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

from serving.live import MAX_LEN, SLOTS, decoded, offline, tokens_of, writer

PROMPT = "Hello there, how"
PROMPTS = [PROMPT, "The quick brown", "a", "one two three four", "héllo wörld", "x = 1\n", "dog", "Hello there, you"]
NEW = 12


def text_of(answer: dict) -> str:
    return answer["choices"][0]["text"]


def log_probabilities(tokens: list[int]) -> np.ndarray:
    """Of each next token of the vocabulary after each token, by a whole forward pass, in float64."""
    model, params, _ = writer()
    logits = np.asarray(model.unembed(params, model.apply(params, jnp.array([tokens])).hidden)[0], np.float64)
    return logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)


def test_texts_are_those_of_generate_whatever_else_is_written(live):
    prompts = [tokens_of(prompt) for prompt in PROMPTS]
    expected = [decoded(tokens) for tokens in offline(prompts, NEW, temperature=0, stop_tokens=[500])]
    copied = live.service.scheduler.batch.num_copied
    others = dict(max_tokens=3, temperature=1.5, presence_penalty=1.0, top_p=0.9, n=2)

    def ask(number: int) -> str | None:
        if number % 3 == 2:
            live.complete(PROMPTS[number % len(PROMPTS)], **others)
            return None
        return text_of(live.complete(PROMPTS[number % len(PROMPTS)], max_tokens=NEW, temperature=0))

    with ThreadPoolExecutor(SLOTS + 1) as pool:
        for number, text in enumerate(pool.map(ask, range(4 * len(PROMPTS)))):
            assert text in (None, expected[number % len(PROMPTS)])
    assert live.service.scheduler.batch.num_copied == copied  # no prompt is long enough


def test_what_is_drawn_depends_on_the_seed_only(live):
    options = dict(temperature=0.8, top_p=0.9, frequency_penalty=0.5)
    expected = [decoded(tokens) for tokens in offline([tokens_of(PROMPT)] * 3, NEW, seed=7, stop_tokens=[500], **options)]
    answer = live.complete(PROMPT, max_tokens=NEW, n=3, seed=7, **options)
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 36, "total_tokens": 45}
    assert text_of(live.complete(PROMPT, max_tokens=NEW, seed=9, **options)) == expected[2]
    assert text_of(live.complete(PROMPT, max_tokens=NEW)) != text_of(live.complete(PROMPT, max_tokens=NEW))


def test_a_bias_and_the_end_of_the_text(live):
    answer = live.complete(PROMPT, max_tokens=NEW, logit_bias={"500": 100}, logprobs=0)
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert choice["logprobs"]["tokens"] == ["<|endoftext|>"] and answer["usage"]["completion_tokens"] == 1
    free = live.complete(PROMPT, max_tokens=1, temperature=0, logprobs=1)["choices"][0]["logprobs"]["tokens"][0]
    banned = live.complete(PROMPT, max_tokens=1, temperature=0, logit_bias={str(tokens_of(free)[0]): -100})
    assert text_of(banned) != free


@pytest.mark.parametrize(
    "prompt",
    [PROMPTS[:3], [tokens_of(prompt) for prompt in PROMPTS[:3]]],
    ids=["strings", "tokens"],
)
def test_several_prompts_and_prompts_as_tokens(live, prompt):
    answer = live.complete(prompt, max_tokens=4, temperature=0, n=2)
    single = [text_of(live.complete(one, max_tokens=4, temperature=0)) for one in PROMPTS[:3]]
    assert [choice["text"] for choice in answer["choices"]] == [text for text in single for _ in range(2)]
    assert answer["usage"]["prompt_tokens"] == sum(len(tokens_of(one)) for one in PROMPTS[:3])
    assert text_of(live.complete(tokens_of(PROMPT), max_tokens=4, temperature=0)) == single[0]


def test_an_empty_prompt_begins_with_the_token_that_begins_texts(live):
    begin = live.service.first_token()
    expected = decoded(offline([[begin]], 4, temperature=0)[0])
    assert text_of(live.complete("", max_tokens=4, temperature=0)) == expected
    assert text_of(live.complete([[]], max_tokens=4, temperature=0, echo=True)) == expected
    assert text_of(live.post("/v1/completions", max_tokens=4, temperature=0)) == expected


def test_log_probabilities_are_the_models(live):
    answer = live.complete(PROMPT, max_tokens=6, temperature=0.7, seed=3, logprobs=3)
    choice, tokenizer = answer["choices"][0], writer()[2]
    tokens = offline([tokens_of(PROMPT)], 6, seed=3, temperature=0.7, stop_tokens=[500])[0]
    assert choice["text"] == decoded(tokens)
    begin = len(tokens_of(PROMPT))
    wanted = log_probabilities(tokens_of(PROMPT) + tokens)[begin - 1 : -1]
    got = choice["logprobs"]
    np.testing.assert_allclose(got["token_logprobs"], wanted[np.arange(len(tokens)), tokens], atol=1e-4)
    for row, chosen, logprob, top in zip(wanted, tokens, got["token_logprobs"], got["top_logprobs"]):
        assert logprob in top.values()
        best = np.argsort(-row)[:3]
        assert len(top) == 3 + (chosen not in best)
        np.testing.assert_allclose(sorted(top.values())[-3:], sorted(row[best]), atol=1e-4)
    for before, token, text, offset in zip(["", *got["tokens"]], tokens, got["tokens"], got["text_offset"]):
        if not text.startswith("bytes:") and token < 500:
            assert text == tokenizer.decode([token])
            assert before.startswith("bytes:") or choice["text"][offset:].startswith(text)


def test_the_echo_has_the_prompt_and_its_log_probabilities(live):
    answer = live.complete([PROMPT, "dog"], max_tokens=2, temperature=0, echo=True, logprobs=1)
    plain = live.complete([PROMPT, "dog"], max_tokens=2, temperature=0)
    for choice, without, prompt in zip(answer["choices"], plain["choices"], (PROMPT, "dog")):
        assert choice["text"] == prompt + without["text"]
        got, tokens = choice["logprobs"], tokens_of(prompt)
        assert got["token_logprobs"][0] is None and got["top_logprobs"][0] is None
        wanted = log_probabilities(tokens)[np.arange(len(tokens) - 1), tokens[1:]]
        np.testing.assert_allclose(got["token_logprobs"][1 : len(tokens)], wanted, atol=1e-4)
        assert len(got["tokens"]) == len(got["text_offset"]) == len(tokens) + 2
        assert "".join(got["tokens"][: len(tokens)]) == prompt
        assert all(choice["text"][o:].startswith(t) for o, t in zip(got["text_offset"], got["tokens"]) if t[:6] != "bytes:")
        assert all(p in top.values() for p, top in zip(got["token_logprobs"][1:], got["top_logprobs"][1:]))


def test_a_prompt_alone_can_be_scored(live):
    answer = live.complete(PROMPT, max_tokens=0, echo=True, logprobs=0)
    assert text_of(answer) == PROMPT and answer["usage"]["completion_tokens"] == 0
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == len(tokens_of(PROMPT))


def test_the_best_are_those_with_the_likeliest_tokens(live):
    options = dict(max_tokens=5, seed=20, temperature=1.3, logprobs=0)
    each = [live.complete(PROMPT, **options | {"seed": 20 + number})["choices"][0] for number in range(4)]
    means = [np.mean(choice["logprobs"]["token_logprobs"]) for choice in each]
    answer = live.complete(PROMPT, **options, n=2, best_of=4)
    assert [choice["text"] for choice in answer["choices"]] == [each[i]["text"] for i in np.argsort(means)[::-1][:2]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 20


def test_stop_strings_end_a_text_before_them(live):
    whole = text_of(live.complete(PROMPT, max_tokens=NEW, temperature=0))
    stop = whole[6:9]
    answer = live.complete(PROMPT, max_tokens=NEW, temperature=0, stop=["nowhere", stop], logprobs=0)
    choice = answer["choices"][0]
    assert choice["text"] == whole[: whole.find(stop)] and choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < NEW
    assert all(offset < len(choice["text"]) for offset in choice["logprobs"]["text_offset"])


@pytest.mark.parametrize(
    "options",
    [
        dict(prompt=PROMPT, temperature=0),
        dict(prompt=[PROMPT, "dog"], n=2, seed=5, logprobs=2, echo=True),
        dict(prompt="a", seed=1, temperature=1.4, stop=["e", "a"], logprobs=1),
    ],
    ids=["plain", "several", "stopped"],
)
def test_a_stream_gives_what_the_whole_answer_gives(live, options):
    answer = live.post("/v1/completions", max_tokens=NEW, **options)
    chunks = live.chunks(max_tokens=NEW, stream_options={"include_usage": True}, **options)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == answer["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1 and all(chunk["usage"] is None for chunk in chunks[:-1])
    for choice in answer["choices"]:
        mine = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"][0]["index"] == choice["index"]]
        assert len(mine) > 1 and "".join(piece["text"] for piece in mine) == choice["text"]
        assert [piece["finish_reason"] for piece in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        if choice["logprobs"] is not None:
            joined = {name: [x for piece in mine for x in piece["logprobs"][name]] for name in choice["logprobs"]}
            assert json.dumps(joined) == json.dumps(choice["logprobs"])


def test_a_prompt_that_begins_like_another_is_read_from_there_on(live):
    batch = live.service.scheduler.batch
    long = (PROMPT + " " + PROMPTS[1] + ", " + PROMPTS[3]) * 2
    other = long[: len(long) // 2] + "?!"
    assert len(tokens_of(other)) > 20
    expected = [decoded(tokens) for tokens in offline([tokens_of(long), tokens_of(other)], 8, temperature=0, stop_tokens=[500])]
    live.wait_until_idle()
    before = batch.num_copied
    assert text_of(live.complete(long, max_tokens=8, temperature=0)) == expected[0]
    assert batch.num_copied == before
    assert text_of(live.complete(other, max_tokens=8, temperature=0)) == expected[1]
    shared = next(i for i, (a, b) in enumerate(zip(tokens_of(long), tokens_of(other))) if a != b)
    assert batch.num_copied == before + shared // 16 * 16 > before
    assert text_of(live.complete(long, max_tokens=8, temperature=0)) == expected[0]
    assert batch.num_copied == before + shared // 16 * 16 + len(tokens_of(long)) - 1


def test_a_text_may_fill_its_slot_and_no_more(live):
    tokens = (tokens_of(PROMPT) * 20)[: MAX_LEN - 3]
    answer = live.complete(tokens, max_tokens=3, temperature=0, logit_bias={"500": -100})
    assert answer["usage"]["total_tokens"] == MAX_LEN
    expected = offline([tokens], 3, temperature=0, logit_bias={500: -100.0}, stop_tokens=[500])[0]
    assert text_of(answer) == decoded(expected)
    error = live.post("/v1/completions", 400, prompt=tokens, max_tokens=4)["error"]
    assert str(MAX_LEN) in error["message"] and error["param"] == "max_tokens" and error["code"] == "context_length_exceeded"
    assert live.post("/v1/completions", 400, prompt=tokens * 2, max_tokens=4)["error"]["param"] == "prompt"


def test_other_requests_compile_nothing(live):
    from flaxllm.serving import rows

    options = dict(max_tokens=3, logprobs=1, temperature=0.5, top_p=0.5)
    live.complete(PROMPT, **options)
    live.complete(PROMPT, max_tokens=3)
    functions = (rows.step, rows.put, rows.engine.read)
    before = [function._cache_size() for function in functions]
    live.complete(["Hello", "you"], **options | dict(temperature=1.5, n=2, logit_bias={"3": 2.0, "4": 1.0, "5": 1.0}, stop="a"))
    live.complete("what", max_tokens=7, seed=3)
    assert [function._cache_size() for function in functions] == before
