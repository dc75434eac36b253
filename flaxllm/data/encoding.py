"""Texts as a model takes them: special tokens around them, cut to a length and filled up to one, as numpy arrays."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import Encoding

from flaxllm.data.json_file import brief
from flaxllm.data.library_errors import explained
from flaxllm.errors import InputError, did_you_mean

_TRUNCATIONS = ("longest_first", "only_first", "only_second")
_PADDINGS = ("longest", "max_len", None)
_SIDES = ("left", "right")


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Rows of tokens, each a text, a pair of texts, or a window of one where a text was cut into several."""

    tokens: Int32[np.ndarray, "row token"]
    valid: Bool[np.ndarray, "row token"]  # False where a row is only filled up
    token_types: Int32[np.ndarray, "row token"]  # 1 at the second text of a pair, where the tokenizer has types; else 0
    offsets: Int32[np.ndarray, "row token 2"]  # the characters of the text that a token stands for: start, end
    special: Bool[np.ndarray, "row token"]  # True at tokens that were put around the texts, and where a row is filled up
    word_ids: Int32[np.ndarray, "row token"]  # which word of its text a token is of; -1 where `special`
    sequence_ids: Int32[np.ndarray, "row token"]  # 0 at the first text of a pair, 1 at the second; -1 where `special`
    row: Int32[np.ndarray, " row"]  # which of the texts a row is of
    has_token_types: bool

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The arrays by the names that a model's `apply` has for them: tokens, valid and, if it has types, token_types."""
        names = ("tokens", "valid", "token_types") if self.has_token_types else ("tokens", "valid")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedChat:
    """The tokens of a chat."""

    tokens: Int32[np.ndarray, " token"]
    assistant: Bool[np.ndarray, " token"]  # True at what the template marks as the assistant's words


@dataclasses.dataclass(frozen=True)
class Fit:
    """How rows are cut to a length and filled up to one."""

    max_len: int | None
    truncation: str
    truncation_side: str
    stride: int | None  # where it is given, what is cut off makes rows too, each with so many tokens of the one before
    padding: str | None
    padding_side: str
    pad: int

    def __post_init__(self):
        choices = {"truncation": _TRUNCATIONS, "padding": _PADDINGS, "padding_side": _SIDES, "truncation_side": _SIDES}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"{name} cannot be {value!r}: {did_you_mean(str(value), map(str, known))}")
        if self.max_len is None and (self.padding == "max_len" or self.stride is not None):
            raise InputError("padding='max_len' and stride need a length: set max_len")
        if self.max_len is not None and self.max_len < 1:
            raise InputError(f"max_len is {self.max_len}: expected at least 1")
        if self.stride is not None and self.stride < 0:
            raise InputError(f"stride is {self.stride}: expected at least 0")


def encode_rows(
    encoder: tokenizers.Tokenizer,
    backend: tokenizers.Tokenizer,
    texts: str | Sequence,
    pairs: str | Sequence | None,
    fit: Fit,
    *,
    add_special_tokens: bool,
    split_words: bool,
    has_token_types: bool,
    ids_of: Callable[[Encoding], list[int]],
) -> Encoded:
    """The rows of one text or several, or of pairs of them; with `split_words` each text is its words.

    `encoder` makes the texts' tokens, `backend` puts its special ones around them, and `ids_of` gives their ids.

    Raises:
      InputError: a text is no string, or has what the vocabulary cannot say; there are not as many second texts, or
        none that could be cut; a text cannot be cut as `fit` says; unequal lengths where rows are not to be filled up.
    """
    firsts = _encodings(encoder, texts, "text", split_words)
    seconds = [None] * len(firsts)
    if pairs is not None:
        seconds = _encodings(encoder, pairs, "the second text of pair", split_words)
        if len(seconds) != len(firsts):
            raise InputError(f"there are {len(firsts)} texts and {len(seconds)} second texts: expected as many of both")
    elif fit.truncation == "only_second" and fit.max_len is not None:
        raise InputError("truncation='only_second' cuts the second texts of pairs: give pairs, or choose 'longest_first'")
    added = backend.num_special_tokens_to_add(pairs is not None) if add_special_tokens else 0
    windows, row = [], []
    for number, (first, second) in enumerate(zip(firsts, seconds)):
        if fit.max_len is not None:
            _cut([encoding for encoding in (first, second) if encoding is not None], fit, added, number)
        of_text = [backend.post_process(*parts, add_special_tokens) for parts in _windows(first, second, fit)]
        windows += of_text
        row += [number] * len(of_text)
    return _stacked(windows, [ids_of(window) for window in windows], row, fit, has_token_types)


