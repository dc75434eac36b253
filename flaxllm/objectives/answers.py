"""What was asked and what is to be answered, as tokens: chats by the tokenizer's template, or plain text."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from flaxllm.data import Tokenizer
from flaxllm.data.json_file import brief
from flaxllm.errors import InputError
from flaxllm.objectives.labelled import read_field

Record = Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]

_TEXT_OR_MESSAGES = "text, or a list of messages"


class Answered(NamedTuple):
    """Tokens, and which of them are an answer's."""

    tokens: Int[np.ndarray, " token"]
    answer: Bool[np.ndarray, " token"]

    def cut(self, max_len: int, number: int) -> "Answered":
        """As much as `max_len` predictions take, of the record of that number.

        Raises:
          InputError: there is no answer in it.
        """
        tokens, answer = (array[: max_len + 1] for array in self)
        if not answer[1:].any():
            raise InputError(
                f"record {number} has no answer in the first {max_len} of {len(self.tokens)} tokens: raise max_len or drop it"
            )
        return Answered(tokens, answer)

    def example(self, stem: str = "") -> dict[str, np.ndarray]:
        """`tokens`, the `targets` that follow them, and `weights` of 1 where these are an answer's."""
        arrays = {"tokens": self.tokens[:-1], "targets": self.tokens[1:], "weights": self.answer[1:].astype(np.float32)}
        return {f"{stem}{name}": array for name, array in arrays.items()}


def read_chat(tokenizer: Tokenizer, record: Record, number: int) -> Answered:
    """A record's `messages`, in which the assistant's words are answers: those that the template marks, or, where it marks none,
    what follows the prompt of each of the assistant's messages, to the end of its turn.

    Raises:
      InputError: they are no messages, the template fails, or it marks nothing and writes a chat otherwise once it goes on.
    """
    messages = _messages(record, number, "messages")
    with _of_record(number):
        whole = tokenizer.encode_chat(messages, add_generation_prompt=False)
        answer = whole.assistant.copy()
        if not answer.any():
            for index, message in enumerate(messages):
                if message["role"] == "assistant":
                    start = _shared(tokenizer, messages, index, True, whole.tokens)
                    answer[start : _shared(tokenizer, messages, index + 1, False, whole.tokens)] = True
    return Answered(whole.tokens, answer)


def read_answer(tokenizer: Tokenizer, record: Record, number: int, name: str) -> Answered:
    """A record's `prompt` and the answer in its field `name`, both text or both messages; text ends with the tokenizer's `eos`,
    if it has one.

    Raises:
      InputError: they are not; or as `read_chat`.
    """
    prompt, answer = (read_field(record, number, field, (str, list), _TEXT_OR_MESSAGES) for field in ("prompt", name))
    if isinstance(prompt, str) != isinstance(answer, str):
        raise InputError(f"record {number} has text and messages as its 'prompt' and {name!r}: give both as the same")
    if isinstance(prompt, str):
        return _encode_text(tokenizer, prompt, answer)
    messages = [*_messages(record, number, "prompt"), *_messages(record, number, name)]
    with _of_record(number):
        tokens = tokenizer.encode_chat(messages, add_generation_prompt=False).tokens
        start = _shared(tokenizer, messages, len(prompt), True, tokens)
    return Answered(tokens, np.arange(len(tokens)) >= start)


def _encode_text(tokenizer: Tokenizer, prompt: str, answer: str) -> Answered:
    # Joined before they are cut into tokens: some tokenizers would begin the answer with a space.
    encoded = tokenizer(prompt + answer)
    tokens, is_answer = encoded.tokens[0], ~encoded.special[0] & (encoded.offsets[0, :, 1] > len(prompt))
    if tokenizer.eos is not None and tokens[-1:].tolist() != [tokenizer.eos]:
        tokens, is_answer = np.append(tokens, np.int32(tokenizer.eos)), np.append(is_answer, True)
    return Answered(tokens, np.logical_or.accumulate(is_answer))


def _messages(record: Record, number: int, name: str) -> Messages:
    messages = read_field(record, number, name, list, "a list of messages")
    for message in messages:
        if not isinstance(message, Mapping):
            raise InputError(f"record {number} has {brief(message)} among its {name!r}: expected a role and its content")
    return messages


def _shared(tokenizer: Tokenizer, messages: Messages, count: int, prompts: bool, tokens: np.ndarray) -> int:
    """How many of a chat's tokens are those of its first `count` messages and, with `prompts`, of what asks for another.

    One that is also of what comes next, as two line ends may be, is not counted.
    """
    begun = {"add_generation_prompt": prompts}
    if not tokenizer.chat(messages, add_generation_prompt=False).startswith(tokenizer.chat(messages[:count], **begun)):
        raise InputError(
            f"the chat template writes what comes before message {count} otherwise once that is there, so that it cannot be told "
            "where an answer begins: give `messages`, with a template that has {% generation %} around the assistant's words"
        )
    first = tokenizer.encode_chat(messages[:count], **begun).tokens
    length = min(len(first), len(tokens))
    return int(np.argmin(np.append(first[:length] == tokens[:length], False)))


@contextmanager
def _of_record(number: int) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"record {number}: {error}") from error
