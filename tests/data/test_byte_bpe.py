"""How each family finds words, against what its published pattern says of a few texts, read by hand."""

import pytest
import tokenizers
from tokenizers import models

from flaxllm.data.byte_bpe import WORDS, byte_letters, find_words

SPELT = {
    "gpt-2": "I|'m|Ġ2024|!!|Ġdon|'|T|ĊĊĠĠ|Ġend|Ċ",
    "smollm": "I|'m|Ġ|2|0|2|4|!!|Ġdon|'|T|ĊĊĠĠ|Ġend|Ċ",
    "llama-bpe": "I|'m|Ġ|202|4|!!|Ġdon|'T|ĊĊ|ĠĠ|Ġend|Ċ",
    "qwen2": "I|'m|Ġ|2|0|2|4|!!|Ġdon|'T|ĊĊ|ĠĠ|Ġend|Ċ",
    "tekken": "I|'m|Ġ|2|0|2|4|!!|Ġdon|'T|ĊĊ|ĠĠ|Ġend|Ċ",
}
OTHER = {
    "gpt-2": "camelCase|ĠABc|Ġ(|x|/|ĊĠ|Ġy|)",
    "llama-bpe": "camelCase|ĠABc|Ġ(|x|/Ċ|Ġ|Ġy|)",
    "tekken": "camel|Case|ĠABc|Ġ(|x|/Ċ|Ġ|Ġy|)",
}


def backend_of(kind: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE({letter: index for index, letter in enumerate(byte_letters())}, []))
    find_words(backend, WORDS[kind])
    return backend


def words_of(kind: str, text: str) -> str:
    return "|".join(word for word, _ in backend_of(kind).pre_tokenizer.pre_tokenize_str(text))


@pytest.mark.parametrize("kind", SPELT)
def test_words_are_found_as_the_family_does(kind):
    assert words_of(kind, "I'm 2024!! don'T\n\n   end\n") == SPELT[kind]


@pytest.mark.parametrize("kind", OTHER)
def test_words_of_letters_and_signs_are_found_as_the_family_does(kind):
    assert words_of(kind, "camelCase ABc (x/\n  y)") == OTHER[kind]


@pytest.mark.parametrize("kind", WORDS)
def test_bytes_come_back_as_the_text(kind):
    text = "naïve 語 \U0001f600\r\n\t12½"
    backend = backend_of(kind)
    assert backend.decode(backend.encode(text).ids) == text


def test_qwen2_puts_a_text_in_form_c():
    assert [len(backend_of(kind).encode("e\u0301").ids) for kind in ("qwen2", "llama-bpe")] == [2, 3]
