"""Byte-level BPE (Radford et al. 2019, section 2.2): the letters of the bytes, and how each family finds words in a text."""

from typing import NamedTuple

import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers


class Words(NamedTuple):
    """How a family finds the words in which it merges bytes, and what goes with that."""

    pattern: str | None = None  # None: GPT-2's
    digits_apart: bool = False  # each by itself, before the pattern is looked for
    nfc: bool = False  # whether the text is put in Unicode's form C
    ignore_merges: bool = False  # a word that is in the vocabulary is taken whole, whatever the merges would make of it
    adds_bos: bool = False  # where a GGUF file does not say (as llama.cpp has it)


# The patterns are those that the families publish in their tokenizer.json.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = Words()
QWEN2 = Words(_LLAMA3.replace("{1,3}", ""), nfc=True)
LLAMA3 = Words(_LLAMA3, ignore_merges=True, adds_bos=True)
SMOLLM = Words(digits_apart=True)
# By the names that GGUF has for them.
WORDS = {
    "gpt-2": GPT2,
    "smollm": SMOLLM,
    "smollm2": SMOLLM,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "tekken": Words(_TEKKEN, ignore_merges=True, adds_bos=True),
}


def find_words(backend: tokenizers.Tokenizer, words: Words = GPT2, add_prefix_space: bool = False) -> None:
    """Makes a backend find words as a family does, spell them in bytes, and decode these."""
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=words.pattern is None)]
    if words.pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(words.pattern), "isolated"))
    if words.digits_apart:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if words.nfc:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it is printable in Latin-1, else
    the next letter from U+0100 up (the convention of GPT-2's vocabulary)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
