"""Text out of tokens as they come, against the text of all of them at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.frozen_tokenizers import load
from flaxllm.data import byte_level
from flaxllm.decoding.text import TextStream

BYTES = byte_level()
GPT2, LLAMA = load("gpt2"), load("llama")


def pieces(tokenizer, tokens, stop=(), after=()) -> list[str]:
    stream = TextStream(tokenizer, stop, after)
    said = [stream.push(token) for token in tokens] + [stream.finish()]
    assert stream.text == "".join(said)
    return said


def encoded(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text).tolist()


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "qwen2", "smollm"])
@pytest.mark.parametrize("text", ["The dog ran.", "héllo wörld", "日本語 😀!", " a\n\n b  c "])
def test_the_pieces_make_the_whole(name, text):
    tokenizer = load(name)
    tokens = encoded(tokenizer, text)
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens, skip_special=True)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_no_piece_has_half_a_character(text):
    said = pieces(BYTES, encoded(BYTES, text))
    assert "".join(said) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in said)


def test_a_character_comes_with_its_last_byte():
    assert pieces(BYTES, "a€b".encode()) == ["a", "", "", "€", "b", ""]


def test_bytes_that_are_no_character_are_said_at_last():
    assert pieces(BYTES, [0xE2, 0x82, ord("a")]) == ["", "", "\ufffda", ""]
    assert pieces(BYTES, [0xE2, 0x82]) == ["", "", "\ufffd"]
    assert [bool(piece) for piece in pieces(BYTES, [0x80] * 12)] == [False] * 7 + [True] + [False] * 4 + [True]


def test_a_stop_string_over_several_tokens_ends_the_text_before_it():
    stream = TextStream(BYTES, ["END"])
    assert [stream.push(byte) for byte in b"an EN, ENDs"] == ["a", "n", " ", "", "", "EN,", " ", "", "", "", ""]
    assert stream.stopped and stream.text == "an EN, " and stream.finish() == ""


def test_a_stop_string_inside_a_token_cuts_it():
    token = next(index for index in range(500) if len(GPT2.decode([index])) >= 4)
    text = GPT2.decode([token])
    stream = TextStream(GPT2, [text[1:3]])
    assert stream.push(token) == text[0] and stream.stopped


def test_the_earliest_of_several_stop_strings_counts():
    assert "".join(pieces(BYTES, b"one two three", ["three", "two", "zero"])) == "one "
    assert "".join(pieces(BYTES, b"abcd", ["bcx", "cd"])) == "ab"


def test_what_is_held_back_is_said_when_nothing_follows():
    assert pieces(BYTES, b"ab", ["bc"]) == ["a", "", "b"]
    stream = TextStream(BYTES, ["\ufffd"])
    assert stream.push(0xE2) == "" and stream.finish() == "" and stream.stopped


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_it_stops_where_the_text_has_the_string_first(text, stop):
    """At each token the text up to there is looked through: the first token with which some string is complete ends it."""
    ends = [end for end in range(len(text) + 1) if any(string in text[:end] for string in stop)]
    places = [text[: ends[0]].find(string) for string in stop] if ends else []
    expected = text[: min(place for place in places if place >= 0)] if ends else text
    stream = TextStream(BYTES, stop)
    assert "".join(stream.push(byte) for byte in text.encode()) + stream.finish() == expected
    assert stream.stopped == bool(ends)


def test_of_special_tokens_and_of_the_models_own_nothing_is_said():
    a, b = encoded(LLAMA, "dog")[0], encoded(LLAMA, "the dog")[-1]
    assert LLAMA.decode([a, b]) == pieces(LLAMA, [a, b])[0] + pieces(LLAMA, [a, b])[1]
    tokens = [a, LLAMA.eos, LLAMA.vocab_size + 5, b]
    assert pieces(LLAMA, tokens)[1:3] == ["", ""]
    assert "".join(pieces(LLAMA, tokens)) == LLAMA.decode([a, b])
    assert pieces(GPT2, [GPT2.eos, GPT2.vocab_size]) == ["", "", ""]


def test_a_space_at_the_beginning_stays_after_other_text():
    tokens = encoded(LLAMA, "the dog")
    assert "".join(pieces(LLAMA, tokens)) == "the dog"
    assert "".join(pieces(LLAMA, tokens, after=np.array([LLAMA.bos, *tokens]))) == " the dog"
    assert "".join(pieces(LLAMA, tokens, after=[LLAMA.bos])) == "the dog"


def test_the_position_counts_what_is_held_back():
    stream = TextStream(BYTES, ["bc"])
    stream.push(ord("a")), stream.push(ord("b"))
    assert stream.text == "a" and stream.position == 2
