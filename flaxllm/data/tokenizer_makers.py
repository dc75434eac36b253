"""The tokenizers that are made here, and the one that a config names."""

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from flaxllm.data.byte_bpe import byte_letters, find_words
from flaxllm.data.tokenizer_files import load
from flaxllm.data.tokenizers import EACH_CHARACTER, END_OF_TEXT, Tokenizer
from flaxllm.errors import InputError

_BPE_SIZES = (257, 2**20)  # the least holds the bytes; the trainer sets memory aside for any size it is told


def byte_level() -> Tokenizer:
    """257 tokens: id b for the byte b of the text's UTF-8, and 256 for the end of a text."""
    vocab = {letter: byte for byte, letter in enumerate(byte_letters())}
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
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(EACH_CHARACTER), "isolated")
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
    find_words(backend)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=sorted(byte_letters()), show_progress=False)
    backend.train_from_iterator(documents, trainer)
    tokenizer = _finished(backend)
    if tokenizer.vocab_size < vocab_size:
        raise InputError(
            f"the text has merges for {tokenizer.vocab_size} tokens, not for the {vocab_size} asked for: "
            f"set vocab_size to at most {tokenizer.vocab_size}, or use more text"
        )
    return tokenizer


def make_tokenizer(spec: str, documents: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer that a config names: "bytes", "chars" or "bpe" (these two made from `documents`), or a path or id.

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


def _finished(backend: tokenizers.Tokenizer) -> Tokenizer:
    backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend, eos=backend.token_to_id(END_OF_TEXT))