def _encodings(encoder: tokenizers.Tokenizer, texts: str | Sequence, name: str, split_words: bool) -> list[Encoding]:
    """The encodings of one text or several, without special tokens."""
    single = isinstance(texts, str) if not split_words else len(texts) > 0 and all(isinstance(word, str) for word in texts)
    texts = [texts] if single else list(texts)
    check_texts(texts, name, split_words)
    with explained(encoder, texts):
        return encoder.encode_batch(texts, is_pretokenized=split_words, add_special_tokens=False)


def check_texts(texts: Sequence, name: str = "text", split_words: bool = False) -> None:
    """Raise InputError where one is no string or, with `split_words`, no list of strings."""
    for number, text in enumerate(texts):
        if not _is_text(text, split_words):
            expected = "a list of strings, its words" if split_words else "a string"
            raise InputError(f"{name} {number} is {brief(text)}: expected {expected}")


def _is_text(text: object, split_words: bool) -> bool:
    if split_words:
        return isinstance(text, list | tuple) and all(isinstance(word, str) for word in text)
    return isinstance(text, str)


def _cut(encodings: list[Encoding], fit: Fit, added: int, number: int) -> None:
    """Shortens a text, or a pair, so that it has `max_len` tokens with the special ones; what is cut off stays with it."""
    lengths = [len(encoding) for encoding in encodings]
    room = fit.max_len - added
    if sum(lengths) <= room:
        return
    kept = _kept(lengths, room, fit.truncation)
    if min(kept) < 0:
        raise InputError(
            f"text {number} cannot be cut to max_len {fit.max_len}: {added} special tokens and what is not cut "
            f"({fit.truncation}) have {fit.max_len - min(kept)}, so raise max_len or choose another truncation"
        )
    for encoding, length, keep in zip(encodings, lengths, kept):
        if keep < length:
            if (fit.stride or 0) >= max(keep, 1):
                raise InputError(f"stride {fit.stride} is not less than the {keep} tokens of a window: lower it or raise max_len")
            encoding.truncate(keep, stride=fit.stride or 0, direction=fit.truncation_side)


def _windows(first: Encoding, second: Encoding | None, fit: Fit) -> list[tuple[Encoding, Encoding | None]]:
    """The windows of a text, or of a pair, in the order of transformers: what is cut off the first text comes first."""
    if fit.stride is None:
        return [(first, second)]
    firsts, seconds = [first, *first.overflowing], [None] if second is None else [second, *second.overflowing]
    later = [(window, other) for window in firsts[1:] for other in seconds]
    return [(first, second), *later, *((first, other) for other in seconds[1:])]


def _kept(lengths: list[int], room: int, truncation: str) -> list[int]:
    """How many tokens of each text stay."""
    if len(lengths) == 1:
        return [room]
    first, second = lengths
    if truncation == "only_first":
        return [room - second, second]
    if truncation == "only_second":
        return [first, room - first]
    shorter = min(first, second, room // 2) if room >= 0 else room
    return [shorter, room - shorter] if first <= second else [room - shorter, shorter]


def _stacked(windows: list[Encoding], ids: list[list[int]], row: list[int], fit: Fit, has_token_types: bool) -> Encoded:
    lengths = [len(window) for window in windows]
    longest = max(lengths, default=0)
    if fit.padding is None and min(lengths, default=0) < longest:
        raise InputError(f"rows of {min(lengths)} and {longest} tokens make no array: choose padding='longest' or 'max_len'")
    shape = (len(windows), fit.max_len if fit.padding == "max_len" else longest)
    tokens, token_types = np.full(shape, fit.pad, np.int32), np.zeros(shape, np.int32)
    valid, special = np.zeros(shape, bool), np.ones(shape, bool)
    word_ids, sequence_ids = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    offsets = np.zeros((*shape, 2), np.int32)
    for i, (window, length) in enumerate(zip(windows, lengths)):
        if length == 0:
            continue
        at = slice(0, length) if fit.padding_side == "right" else slice(shape[1] - length, None)
        tokens[i, at], valid[i, at] = ids[i], True
        token_types[i, at] = window.type_ids if has_token_types else 0
        special[i, at], offsets[i, at] = window.special_tokens_mask, window.offsets
        word_ids[i, at] = [-1 if word is None else word for word in window.word_ids]
        # Of the first text's tokens the library says nothing where there are two.
        sequence_ids[i, at] = [int(sequence == 1) for sequence in window.sequence_ids]
    sequence_ids[special] = -1
    return Encoded(
        tokens=tokens,
        valid=valid,
        token_types=token_types,
        offsets=offsets,
        special=special,
        word_ids=word_ids,
        sequence_ids=sequence_ids,
        row=np.array(row, np.int32),
        has_token_types=has_token_types,
    )
