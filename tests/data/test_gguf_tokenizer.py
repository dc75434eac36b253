"""The tokenizers inside GGUF files: against transformers (frozen), each other, and what a file can get wrong."""

import re
from pathlib import Path

import gguf
import numpy as np
import pytest

import real_weights
from data.frozen_tokenizers import FOLDER, MESSAGES, REAL, TEXTS, load, refused, rows_of
from flaxllm.data import load_tokenizer
from flaxllm.data.gguf_metadata import read_metadata


def test_a_gguf_file_of_llama_has_the_ids_of_its_sentencepiece_model():
    ours, theirs = load_tokenizer(FOLDER / "spm.gguf"), load("llama")
    for text in TEXTS["texts"]:
        np.testing.assert_array_equal(ours(text).tokens, theirs(text).tokens)
        assert ours.decode(ours.encode(text)) == text
    assert (ours.bos, ours.eos, ours.unk, ours.max_len) == (1, 2, 0, 2048)


def test_digits_are_apart_in_smollm():
    tokenizer, gpt2 = load("smollm"), load("gpt-2")
    for text in ("12345", " 1 22  333", "a1b  2", "x\u00bd\u0663"):
        parts = re.findall(r"[0-9\u00bd\u0663]|[^0-9\u00bd\u0663]+", text)
        assert tokenizer.encode(text).tolist() == [index for part in parts for index in gpt2.encode(part).tolist()]


def test_the_tokenizer_in_the_gguf_file_of_smollm2_gives_the_ids_of_transformers():
    tokenizer = load_tokenizer(real_weights.smollm2_gguf())
    texts, expected = list(REAL["smollm2"]), list(REAL["smollm2"].values())
    assert len(texts) > 10
    assert rows_of(tokenizer(texts), "tokens") == expected
    assert tokenizer.decode_batch(expected) == texts
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.end_of_text, tokenizer.vocab_size) == (1, 2, 2, 0, 49152)
    assert tokenizer.encode_chat(MESSAGES).tokens.tolist() == REAL["smollm2 chat"]
    # GPT-2's pattern alone would leave the second space to the digit.
    assert [tokenizer.decode([index]) for index in tokenizer.encode("a  12").tolist()] == ["a", "  ", "1", "2"]


def test_tokens_that_users_defined_are_read_in_any_text_and_are_not_special():
    tokenizer = load("smollm")
    tool = tokenizer.vocab_size - 1
    assert tokenizer.encode("a<tool>").tolist() == [*tokenizer.encode("a").tolist(), tool]
    assert tokenizer.decode([tool], skip_special=True) == "<tool>"
    assert tokenizer.special_tokens == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize(("pre", "adds_bos"), [("smollm", False), ("qwen2", False), ("llama-bpe", True), ("tekken", True)])
def test_where_a_file_does_not_say_whether_bos_is_added_its_kind_does(tmp_path, pre, adds_bos):
    write_gguf(tmp_path / "x.gguf", **{"ggml.pre": pre, "ggml.add_bos_token": None})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("a").tokens[0].tolist() == [*[tokenizer.bos] * adds_bos, *tokenizer.encode("a").tolist()]


@pytest.mark.parametrize(("pre", "whole"), [("smollm", False), ("llama-bpe", True), ("tekken", True)])
def test_some_kinds_take_a_word_whole_that_no_merge_makes(tmp_path, pre, whole):
    tokens = [*read_metadata(FOLDER / "smollm.gguf")["tokenizer.ggml.tokens"], "qqq"]
    write_gguf(tmp_path / "x.gguf", **{"ggml.pre": pre, "ggml.tokens": tokens, "ggml.token_type": [1] * len(tokens)})
    assert (load_tokenizer(tmp_path).encode("qqq").tolist() == [len(tokens) - 1]) == whole


def write_gguf(path: Path, model: dict | None = None, **values) -> None:
    """A GGUF file like that of the fixtures, with other values (`model` has those not of the tokenizer); None takes a key away."""
    changed = {f"tokenizer.{name}": value for name, value in values.items()} | (model or {})
    keys = read_metadata(FOLDER / "smollm.gguf") | changed
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        if value is not None and key != "general.architecture":
            kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            kinds.get(type(value), writer.add_array)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ggml.model": "bert"}, "has a tokenizer of the kind 'bert': expected one of: gpt2, llama"),
        ({"ggml.model": None}, "has no tokenizer.ggml.model"),
        ({"ggml.model": 3}, "has tokenizer.ggml.model 3: expected str"),
        ({"ggml.pre": "smolm"}, "finds words as 'smolm' does (tokenizer.ggml.pre): did you mean 'smollm'?"),
        ({"ggml.pre": None}, "has no tokenizer.ggml.pre"),
        ({"ggml.tokens": ["a", "a"]}, "has a token twice"),
        ({"ggml.tokens": [1, 2]}, "has tokenizer.ggml.tokens [1, 2]: expected strings"),
        ({"ggml.merges": ["a b c"]}, "has a merge that is not of two tokens"),
        ({"ggml.merges": ["xyz zyx"]}, "has a tokenizer that cannot be used: "),
        ({"ggml.token_type": [1, 2]}, "has 2 values in tokenizer.ggml.token_type: expected 504 numbers"),
        ({"ggml.eos_token_id": 504}, "has tokenizer.ggml.eos_token_id 504: expected an id below 504"),
        ({"ggml.eos_token_id": True}, "has tokenizer.ggml.eos_token_id True: expected an id below 504"),
        ({"ggml.add_bos_token": 1}, "has tokenizer.ggml.add_bos_token 1: expected bool"),
        ({"chat_template": 3}, "has the chat_template 3: expected a string"),
        ({"ggml.model": "llama"}, "has no tokenizer.ggml.scores"),
        ({"ggml.model": "llama", "ggml.scores": [0.5] * 504}, "has no token that is a byte"),
    ],
)
def test_what_is_wrong_with_the_tokenizer_in_a_gguf_file_is_said(tmp_path, values, message):
    path = tmp_path / "x.gguf"
    write_gguf(path, **values)
    assert refused(path).startswith(f"{path} {message}")


@pytest.mark.parametrize("length", [True, 0, "x", 0.5])
def test_a_context_length_that_is_none_is_not_taken_for_one(tmp_path, length):
    path = tmp_path / "x.gguf"
    write_gguf(path, **{"ggml.pre": "smollm"})
    assert load_tokenizer(path).max_len == 2048
    write_gguf(path, model={"llama.context_length": length})
    assert load_tokenizer(path).max_len is None


def test_a_gguf_file_may_have_several_chat_templates_and_lie_alone_in_a_folder(tmp_path):
    write_gguf(tmp_path / "x.gguf", **{"chat_templates": ["rag"], "chat_template.rag": "second", "chat_template": "first"})
    assert load_tokenizer(tmp_path).chat_template == {"default": "first", "rag": "second"}
