"""From tokens to what clients are sent: each text in pieces, with the log probabilities of its tokens."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxllm.data import Tokenizer
from flaxllm.decoding.text import TextStream
from flaxllm.serving.errors import ApiError, timed_out
from flaxllm.serving.job import Job, Token
from flaxllm.serving.rows import row_settings
from flaxllm.serving.scheduler import Scheduler


class Entry(NamedTuple):
    """A token, and how many characters of the text come before its own."""

    token: Token
    offset: int


class Piece(NamedTuple):
    """What comes next of text number `index`; with the last one it is said how the text ended."""

    index: int
    text: str
    entries: tuple[Entry, ...] = ()
    finish: str | ApiError | None = None

    def moved(self, distance: int) -> "Piece":
        """The same after so many characters more."""
        return self._replace(entries=tuple(entry._replace(offset=entry.offset + distance) for entry in self.entries))


class Wish(NamedTuple):
    """What a request has in common for all its texts."""

    options: Mapping[str, Any]
    stop: Sequence[str]
    ends: tuple[int, ...]
    wants_entries: bool
    wants_top: bool


class Written:
    """One text as it grows."""

    def __init__(self, index: int, tokenizer: Tokenizer, before: np.ndarray, wish: Wish, emit: Callable[[Piece], None]):
        self.index, self.num_tokens, self._logprob = index, 0, 0.0
        self._stream = TextStream(tokenizer, wish.stop, after=before)
        self._wish, self._emit = wish, emit
        self._entries: list[Entry] = []
        self.begun: float | None = None  # when the first token came

    @property
    def mean_logprob(self) -> float:
        return self._logprob / max(self.num_tokens, 1)

    def on_token(self, token: Token) -> bool:
        self.num_tokens += 1
        self.begun = self.begun or time.perf_counter()
        self._logprob += token.logprob
        if self._wish.wants_entries:
            self._entries.append(Entry(token, self._stream.position))
        is_end = token.token in self._wish.ends
        said = "" if is_end else self._stream.push(token.token)
        if said:
            self._emit(Piece(self.index, said, self._said_entries()))
        return is_end or self._stream.stopped

    def on_end(self, how: str | ApiError) -> None:
        said = self._stream.finish()
        entries = self._said_entries() if self._stream.stopped else tuple(self._entries)
        self._emit(Piece(self.index, said, entries, "stop" if self._stream.stopped and how == "length" else how))

    def _said_entries(self) -> tuple[Entry, ...]:
        """Those whose text has begun to be said, and not before."""
        count = sum(entry.offset < len(self._stream.text) for entry in self._entries)
        said, self._entries = tuple(self._entries[:count]), self._entries[count:]
        return said


class Writing:
    """All texts of a request: `count` after each prompt, in succession."""

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        prompts: Sequence[np.ndarray],
        count: int,
        max_new: Sequence[int],
        wish: Wish,
        seed: int | None,
    ):
        self._scheduler = scheduler
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = time.perf_counter()
        seed = secrets.randbits(62) if seed is None else seed
        self.texts, self.jobs = [], []
        for number, prompt in enumerate(np.repeat(np.arange(len(prompts)), count)):
            before = prompts[prompt][:0] if scheduler.batch.has_source else prompts[prompt]
            text = Written(number, tokenizer, before, wish, self._emit)
            settings = row_settings((seed + number) % 2**64, **wish.options)
            self.texts.append(text)
            self.jobs.append(Job(prompts[prompt], settings, max_new[prompt], text.on_token, text.on_end, wish.wants_top))

    @property
    def num_tokens(self) -> int:
        return sum(text.num_tokens for text in self.texts)

    @property
    def seconds_to_first(self) -> float | None:
        """From the request to its first token."""
        return min((text.begun - self._asked for text in self.texts if text.begun), default=None)

    def begin(self) -> None:
        """Have the texts written.

        Raises:
          ApiError: too many wait already.
        """
        self._loop = asyncio.get_running_loop()
        jobs = [job for job in self.jobs if job.max_new]
        self._scheduler.submit(jobs)
        for text, job in zip(self.texts, self.jobs):
            if not job.max_new:
                text.on_end("length")

    async def pieces(self, timeout: float) -> AsyncIterator[Piece]:
        """The pieces of all texts as they come. What is not written when nobody listens any more is not written at all.

        Raises:
          ApiError: something failed, or took too long.
        """
        timer = self._loop.call_later(timeout, self._pieces.put_nowait, Piece(0, "", (), timed_out(timeout)))
        left = len(self.texts)
        try:
            while left:
                piece = await self._pieces.get()
                if isinstance(piece.finish, ApiError):
                    raise piece.finish
                left -= piece.finish is not None
                yield piece
        finally:
            timer.cancel()
            if left:
                self._scheduler.cancel(self.jobs)

    def _emit(self, piece: Piece) -> None:
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
