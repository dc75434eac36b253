"""What tokens read like, in each kind of vocabulary."""

import pytest
import tokenizers
from tokenizers import models

from data.frozen_tokenizers import TEXTS, load
from flaxllm.data.byte_bpe import byte_letters, find_words
from flaxllm.data.tokenizers import Tokenizer
from flaxllm.interpret.texts import Piece, token_pieces, token_texts


def texts(name: str, text: str) -> list[str]:
    tokenizer = load(name)
    return token_texts(tokenizer, tokenizer(text, add_special_tokens=False).tokens[0])


def test_bytes_that_are_no_whole_character_are_hexadecimal():
    tokenizer = load("gpt2")
    pieces = token_pieces(tokenizer, tokenizer("e 猫é").tokens[0])
    assert pieces == [
        Piece("e"),
        Piece(" "),
        Piece("E7", "猫"),
        Piece("8C", "猫", True),
        Piece("AB", "猫", True),
        Piece("C3", "é"),
        Piece("A9", "é", True),
    ]


def test_a_space_and_the_first_byte_of_a_character_are_one_token():
    letters = byte_letters()
    space_and_byte = letters[ord(" ")] + letters[0xE7]
    vocab = {letter: byte for byte, letter in enumerate(letters)} | {space_and_byte: 256}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [tuple(space_and_byte)]))
    find_words(backend)
    tokens = backend.encode("a 猫").ids
    assert token_pieces(Tokenizer(backend), tokens) == [
        Piece("a"),
        Piece(" E7", " 猫"),
        Piece("8C", " 猫", True),
        Piece("AB", " 猫", True),
    ]


def test_tokens_that_do_not_follow_each_other_share_nothing():
    tokenizer = load("gpt2")
    assert token_pieces(tokenizer, tokenizer("猫").tokens[0], successive=False) == [
        Piece("E7", "E7"),
        Piece("8C", "8C"),
        Piece("AB", "AB"),
    ]
    assert token_pieces(tokenizer, []) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("bert", "Hello", ["h", "##e", "##llo"]),
        ("llama", "Hello é猫", [" ", "H", "e", "llo", " ", "é", "E7", "8C", "AB"]),
        ("t5", "the house", [" the", " ", "hou", "s", "e"]),
        ("smollm", "a the", ["a", " the"]),
    ],
)
def test_each_vocabulary_has_its_own_spelling(name, text, expected):
    assert texts(name, text) == expected


def test_a_translators_pieces_are_those_of_both_its_languages():
    tokenizer = load("marian")
    by_id = {index: piece for piece, index in tokenizer.translation.vocab.items()}
    found = token_texts(tokenizer, range(tokenizer.vocab_size))
    assert found == [by_id[index].replace("\u2581", " ") for index in range(tokenizer.vocab_size)]


def test_special_tokens_and_places_without_a_token():
    tokenizer = load("bert")
    assert token_texts(tokenizer, [tokenizer.cls, 10**6]) == ["[CLS]", "[1000000]"]


@pytest.mark.parametrize("name", ["gpt2", "smollm", "qwen2", "llama-bpe"])
def test_together_the_pieces_are_the_text(name):
    tokenizer = load(name)
    for text in TEXTS["texts"]:
        tokens = tokenizer.encode(text)
        pieces = token_pieces(tokenizer, tokens)
        said = [piece.text if piece.whole is None else "" if piece.joined else piece.whole for piece in pieces]
        assert "".join(said) == tokenizer.decode(tokens)
