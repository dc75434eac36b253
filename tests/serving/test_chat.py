"""`/v1/chat/completions`, and OpenAI's own client for all of them."""

import numpy as np
import openai
import pytest

from serving.live import NAMES, decoded, offline, writer

MESSAGES = [{"role": "system", "content": "Be <|im_end|> brief."}, {"role": "user", "content": "Hi"}]
NEW = 8


def prompt(messages=MESSAGES, **options) -> list[int]:
    return writer()[2].encode_chat(messages, **options).tokens.tolist()


@pytest.fixture(scope="module")
def client(live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def test_the_answer_is_what_follows_the_templates_text(client):
    answer = client.chat.completions.create(model=NAMES[0], messages=MESSAGES, max_tokens=NEW, temperature=0)
    expected = decoded(offline([prompt()], NEW, temperature=0, stop_tokens=[500])[0])
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", expected)
    assert answer.usage.prompt_tokens == len(prompt()) and answer.object == "chat.completion"
    parts = [{"role": "system", "content": [{"type": "text", "text": "Be <|im_end|>"}, {"type": "text", "text": " brief."}]}]
    again = client.chat.completions.create(
        model=NAMES[0], messages=parts + MESSAGES[1:], max_completion_tokens=NEW, temperature=0, tool_choice="none"
    )
    assert again.choices[0].message.content == expected


def test_a_stream_gives_what_the_whole_answer_gives(client):
    options = dict(model=NAMES[0], messages=MESSAGES, max_tokens=NEW, n=2, seed=4, logprobs=True, top_logprobs=3)
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    for choice in whole.choices:
        mine = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(piece.delta.content or "" for piece in mine) == choice.message.content
        assert [p for piece in mine if piece.logprobs for p in piece.logprobs.content] == choice.logprobs.content
        assert mine[-1].finish_reason == choice.finish_reason
        assert len(choice.logprobs.content) == whole.usage.completion_tokens // 2
        for entry in choice.logprobs.content:
            assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob >= entry.logprob
            if not entry.token.startswith("bytes:"):
                assert bytes(entry.bytes).decode() == entry.token
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_tools_come_into_the_prompt(client):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    answer = client.chat.completions.create(model=NAMES[0], messages=MESSAGES, max_tokens=1, tools=tools)
    assert answer.usage.prompt_tokens == len(prompt(tools=tools)) > len(prompt())


def test_a_template_that_refuses_is_the_clients_error(client):
    with pytest.raises(openai.BadRequestError, match="chat template fails"):
        client.chat.completions.create(model=NAMES[0], messages=[{"role": "assistant"}], max_tokens=1)


def test_the_client_completes_and_lists_models(client):
    answer = client.completions.create(model=NAMES[1], prompt="", max_tokens=4, temperature=0.6, logprobs=1, n=2)
    assert len(answer.choices) == 2 and np.isfinite(answer.choices[0].logprobs.token_logprobs).all()
    stream = client.completions.create(model=NAMES[1], prompt="a", max_tokens=4, temperature=0, stream=True)
    whole = client.completions.create(model=NAMES[1], prompt="a", max_tokens=4, temperature=0)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    assert [model.id for model in client.models.list()] == list(NAMES)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAMES[0], prompt="a", suffix="b")
    assert caught.value.param == "suffix"
