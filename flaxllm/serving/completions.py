"""`/v1/completions`: text after prompts, as OpenAI's reference of that route describes it."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flaxllm.decoding.text import TextStream
from flaxllm.errors import InputError
from flaxllm.serving import rows
from flaxllm.serving.errors import ApiError
from flaxllm.serving.fields import MAX_BEST_OF, WRITING, check_writing, read_fields, switch, texts_or_tokens, whole
from flaxllm.serving.job import Token
from flaxllm.serving.service import Service
from flaxllm.serving.spelling import Spelling
from flaxllm.serving.writing import Entry, Piece, Wish, Writing

MAX_TEXTS = 256
LOWEST = -9999.0  # JSON has no infinity



FIELDS = WRITING | {
    "prompt": texts_or_tokens(""),
    "max_tokens": whole(16, 0, 2**31 - 1),
    "logprobs": whole(None, 0, 5),
    "echo": switch(),
    "best_of": whole(None, 1, MAX_BEST_OF),
}
REFUSED = {"suffix": "this server writes after a prompt, not before a suffix"}


@dataclass(frozen=True, eq=False)
class Request:
    """A request that can be answered. `texts` are the prompts as text, `heads` what is echoed of them."""

    name: str
    given: dict[str, Any]
    prompts: list[np.ndarray]
    texts: list[str]
    writing: Writing
    heads: list[Piece | None] = field(default_factory=list)
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")

    @property
    def per_prompt(self) -> int:
        return self.given["best_of"] or self.given["n"]

    def usage(self) -> dict[str, int]:
        return usage(sum(map(len, self.prompts)), self.writing.num_tokens)


def read_request(service: Service, body: dict[str, Any]) -> Request:
    """Check a request.

    Raises:
      ApiError: what is wrong with it.
    """
    given = read_fields(body, FIELDS, REFUSED)
    name = service.check_name(given["model"])
    check_writing(given)
    count = given["n"] if given["best_of"] is None else given["best_of"]
    if count < given["n"]:
        raise ApiError(f"best_of is {count} and n is {given['n']}: the best n are chosen from as many or more", "best_of")
    if given["echo"] and service.has_source:
        raise ApiError("this model transforms a prompt, and does not write on after it: leave echo out", "echo")
    if given["stream"] and count > given["n"]:
        raise ApiError("best_of above n cannot be streamed: the best are known at the end only", "best_of")
    prompts = service.read_rows(given["prompt"], "prompt", MAX_TEXTS)
    texts = _texts(service, given["prompt"], prompts)
    if len(prompts) * count > MAX_TEXTS:
        blamed = "prompt" if len(prompts) > count else "n" if given["best_of"] is None else "best_of"
        raise ApiError(f"{len(prompts)} prompts with {count} texts each are more than the {MAX_TEXTS} of a request", blamed)
    max_new = [service.check_room(len(prompt), given["max_tokens"], "prompt", "max_tokens") for prompt in prompts]
    writing = make_writing(service, given, prompts, count, max_new, given["logprobs"] is not None, bool(given["logprobs"]))
    return Request(name, given, prompts, texts, writing)


def make_writing(
    service: Service,
    given: dict[str, Any],
    prompts: Sequence[np.ndarray],
    count: int,
    max_new: Sequence[int],
    wants_entries: bool,
    wants_top: bool,
) -> Writing:
    """The texts that a request of either kind asks for."""
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
    options = {name: given[name] for name in names} | {"vocab_size": service.model.config.vocab_size}
    options["logit_bias"] = {int(token): bias for token, bias in given["logit_bias"].items()}
    stop = [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
    wish = Wish(options, stop, service.ends, wants_entries, wants_top)
    try:
        return Writing(service.scheduler, service.tokenizer, prompts, count, max_new, wish, given["seed"])
    except InputError as error:  # the other values are checked already
        raise ApiError(str(error), "logit_bias") from error


def _texts(service: Service, prompt: Any, tokens: Sequence[np.ndarray]) -> list[str]:
    """The prompts as text."""
    given = [prompt] if isinstance(prompt, str) else prompt
    if isinstance(given[0], str):
        return list(given)
    streams = [TextStream(service.tokenizer) for _ in tokens]
    return ["".join(map(stream.push, row.tolist())) + stream.finish() for stream, row in zip(streams, tokens)]


def usage(prompt: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


async def begin(service: Service, request: Request) -> None:
    """Have the texts written, and know what is echoed.

    Raises:
      ApiError: too much waits already.
    """
    request.heads.extend(await _echoes(service, request))
    request.writing.begin()


async def _echoes(service: Service, request: Request) -> list[Piece | None]:
    if not request.given["echo"]:
        return [None] * len(request.prompts)
    if request.given["logprobs"] is None:
        return [Piece(0, text) for text in request.texts]
    batch = service.scheduler.batch
    num_top = min(rows.NUM_TOP, service.model.config.vocab_size)
    scores = []
    for prompt in request.prompts:  # one by one, so that the texts under way go on between them
        errand = service.scheduler.run(lambda: rows.score(batch.model, batch.params, prompt, num_top, batch.ctx))
        scores.append(await asyncio.wrap_future(errand))
    return [
        Piece(0, text, _prompt_entries(service, prompt, score))
        for text, prompt, score in zip(request.texts, request.prompts, scores)
    ]


def _prompt_entries(service: Service, prompt: np.ndarray, score: tuple[np.ndarray, ...]) -> tuple[Entry, ...]:
    """The tokens of a prompt; nothing is known of how probable the first is."""
    stream, offsets = TextStream(service.tokenizer), []
    for token in prompt.tolist():
        offsets.append(stream.position)
        stream.push(token)
    logprobs, likeliest, values = (x.tolist() for x in score)
    tops = [(), *(tuple(zip(*top)) for top in zip(likeliest, values))]
    tokens = map(Token, prompt.tolist(), [None, *logprobs], tops)
    return tuple(map(Entry, tokens, offsets))


def _logprobs(entries: Sequence[Entry], count: int, spelling: Spelling) -> dict[str, list]:
    """OpenAI's form of log probabilities: `count` of the likeliest tokens, and the chosen one among them."""

    def likeliest(token: Token) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        best: dict[str, float] = {}
        for other, logprob in token.top[:count]:
            best.setdefault(spelling.text(other), max(logprob, LOWEST))
        return best | {spelling.text(token.token): max(token.logprob, LOWEST)}

    tokens = [entry.token for entry in entries]
    return {
        "tokens": [spelling.text(token.token) for token in tokens],
        "token_logprobs": [None if token.logprob is None else max(token.logprob, LOWEST) for token in tokens],
        "top_logprobs": [likeliest(token) for token in tokens],
        "text_offset": [entry.offset for entry in entries],
    }


