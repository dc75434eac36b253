"""What a scheduler is asked to do, and how far it has come with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flaxllm.decoding.sampling import Sampling
from flaxllm.serving import rows
from flaxllm.serving.errors import ApiError


class Token(NamedTuple):
    """A token, its log probability before any processing, and the likeliest ones with theirs, the best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Job:
    """A text to be written after a prompt of one token or more, of up to `max_new` tokens.

    `on_token` is told of each token as it comes, and ends the text by returning True. `on_end` is told once how it ended:
    "stop", "length" or "cancelled", or of the error. Both are called by the scheduler's thread.
    """

    prompt: np.ndarray
    settings: Sampling
    max_new: int
    on_token: Callable[[Token], bool]
    on_end: Callable[[str | ApiError], None]
    wants_top: bool = False
    cancelled: bool = False

    @property
    def is_plain(self) -> bool:
        return self.settings.used == rows.PLAIN and not self.wants_top


class Text:
    """A job in a row: the tokens that are known here, those it begins with and new ones, and how many steps were taken for it."""

    def __init__(self, job: Job, begin: np.ndarray):
        self.job, self.begin = job, len(begin)
        self.tokens = np.concatenate([begin, np.zeros(job.max_new, np.int32)])
        self.known, self.steps, self.ended = self.begin, 0, False

    @property
    def read(self) -> np.ndarray:
        """The tokens that the row's cache holds for certain."""
        return self.tokens[: min(self.known, self.begin - 1 + self.steps)]

    def add(self, token: int) -> None:
        self.tokens[self.known] = token
        self.known += 1

    @property
    def is_full(self) -> bool:
        return self.known == len(self.tokens)
