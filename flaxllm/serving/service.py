"""What the routes of a server share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxllm.data import Tokenizer
from flaxllm.decoding.prompts import end_tokens
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.serving.embeddings import Encoder
from flaxllm.serving.errors import ApiError, not_served
from flaxllm.serving.fields import is_whole
from flaxllm.serving.metrics import Metrics
from flaxllm.serving.scheduler import Scheduler
from flaxllm.serving.spelling import Spelling


@dataclass(frozen=True, eq=False)
class Service:
    """A model under some names: one that writes, with its scheduler, or one that encodes."""

    model: Model
    tokenizer: Tokenizer
    names: tuple[str, ...]
    scheduler: Scheduler | None
    encoder: Encoder | None
    metrics: Metrics
    spelling: Spelling
    timeout: float
    created: int

    @property
    def max_len(self) -> int:
        return self.scheduler.batch.max_len if self.scheduler else self.encoder.max_len

    @property
    def has_source(self) -> bool:
        """A prompt is what the model transforms, and no beginning of what it writes."""
        return self.scheduler is not None and self.scheduler.batch.has_source

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a text: the model's, or the tokenizer's where its config names none."""
        given = (self.tokenizer.eos, self.tokenizer.end_of_text)
        return end_tokens(self.model) or tuple({token for token in given if token is not None})

    def check_name(self, name: str | None) -> str:
        """The name a model is asked for by, or its first.

        Raises:
          ApiError: it is not served.
        """
        if name is not None and name not in self.names:
            raise not_served(name, self.names)
        return self.names[0] if name is None else name

    def first_token(self) -> int:
        """What an empty prompt begins with.

        Raises:
          ApiError: there is no such token.
        """
        for token in (self.model.config.bos_token, self.tokenizer.bos, self.tokenizer.end_of_text):
            if token is not None:
                return token
        raise ApiError("the prompt is empty, and this model has no token to begin with: write some text", "prompt")

    def read_rows(self, value: Any, param: str, most: int) -> list[np.ndarray]:
        """The tokens of a text or of several, or tokens as they are; where there are none, the token that begins a text.

        Raises:
          ApiError: there are too many, or what the vocabulary has not.
        """
        if value is None:
            raise ApiError(f"{param} is missing: give a text, or a list of them", param)
        given = value if isinstance(value, list) and not is_whole(value[0]) else [value]
        if len(given) > most:
            raise ApiError(f"{param} has {len(given)} texts, and a request may have {most}: make several of it", param)
        if isinstance(given[0], str):
            rows = self.encode(given, param)
        else:
            rows = [self.check_tokens(row, param) for row in given]
        return [row if len(row) else np.array([self.first_token()], np.int32) for row in rows]

    def encode(self, texts: Sequence[str], param: str, add_special_tokens: bool = True) -> list[np.ndarray]:
        """The tokens of texts.

        Raises:
          ApiError: a text has what the vocabulary cannot say.
        """
        try:
            rows = [self.tokenizer([text], add_special_tokens=add_special_tokens) for text in texts]
        except InputError as error:
            raise ApiError(f"{param} cannot be read: {error}", param) from error
        return [row.tokens[0] for row in rows]

    def check_tokens(self, tokens: Sequence[int], param: str) -> np.ndarray:
        """Tokens as an array.

        Raises:
          ApiError: one is not of the model's vocabulary.
        """
        size = getattr(self.model.config, "source_vocab_size", None) or self.model.config.vocab_size
        wrong = next((token for token in tokens if not 0 <= token < size), None)
        if wrong is not None:
            raise ApiError(f"{param} has the token {wrong}: expected whole numbers from 0 to {size - 1}", param)
        return np.array(tokens, np.int32)

    def check_room(self, prompt: int, new: int | None, param: str, limit_param: str) -> int:
        """How many tokens may be written after a prompt: as many as are asked for, or as there is room for.

        Raises:
          ApiError: there is no such room.
        """
        if self.has_source:
            return self._check_sizes(prompt, new, param, limit_param)
        if prompt + (new or 0) > self.max_len or new is None and prompt == self.max_len:
            wanted = "" if new is None else f" and {new} new ones"
            blamed = param if prompt >= self.max_len else limit_param
            raise ApiError(
                f"a text may have {self.max_len} tokens here, and the prompt's {prompt}{wanted} are more: shorten the prompt"
                f"{'' if new is None else f' or lower {limit_param}'}", blamed, code="context_length_exceeded"
            )  # fmt: skip
        return self.max_len - prompt if new is None else new

    def _check_sizes(self, source: int, new: int | None, param: str, limit_param: str) -> int:
        """As `check_room`, where a source and what is written after it each have room of their own."""
        most = self.max_len - 1  # a text begins with a token that nobody sees
        sizes = (
            (source, self.max_len, "prompt", param, "shorten it"),
            (new or 0, most, "text", limit_param, f"lower {limit_param}"),
        )
        for count, limit, what, blamed, cure in sizes:
            if count > limit:
                wrong = f"a {what} may have {limit} tokens here, and {count} are more: {cure}"
                raise ApiError(wrong, blamed, code="context_length_exceeded")
        return most if new is None else new
