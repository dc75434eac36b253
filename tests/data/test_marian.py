"""Marian's tokenizer against transformers' (frozen)."""

import dataclasses

import numpy as np

from data.frozen_tokenizers import frozen, load, read, rows_of


def test_marian_cuts_source_and_target_by_their_models_into_one_vocabulary():
    tokenizer, expected = load("marian"), frozen("marian")
    assert rows_of(tokenizer(expected["texts"]), "tokens") == expected["source"]
    assert rows_of(tokenizer.encode_target(expected["texts"]), "tokens") == expected["target"]
    decoded = tokenizer.decode_batch(expected["target"], skip_special=True)
    assert [text.strip() for text in decoded] == expected["decoded"]
    assert {role: getattr(tokenizer, role) for role in expected["roles"]} == expected["roles"]
    assert tokenizer.vocab_size == 1 + expected["roles"]["pad"] and tokenizer.max_len == 512
    assert any(tokenizer.unk in ids for ids in expected["source"])
    plain = [tokenizer.encode(text).tolist() for text in expected["texts"]]
    assert plain == [ids[:-1] for ids in expected["source"]]


def test_other_tokenizers_encode_a_target_as_any_text():
    tokenizer = load("t5")
    np.testing.assert_array_equal(tokenizer.encode_target("a b").tokens, tokenizer("a b").tokens)


def test_the_target_is_part_of_the_fingerprint():
    tokenizer = load("marian")
    other = dataclasses.replace(tokenizer, translation=dataclasses.replace(tokenizer.translation, target=tokenizer.backend))
    assert other.fingerprint != tokenizer.fingerprint


def test_each_piece_of_either_language_is_decoded_as_it_is_spelt():
    tokenizer = load("marian")
    for token, index in read("marian/vocab.json").items():
        if index not in (tokenizer.eos, tokenizer.unk, tokenizer.pad):
            assert tokenizer.decode([index]).strip() == token.replace("\u2581", " ").strip()
