"""Text to token ids and back: each tokenizer is one of the `tokenizers` library, and `tokenizer.json` its form on disk.

Text is only ever text: a document that spells "<|endoftext|>" gets the ids of these characters, never the special one.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from flaxllm.data.sources import nearest_path
from flaxllm.errors import InputError

END_OF_TEXT = "<|endoftext|>"
NAMED = ("bytes", "chars", "bpe")

_BPE_SIZES = (257, 2**20)  # the least holds the bytes; the trainer sets memory aside for any size it is told
_EACH_CHARACTER = r"[\s\S]"
_GPT2_PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the `tokenizers` library, and what the rest of the house asks of it."""

    backend: tokenizers.Tokenizer

    def __post_init__(self):
        self.backend.encode_special_tokens = True

    def __reduce__(self):
        return Tokenizer, (self.backend,)  # the library pickles all but `encode_special_tokens`

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def end_of_text(self) -> int | None:
        """The id that ends a document, if the vocabulary has one."""
        return self.backend.token_to_id(END_OF_TEXT)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of `tokenizer.json`, in hex."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    @cached_property
    def may_cut_at_newlines(self) -> bool:
        """Whether a text cut before any newline that follows a non-space gives the same ids as the whole.

        It is so where each byte or character is a token, and for GPT-2's pattern: no alternative of it has a space
        after its first character, or looks beyond a non-space, so such a place always ends a match, and there is no
        looking behind. Of any other tokenizer it is not known, and False.
        """
        spec = json.loads(self.backend.to_str())
        words = spec["pre_tokenizer"] or {"type": None}
        if words["type"] == "ByteLevel":
            known = not words["add_prefix_space"] and (words["use_regex"] or not spec["model"].get("merges"))
        else:
            known = words["type"] == "Split" and words["pattern"] == {"Regex": _EACH_CHARACTER}
        return known and spec["normalizer"] is None and all(token["special"] for token in spec["added_tokens"])

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 `[tokens]`; no special token is added."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, on all cores.

        Raises:
          InputError: a text has what this vocabulary cannot say.
        """
        try:
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library raises nothing more precise
            unknown = next(filter(None, (_unknown(self.backend, text) for text in texts)), None)
            if unknown is None:
                raise
            raise InputError(
                f"the tokenizer has no token for {unknown!r}: make it from text that has it, or use 'bytes'"
            ) from error
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, special tokens spelt out; bytes that are not UTF-8 become U+FFFD.

        Raises:
          InputError: an id is not of this vocabulary.
        """
        ids = np.asarray(ids, np.int64)
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if len(wrong):
            raise InputError(f"there is no token {wrong[0]}: the vocabulary has ids 0 to {self.vocab_size - 1}")
        return self.backend.decode(ids.tolist(), skip_special_tokens=False)

    def num_bytes(self, ids: np.ndarray) -> int:
        """The length in UTF-8 of the text that the ids spell.

        Where a text is its tokens' bytes one after another it is exact, though a character be cut in two. Of
        any other tokenizer it is the length of the decoded text.
        """
        if self._token_bytes is None:
            return len(self.decode(ids).encode())
        return int(self._token_bytes[ids].sum())

    @cached_property
    def _token_bytes(self) -> np.ndarray | None:
        """The number of bytes that each id stands for, or None where it depends on the ids around it."""
        decoder = json.loads(self.backend.to_str())["decoder"] or {"type": None}
        measures = {"ByteLevel": len, "Fuse": lambda token: len(token.encode())}
        if decoder["type"] not in measures:
            return None
        sizes = np.zeros(self.vocab_size, np.int64)
        for token, index in self.backend.get_vocab(with_added_tokens=True).items():
            sizes[index] = measures[decoder["type"]](token)
        return sizes

    def save(self, path: str | Path) -> None:
        """Writes the file `path`, or `tokenizer.json` in the folder `path` where it does not end in ".json"."""
        path = Path(path)
        path = path if path.suffix == ".json" else path / "tokenizer.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        unfinished.replace(path)


def byte_level() -> Tokenizer:
    """257 tokens: id b for the byte b of the text's UTF-8, and 256 for the end of a text."""
    vocab = {letter: byte for byte, letter in enumerate(_byte_letters())}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _finished(backend)


