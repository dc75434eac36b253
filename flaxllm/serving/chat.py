"""`/v1/chat/completions`: the assistant's next turn, as OpenAI's reference of that route describes it.

A chat becomes a prompt by the tokenizer's own template. What the model writes is the answer's content as it is, a call of a
tool too.
"""

import re
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flaxllm.data.chat import choose_template
from flaxllm.errors import InputError
from flaxllm.serving.completions import LOWEST, make_writing, usage
from flaxllm.serving.errors import ApiError
from flaxllm.serving.fields import WRITING, Field, check_writing, one_of, read_fields, switch, whole
from flaxllm.serving.service import Service
from flaxllm.serving.spelling import Spelling
from flaxllm.serving.writing import Entry, Piece, Writing


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) and isinstance(x.get("role"), str) for x in value)


def _are_tools(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, dict) and x.get("type") == "function" for x in value)


FIELDS = WRITING | {
    "messages": Field(None, _are_messages, "a list of messages, each an object with its role"),
    "max_tokens": whole(None, 1, 2**31 - 1),
    "max_completion_tokens": whole(None, 1, 2**31 - 1),
    "logprobs": switch(),
    "top_logprobs": whole(None, 0, 20),
    "tools": Field(None, _are_tools, "a list of objects whose type is 'function'"),
    "tool_choice": one_of("auto", "auto", "none"),
    "response_format": Field(None, lambda x: x == {"type": "text"}, "an object with the type 'text'"),
}
_ONLY_TEXT = "this server reads and writes text only"
_NO_CALLS = "this server does not take calls out of the text: describe functions as tools"
_NOTHING_KEPT = "this server keeps nothing"
REFUSED = {
    "audio": _ONLY_TEXT,
    "modalities": _ONLY_TEXT,
    "functions": _NO_CALLS,
    "function_call": _NO_CALLS,
    "parallel_tool_calls": _NO_CALLS,
    "store": _NOTHING_KEPT,
    "metadata": _NOTHING_KEPT,
    "reasoning_effort": "the model thinks as its template says",
    "service_tier": "there is one tier",
    "prediction": "this server does not check predictions",
    "web_search_options": "this server does not search",
}


@dataclass(frozen=True, eq=False)
class Request:
    """A request that can be answered."""

    name: str
    given: dict[str, Any]
    prompt: np.ndarray
    writing: Writing
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")

    def usage(self) -> dict[str, int]:
        return usage(len(self.prompt), self.writing.num_tokens)


def read_request(service: Service, body: dict[str, Any]) -> Request:
    """Check a request.

    Raises:
      ApiError: what is wrong with it.
    """
    given = read_fields(body, FIELDS, REFUSED)
    name = service.check_name(given["model"])
    check_writing(given)
    if service.tokenizer.chat_template is None:
        raise ApiError("this model has no chat template: use /v1/completions", "model")
    if given["messages"] is None:
        raise ApiError("messages are missing: give a list of messages, each with its role and content", "messages")
    if given["top_logprobs"] is not None and not given["logprobs"]:
        raise ApiError("top_logprobs needs logprobs: set it to true, or leave top_logprobs out", "top_logprobs")
    limits = [name for name in ("max_completion_tokens", "max_tokens") if given[name] is not None]
    if len({given[limit] for limit in limits}) > 1:
        raise ApiError("max_tokens and max_completion_tokens differ: give the second one only", "max_tokens")
    limit = limits[0] if limits else "max_completion_tokens"
    prompt = _prompt(service, given)
    max_new = service.check_room(len(prompt), given[limit], "messages", limit)
    wants_top = bool(given["top_logprobs"])
    writing = make_writing(service, given, [prompt], given["n"], [max_new], given["logprobs"], wants_top)
    return Request(name, given, prompt, writing)


def _prompt(service: Service, given: dict[str, Any]) -> np.ndarray:
    tools = given["tools"] if given["tools"] and given["tool_choice"] == "auto" else None
    messages = [_as_text(message, number) for number, message in enumerate(given["messages"])]
    tokenizer = service.tokenizer
    try:
        if tools and not re.search(r"\btools\b", choose_template(tokenizer.chat_template, None, tools)):
            raise ApiError("this model's chat template knows no tools: leave them out", "tools")
        tokens = tokenizer.encode_chat(messages, tools=tools).tokens
    except InputError as error:
        raise ApiError(str(error), "messages") from error
    return tokens if len(tokens) else np.array([service.first_token()], np.int32)


def _as_text(message: dict[str, Any], number: int) -> dict[str, Any]:
    """A message whose content is one text."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(x, dict) and x.get("type") == "text" and isinstance(x.get("text"), str) for x in parts):
        raise ApiError(f"message {number} is no text: expected a string, or parts of the type 'text'", "messages")
    return message | {"content": "".join(part["text"] for part in parts)}


async def begin(service: Service, request: Request) -> None:
    """Have the texts written.

    Raises:
      ApiError: too much waits already.
    """
    request.writing.begin()


async def answer(service: Service, request: Request) -> dict[str, Any]:
    """The whole answer."""
    said: list[list[Piece]] = [[] for _ in request.writing.texts]
    async with aclosing(request.writing.pieces(service.timeout)) as pieces:
        async for piece in pieces:
            said[piece.index].append(piece)
    choices = []
    for index, of_text in enumerate(said):
        content = "".join(piece.text for piece in of_text)
        message = {"role": "assistant", "content": content, "refusal": None}
        choices.append({"index": index, "message": message} | _end(service, request, of_text))
    return _envelope(request, "chat.completion") | {"choices": choices, "usage": request.usage()}


async def stream(service: Service, request: Request) -> AsyncIterator[dict[str, Any]]:
    """The answer in chunks, of which each text's first says whose turn it is."""
    envelope = _envelope(request, "chat.completion.chunk")
    wants_usage = (request.given["stream_options"] or {}).get("include_usage")
    tail = {"usage": None} if wants_usage else {}
    for index in range(len(request.writing.texts)):
        delta = {"role": "assistant", "content": "", "refusal": None}
        start = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        yield envelope | {"choices": [start]} | tail
    async with aclosing(request.writing.pieces(service.timeout)) as pieces:
        async for piece in pieces:
            delta = {"content": piece.text} if piece.text else {}
            yield envelope | {"choices": [{"index": piece.index, "delta": delta} | _end(service, request, [piece])]} | tail
    if wants_usage:
        yield envelope | {"choices": [], "usage": request.usage()}


def _end(service: Service, request: Request, said: Sequence[Piece]) -> dict[str, Any]:
    entries = [entry for piece in said for entry in piece.entries]
    logprobs = None
    if request.given["logprobs"]:
        count = request.given["top_logprobs"] or 0
        logprobs = {"content": [_logprob(entry, count, service.spelling) for entry in entries], "refusal": None}
    return {"logprobs": logprobs, "finish_reason": said[-1].finish}


def _logprob(entry: Entry, count: int, spelling: Spelling) -> dict[str, Any]:
    def one(token: int, logprob: float) -> dict[str, Any]:
        return {"token": spelling.text(token), "logprob": max(logprob, LOWEST), "bytes": spelling.byte_values(token)}

    token = entry.token
    return one(token.token, token.logprob) | {"top_logprobs": [one(*other) for other in token.top[:count]]}


def _envelope(request: Request, kind: str) -> dict[str, Any]:
    return {"id": request.id, "object": kind, "created": int(time.time()), "model": request.name}
