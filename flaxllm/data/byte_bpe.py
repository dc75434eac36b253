"""Byte-level BPE (Radford et al. 2019, section 2.2): the letters of the bytes, and how each family finds words in a text."""

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from flaxllm.errors import InputError, did_you_mean

# The patterns that the families publish in their tokenizer.json; the keys are the names that GGUF has for them.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {"llama-bpe": _LLAMA3, "qwen2": _LLAMA3.replace("{1,3}", ""), "tekken": _TEKKEN}
_DIGITS_APART = "smollm"
_SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2", "smollm2": _DIGITS_APART}
KINDS = ("gpt-2", _DIGITS_APART, *_PATTERNS, *_SAME)

# These take a word that is in the vocabulary whole, whatever the merges would make of it.
_WHOLE_WORDS = ("llama-bpe", "tekken")


def byte_bpe(
    vocab: dict[str, int], merges: list[tuple[str, str]], kind: str = "gpt-2", add_prefix_space: bool = False
) -> tokenizers.Tokenizer:
    """A byte-level BPE of these tokens' ids and merges, in their order, whose words are found as those of `kind`.

    Raises:
      InputError: the kind is not known.
      Exception: from the library, which raises nothing more precise: a merge is not of the vocabulary.
    """
    kind = _SAME.get(kind, kind)
    if kind not in KINDS:
        raise InputError(f"the pre-tokenizer {kind!r} is not known: {did_you_mean(kind, KINDS)}")
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=kind in _WHOLE_WORDS))
    return with_byte_words(backend, kind, add_prefix_space)


def with_byte_words(backend: tokenizers.Tokenizer, kind: str = "gpt-2", add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """The same backend, made to find words as `kind` does and to spell them in bytes."""
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=kind not in _PATTERNS)
    if kind in _PATTERNS:
        words = pre_tokenizers.Split(Regex(_PATTERNS[kind]), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, by_bytes])
    elif kind == _DIGITS_APART:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
    else:
        backend.pre_tokenizer = by_bytes
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it is printable in Latin-1, else
    the next letter from U+0100 up (the convention of GPT-2's vocabulary)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
