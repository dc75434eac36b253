"""What the `tokenizers` library raises, or panics with, said in one sentence: it has no exceptions of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tokenizers

from flaxllm.errors import InputError


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Raises InputError that begins with `what`, a file and what it should be, where the library fails."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic is no Exception
        raise InputError(f"{what}: {one_line(error)}") from error


@contextmanager
def explained(backend: tokenizers.Tokenizer, texts: Sequence) -> Iterator[None]:
    """Raises InputError where the library fails to encode texts, or texts in words, because one has no token."""
    try:
        yield
    except Exception as error:
        unknown = next(filter(None, (_unknown(backend, text) for text in _strings(texts))), None)
        if unknown is None:
            raise
        raise InputError(
            f"the tokenizer has no token for {unknown!r}: make it from text that has it, or use 'bytes'"
        ) from error


def one_line(error: BaseException) -> str:
    """What an error says, for the end of a sentence."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _strings(texts: Sequence) -> Iterator[str]:
    for text in texts:
        yield from [text] if isinstance(text, str) else text


def _unknown(backend: tokenizers.Tokenizer, text: str) -> str | None:
    """The first part of a text that has no token, or None."""
    half_pair = next((char for char in text if "\ud800" <= char <= "\udfff"), None)
    if half_pair or backend.pre_tokenizer is None:
        return half_pair
    words = (word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    return next((word for word in words if backend.token_to_id(word) is None), None)