def char_level(documents: Iterable[str]) -> Tokenizer:
    """One id for each distinct character, in the order of their code points, and the last for the end of a text."""
    characters = set()
    for document in documents:
        characters.update(document)
    vocab = {char: index for index, char in enumerate(sorted(characters))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_EACH_CHARACTER), "isolated")
    backend.decoder = decoders.Fuse()
    return _finished(backend)


def train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE as GPT-2's (Radford et al. 2019, section 2.2): 256 bytes, merges, and the end of a text last.

    Raises:
      InputError: `vocab_size` has no room for the bytes, or is more than the documents have merges for.
    """
    least, most = _BPE_SIZES
    if not least <= vocab_size <= most:
        raise InputError(
            f"a byte-level BPE cannot have {vocab_size} tokens: set vocab_size from {least} (the bytes and "
            f"{END_OF_TEXT}) to {most}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=sorted(_byte_letters()), show_progress=False
    )
    backend.train_from_iterator(documents, trainer)
    tokenizer = _finished(backend)
    if tokenizer.vocab_size < vocab_size:
        raise InputError(
            f"the text has merges for {tokenizer.vocab_size} tokens, not for the {vocab_size} asked for: "
            f"set vocab_size to at most {tokenizer.vocab_size}, or use more text"
        )
    return tokenizer


def load(path: str | Path) -> Tokenizer:
    """A tokenizer from a `tokenizer.json`, a folder that holds one, or a folder with the pair that GPT-2 published.

    What the file says of truncation and padding is dropped: text is encoded whole.

    Raises:
      InputError: there is none, or it is damaged.
    """
    path = Path(os.path.expanduser(path))
    if not os.path.exists(path):
        raise InputError(f"there is no tokenizer {str(path)!r}: {nearest_path(path, NAMED)}")
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.exists():
        return _load_pair(path)
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more precise
        raise InputError(f"{file} is not a tokenizer.json that can be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(backend)


def make_tokenizer(spec: str, documents: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer that a config names: "bytes", "chars" or "bpe" (these two made from `documents`), or a path.

    Raises:
      InputError: no such tokenizer, or a `vocab_size` where it is not the caller's to choose (or missing for "bpe").
    """
    if spec == "bpe":
        if vocab_size is None:
            raise InputError("the tokenizer 'bpe' is trained to a size: set vocab_size")
        return train_bpe(documents, vocab_size)
    if vocab_size is not None:
        raise InputError(f"vocab_size {vocab_size} is for the tokenizer 'bpe', {spec!r} has its own: leave it None")
    if spec == "bytes":
        return byte_level()
    if spec == "chars":
        return char_level(documents)
    return load(spec)


def _load_pair(folder: Path) -> Tokenizer:
    """GPT-2's tokenizer from its two published files, the ids by token (JSON) and the merges (text)."""
    found = [(folder / vocab, folder / merges) for vocab, merges in _GPT2_PAIRS]
    pair = next((pair for pair in found if all(file.exists() for file in pair)), None)
    if pair is None:
        names = " or ".join(f"{vocab} and {merges}" for vocab, merges in _GPT2_PAIRS)
        raise InputError(f"folder {str(folder)!r} holds no tokenizer: expected tokenizer.json, or {names}")
    try:
        backend = tokenizers.Tokenizer(models.BPE.from_file(*map(str, pair)))
    except Exception as error:  # the library raises nothing more precise
        raise InputError(f"{pair[0]} and {pair[1].name} are not GPT-2's pair of files: {error}") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _finished(backend)


def _finished(backend: tokenizers.Tokenizer) -> Tokenizer:
    backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend)


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it is printable in Latin-1, else
    the next letter from U+0100 up (the convention of GPT-2's vocabulary)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _unknown(backend: tokenizers.Tokenizer, text: str) -> str | None:
    """The first part of a text that has no token, or None."""
    half_pair = next((char for char in text if "\ud800" <= char <= "\udfff"), None)
    if half_pair or backend.pre_tokenizer is None:
        return half_pair
    words = (word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    return next((word for word in words if backend.token_to_id(word) is None), None)
