"""Tokenizers trained on text in BERT's and T5's manner: the same each time, in any process, and of the size asked for."""

import subprocess
import sys

import pytest

from flaxllm.data import load_tokenizer, make_tokenizer, read_documents
from flaxllm.errors import InputError

VERSE = "The wheel turned, and the wheels were turning; Turner's wheel-house burned. "
DOCUMENTS = [VERSE, VERSE.upper() + "Ünïque words: naïve cafés."] * 20


@pytest.fixture(scope="module")
def wordpiece():
    return make_tokenizer("wordpiece", DOCUMENTS, 78)


@pytest.fixture(scope="module")
def unigram():
    return make_tokenizer("unigram", read_documents("python-docs"), 600)


def pieces(tokenizer, *texts: str) -> list[str]:
    return [tokenizer.backend.id_to_token(int(token)) for token in tokenizer(*texts).tokens[0]]


def test_a_wordpiece_tokenizer_is_berts(wordpiece):
    assert wordpiece.vocab_size == 78
    assert (wordpiece.pad, wordpiece.unk, wordpiece.cls, wordpiece.sep, wordpiece.mask) == (0, 1, 2, 3, 4)
    assert pieces(wordpiece, "The WHEEL", "turned") == ["[CLS]", "the", "wheel", "[SEP]", "turned", "[SEP]"]
    assert wordpiece("The WHEEL", "turned").token_types[0].tolist() == [0, 0, 0, 0, 1, 1]
    assert pieces(wordpiece, "naïve ☃")[1:-1][-1] == "[UNK]"
    inside = pieces(wordpiece, "burnings")[1:-1]
    assert not inside[0].startswith("##") and all(piece.startswith("##") for piece in inside[1:]) and len(inside) > 1
    assert inside[0] + "".join(piece[2:] for piece in inside[1:]) == "burnings"


def test_the_commonest_words_are_pieces(wordpiece):
    for word in ("the", "wheel", "turned", "burned"):
        assert pieces(wordpiece, word) == ["[CLS]", word, "[SEP]"]


def test_a_unigram_tokenizer_is_t5s(unigram, tmp_path):
    assert unigram.vocab_size == 600 and (unigram.pad, unigram.eos, unigram.unk) == (0, 1, 2)
    assert pieces(unigram, "The for statement")[-1] == "</s>" and pieces(unigram, "The")[0].startswith("▁")
    assert unigram.backend.token_to_id("<extra_id_0>") == 599 and unigram.backend.token_to_id("<extra_id_99>") == 500
    text = "The for statement is used to iterate"
    assert unigram.decode(unigram(text).tokens[0][:-1]) == text
    unigram.save(tmp_path)
    assert load_tokenizer(tmp_path)(text).tokens.tolist() == unigram(text).tokens.tolist()


@pytest.mark.parametrize(("kind", "size"), [("wordpiece", 1000), ("unigram", 600)])
def test_another_process_makes_the_same(kind, size):
    """The order of a hash table is another in each."""
    code = f"from flaxllm.data import *; print(make_tokenizer({kind!r}, read_documents('python-docs'), {size}).fingerprint)"
    made = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert made == {make_tokenizer(kind, read_documents("python-docs"), size).fingerprint + "\n"}


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("wordpiece", 20, "vocab_size 20 has no room for the .* letters of the text: raise it"),
        ("wordpiece", 10_000, "the text has enough for .* tokens, not for the 10000 asked for"),
        ("unigram", 100, "vocab_size 100 leaves no room beside 100 sentinels: raise it"),
        ("unigram", 110, "no unigram model of 10 pieces can be made of the text: Vocabulary size is smaller than required_chars"),
        ("unigram", 10_000, "no unigram model of 9900 pieces can be made of the text: Vocabulary size too high"),
        ("unigram", None, "the tokenizer 'unigram' is trained to a size: set vocab_size"),
    ],
)
def test_a_size_that_the_text_does_not_give_is_refused(kind, size, message):
    with pytest.raises(InputError, match=message):
        make_tokenizer(kind, DOCUMENTS, size)
