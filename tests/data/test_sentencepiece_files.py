"""SentencePiece models against the pieces that sentencepiece itself gives."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data.frozen_tokenizers import FOLDER, TEXTS, load
from flaxllm.data import Tokenizer, load_tokenizer
from flaxllm.data.sentencepiece_files import CONTROL, NORMAL, UNKNOWN, Piece, SentencePiece, sentencepiece_backend


def train_sentencepiece(path: Path, lines: list[str], **options) -> sentencepiece.SentencePieceProcessor:
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, minloglevel=2, num_threads=1, **options
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


T5_IDS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
MODELS = {
    "T5": {"model_type": "unigram", "vocab_size": 300, "hard_vocab_limit": False, **T5_IDS},
    "mT5": {"model_type": "unigram", "vocab_size": 500, "hard_vocab_limit": False, "byte_fallback": True, "user_defined_symbols": ["<a b>", "##"], **T5_IDS},
    "words not split": {"model_type": "unigram", "vocab_size": 300, "hard_vocab_limit": False, "split_by_whitespace": False},
    "no space before": {"model_type": "unigram", "vocab_size": 300, "hard_vocab_limit": False, "add_dummy_prefix": False},
    "Llama 2": {"model_type": "bpe", "vocab_size": 500, "byte_fallback": True, "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False},
    "user-defined in BPE": {"model_type": "bpe", "vocab_size": 500, "byte_fallback": True, "normalization_rule_name": "identity",
                            "remove_extra_whitespaces": False, "user_defined_symbols": ["<a b>", "##", "ing"]},
    "normalized BPE": {"model_type": "bpe", "vocab_size": 250},
}  # fmt: skip
mixed_texts = st.lists(
    st.sampled_from([*TEXTS["texts"], *" \t\n\r", "  ", "\xa0\u3000", "\x00\x01", "<unk>", "</s>", "<s>", "<pad>", "<0x41>", "<a b>", "##"])
    | st.text(max_size=5)
).map("".join).filter(lambda text: "\u2581" not in text)  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    theirs = train_sentencepiece(path, TEXTS["texts"] * 3, **MODELS[request.param])
    return load_tokenizer(path), theirs


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=mixed_texts)
def test_a_sentencepiece_model_alone_gives_the_pieces_that_sentencepiece_gives(model, text):
    ours, theirs = model
    ids = [ours.encode(text).tolist(), theirs.encode(text)]
    if any(token in text for token in ours.special_tokens):  # cut in two, so that what is unknown may be two tokens, not one
        ids = [[index for index, _ in itertools.groupby(row)] for row in ids]
    if ids[0] != ids[1]:  # two ways to cut a text may have the same probability, and then either is right
        scores = [sum(theirs.get_score(index) for index in row) for row in ids]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4) and theirs.decode(ids[0]) == theirs.decode(ids[1])


def test_a_sentencepiece_model_alone_decodes_as_sentencepiece_does(model):
    ours, theirs = model
    for text in TEXTS["texts"]:
        ids = [index for index in theirs.encode(text) if index != theirs.unk_id()]
        assert ours.decode(ids) == theirs.decode(ids)


def test_t5_has_its_sentinels_backwards_above_the_pieces_and_ends_a_text():
    tokenizer = load("t5")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "t5" / "spiece.model"))
    size = pieces.get_piece_size()
    assert tokenizer.vocab_size == size + 100
    assert tokenizer.decode([size]) == "<extra_id_99>" and tokenizer.decode([size + 99]) == "<extra_id_0>"
    assert tokenizer("the text", "and more").tokens[0].tolist() == [*pieces.encode("the text"), 1, *pieces.encode("and more"), 1]
    ids = tokenizer("the <extra_id_0> text", allow_special=True).tokens[0].tolist()
    assert ids == [*pieces.encode("the"), size + 99, *pieces.encode("text"), 1]
    assert (tokenizer.end_of_text, tokenizer.pad, tokenizer.bos) == (1, 0, None)


@pytest.mark.parametrize(("config", "more"), [({"extra_ids": 0}, 0), ({"extra_ids": 7}, 7), ({}, 100)])
def test_the_number_of_sentinels_is_the_configs(tmp_path, config, more):
    shutil.copy(FOLDER / "t5" / "spiece.model", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mt5"}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).vocab_size == load("t5").vocab_size - 100 + more


def test_llamas_model_alone_puts_its_bos_before_a_text():
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "llama" / "tokenizer.model"))
    tokenizer = load("llama")
    for text in TEXTS["texts"]:
        assert tokenizer(text).tokens[0].tolist() == [pieces.bos_id(), *pieces.encode(text)]
        assert tokenizer.decode(tokenizer(text).tokens[0], skip_special=True) == text
    assert (tokenizer.bos, tokenizer.eos, tokenizer.unk, tokenizer.pad, tokenizer.end_of_text) == (1, 2, 0, None, 2)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_a_config_says_whether_llama_has_bos_and_eos_around_a_text(tmp_path, bos, eos):
    shutil.copy(FOLDER / "llama" / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": bos, "add_eos_token": eos}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("a").tokens[0].tolist() == [*[1] * bos, *tokenizer.encode("a").tolist(), *[2] * eos]


def test_no_merge_makes_a_control_piece():
    texts = ["<unk>", "</s>", "\u2581", "<", "/", "s", ">", "</", "s>"]
    kinds = [UNKNOWN, CONTROL] + [NORMAL] * 7
    backend = sentencepiece_backend(SentencePiece([Piece(*piece) for piece in zip(texts, range(0, -9, -1), kinds)], False, 0))
    assert Tokenizer(backend).encode("</s>").tolist() == [2, 7, 8]
