"""What was written, as it grows on the host and as it is given back."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from flaxllm.decoding.text import TextStream


@dataclass(frozen=True, eq=False)
class Generated:
    """What was written, a row for each sequence: `n` in succession for a prompt.

    `tokens` are filled up with the model's padding (or end-of-text) token after the first `lengths` of a row, of which the
    last is the end-of-text token where the model wrote one (`finish_reasons`: "stop", or "length" where it was cut off).
    `logprobs` are each token's log probability as the model gave it, before temperature and penalties. `texts` are there
    where generate was given a tokenizer, and end before a stop string. `scores` are those by which beam search ranks texts.
    `accepted` is the share of a draft's guesses that were, among those that were checked: all up to the first that was not.
    """

    tokens: Int[np.ndarray, "sequence token"]
    lengths: Int[np.ndarray, "sequence"]
    logprobs: Float[np.ndarray, "sequence token"]
    finish_reasons: tuple[str, ...]
    texts: tuple[str, ...] | None = None
    scores: Float[np.ndarray, "sequence"] | None = None
    accepted: float | None = None

    def rows(self) -> list[list[int]]:
        return [row[:length].tolist() for row, length in zip(self.tokens, self.lengths)]


class Writing:
    """The sequences as they grow, on the host."""

    def __init__(
        self,
        count: int,
        ends: tuple[int, ...],
        streams: list[TextStream] | None,
        on_token: Callable[[int, int], object] | None,
        on_text: Callable[[int, str], object] | None,
    ):
        self.ends, self.streams, self.on_token, self.on_text = ends, streams, on_token, on_text
        self.done, self.lengths = np.zeros(count, bool), np.zeros(count, int)
        self.tokens: list[np.ndarray] = []
        self.logprobs: list[np.ndarray] = []

    def take(self, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """The next token of every sequence; what comes after a sequence's end is not listened to."""
        self.tokens.append(tokens)
        self.logprobs.append(logprobs)
        for row in np.flatnonzero(~self.done).tolist():
            token = int(tokens[row])
            self.lengths[row] += 1
            self.done[row] = token in self.ends
            if self.on_token:
                self.on_token(row, token)
            if self.streams:
                self._say(row, self.streams[row].push(token))
                self.done[row] |= self.streams[row].stopped

    def result(self, filler: int) -> Generated:
        for row, stream in enumerate(self.streams or ()):
            self._say(row, stream.finish())
        written = np.arange(len(self.tokens)) < self.lengths[:, None]
        return Generated(
            np.where(written, np.stack(self.tokens, 1), filler),
            self.lengths,
            np.where(written, np.stack(self.logprobs, 1), 0.0),
            tuple("stop" if done else "length" for done in self.done),
            tuple(stream.text for stream in self.streams) if self.streams else None,
        )

    def _say(self, row: int, piece: str) -> None:
        if piece and self.on_text:
            self.on_text(row, piece)