async def pieces(service: Service, request: Request) -> AsyncIterator[Piece]:
    """All that is said, each echoed prompt before its texts."""
    heads = [head for head in request.heads for _ in range(request.per_prompt)]
    for index, head in enumerate(heads):
        if head is not None:
            yield head._replace(index=index)
    async with aclosing(request.writing.pieces(service.timeout)) as written:
        async for piece in written:
            head = heads[piece.index]
            yield piece if head is None else piece.moved(len(head.text))


async def answer(service: Service, request: Request) -> dict[str, Any]:
    """The whole answer."""
    said: list[list[Piece]] = [[] for _ in request.writing.texts]
    async with aclosing(pieces(service, request)) as all_pieces:
        async for piece in all_pieces:
            said[piece.index].append(piece)
    return _envelope(request) | {
        "choices": [_choice(service, request, number, said[index]) for number, index in enumerate(_chosen(request))],
        "usage": request.usage(),
    }


async def stream(service: Service, request: Request) -> AsyncIterator[dict[str, Any]]:
    """The answer in chunks."""
    envelope, wants_usage = _envelope(request), (request.given["stream_options"] or {}).get("include_usage")
    tail = {"usage": None} if wants_usage else {}
    async with aclosing(pieces(service, request)) as all_pieces:
        async for piece in all_pieces:
            yield envelope | {"choices": [_choice(service, request, piece.index, [piece])]} | tail
    if wants_usage:
        yield envelope | {"choices": [], "usage": request.usage()}


def _chosen(request: Request) -> list[int]:
    """Of each prompt's texts the n whose tokens are likeliest on average, the best first, or all as they are."""
    numbers, n = range(len(request.writing.texts)), request.given["n"]
    if request.per_prompt == n:
        return list(numbers)
    each = [numbers[first : first + request.per_prompt] for first in numbers[:: request.per_prompt]]
    return [index for of_prompt in each for index in sorted(of_prompt, key=lambda i: -request.writing.texts[i].mean_logprob)[:n]]


def _choice(service: Service, request: Request, number: int, said: Sequence[Piece]) -> dict[str, Any]:
    entries = [entry for piece in said for entry in piece.entries]
    count = request.given["logprobs"]
    return {
        "index": number,
        "text": "".join(piece.text for piece in said),
        "logprobs": None if count is None else _logprobs(entries, count, service.spelling),
        "finish_reason": said[-1].finish,
    }


def _envelope(request: Request) -> dict[str, Any]:
    return {"id": request.id, "object": "text_completion", "created": int(time.time()), "model": request.name}
