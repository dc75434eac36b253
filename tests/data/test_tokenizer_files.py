"""Tokenizers from the files that people have, against what transformers gives (frozen) and sentencepiece itself gives."""

import dataclasses
import itertools
import json
import pickle
import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import real_weights
from flaxllm.data import Tokenizer, load_tokenizer
from flaxllm.data.gguf_metadata import read_metadata
from flaxllm.errors import InputError

FOLDER = Path(__file__).parent / "fixtures" / "tokenizers"
TEXTS = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
CHATS = json.loads((FOLDER / "qwen2" / "chats.json").read_text(encoding="utf-8"))
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
GGUF = ("gpt-2", "smollm", "llama-bpe", "qwen2")
FOLDERS = ("bert", "bert_cased", "bert_saved", "gpt2", "qwen2_pair", "roberta", "roberta_prefix", "t5")


def plain(name: str) -> str:
    return name.removesuffix("_saved").removesuffix("_pair")


def frozen(name: str) -> dict:
    return json.loads((FOLDER / plain(name) / "frozen.json").read_text(encoding="utf-8"))


def load(name: str) -> Tokenizer:
    return load_tokenizer(FOLDER / (f"{name}.gguf" if name in GGUF else name.removesuffix("_pair")))


def rows_of(encoded, name: str) -> list[list]:
    """The rows of an array without what fills them up."""
    return [row[valid].tolist() for row, valid in zip(getattr(encoded, name), encoded.valid)]


def refused(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FOLDERS + GGUF)
def test_texts_have_the_ids_and_places_of_transformers(name):
    tokenizer, expected = load(name), frozen(name)
    encoded = tokenizer(TEXTS["texts"] + TEXTS["special"], allow_special=True)
    assert rows_of(encoded, "tokens") == expected["ids"]
    assert rows_of(encoded, "offsets") == expected["offsets"]
    assert {role: getattr(tokenizer, role) for role in ROLES} == expected["roles"]


@pytest.mark.parametrize("name", FOLDERS + GGUF)
def test_ids_are_decoded_as_by_transformers(name):
    tokenizer, expected = load(name), frozen(name)
    assert tokenizer.decode_batch(expected["ids"]) == expected["decoded"]
    assert tokenizer.decode_batch(expected["ids"], skip_special=True) == expected["skipped"]


@pytest.mark.parametrize("name", ("bert", "bert_saved", "gpt2", "roberta", "t5"))
def test_batches_are_cut_and_filled_up_as_by_transformers(name):
    tokenizer = load(name)
    ours = {"tokens": "input_ids", "valid": "attention_mask", "offsets": "offset_mapping", "special": "special_tokens_mask",
            "word_ids": "word_ids", "sequence_ids": "sequence_ids", "token_types": "token_type_ids"}  # fmt: skip
    for call, expected in frozen(name)["calls"]:
        pairs = TEXTS["seconds"] if call.pop("pairs", False) else None
        encoded = tokenizer(TEXTS["firsts"], pairs, **call)
        for field, theirs in ours.items():
            if theirs in expected:
                np.testing.assert_array_equal(getattr(encoded, field), expected[theirs], f"{field} of {call}")
        rows = expected.get("overflow_to_sample_mapping", range(len(TEXTS["firsts"])))
        assert encoded.row.tolist() == list(rows)
        assert set(encoded.inputs) == {"tokens", "valid", *(["token_types"] if "token_type_ids" in expected else [])}


@pytest.mark.parametrize("name", FOLDERS + GGUF)
def test_text_that_spells_special_tokens_is_only_text_unless_it_is_allowed(name):
    tokenizer = load(name)
    special = {tokenizer.backend.token_to_id(token) for token in tokenizer.special_tokens}
    spelt = " ".join(tokenizer.special_tokens)
    unknown = {tokenizer.unk} if name.startswith(("bert", "t5")) else set()  # their vocabularies cannot say each word
    assert special & set(tokenizer.encode(spelt).tolist()) <= unknown < special
    assert special <= set(tokenizer(spelt, allow_special=True).tokens[0].tolist())


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


def test_a_gguf_file_of_llama_has_the_ids_of_its_sentencepiece_model():
    ours, theirs = load_tokenizer(FOLDER / "spm.gguf"), load("llama")
    for text in TEXTS["texts"]:
        np.testing.assert_array_equal(ours(text).tokens, theirs(text).tokens)
        assert ours.decode(ours.encode(text)) == text
    assert (ours.bos, ours.eos, ours.unk, ours.max_len) == (1, 2, 0, 2048)


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


def test_digits_are_apart_in_smollm():
    tokenizer, gpt2 = load("smollm"), load("gpt-2")
    for text in ("12345", " 1 22  333", "a1b  2", "x\u00bd\u0663"):
        parts = re.findall(r"[0-9\u00bd\u0663]|[^0-9\u00bd\u0663]+", text)
        assert tokenizer.encode(text).tolist() == [index for part in parts for index in gpt2.encode(part).tolist()]


def test_roberta_takes_the_space_before_a_mask_into_it_where_no_file_says_how_it_is_matched(tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FOLDER / "roberta" / name, tmp_path)
    tokenizer, configured = load_tokenizer(tmp_path), load("roberta")
    for text in TEXTS["special"]:
        np.testing.assert_array_equal(tokenizer(text, allow_special=True).tokens, configured(text, allow_special=True).tokens)


def test_token_types_are_given_to_the_models_that_have_them(tmp_path):
    for name, kind in [("bert", "BertTokenizer"), ("distilbert", "DistilBertTokenizer"), ("distilbert", "BertTokenizer")]:
        shutil.copy(FOLDER / "bert" / "vocab.txt", tmp_path)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
        assert ("token_types" in load_tokenizer(tmp_path)("a", "b").inputs) == (name == "bert")


def test_tokens_in_older_files_are_added_with_their_ids(tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FOLDER / "gpt2" / name, tmp_path)
    size = load("gpt2").vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": size + 1, "[PAD]": size}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]", "eos_token": "<|endoftext|>"}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.pad, tokenizer.eos, tokenizer.vocab_size) == (size, size - 1, size + 2)
    assert tokenizer.encode("<new>").tolist() == [size + 1]
    assert tokenizer.special_tokens == ["<|endoftext|>", "[PAD]"]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": size + 5}))
    assert "gives the token '<new>' the id" in refused(tmp_path)


def test_a_file_is_read_with_what_lies_beside_it_if_it_has_its_usual_name(tmp_path):
    for path in (FOLDER / "bert_saved").iterdir():
        shutil.copy(path, tmp_path)
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "other.json")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 77}))
    assert load_tokenizer(tmp_path / "tokenizer.json").max_len == load_tokenizer(tmp_path).max_len == 77
    other = load_tokenizer(tmp_path / "other.json")
    assert (other.max_len, other.cls, other.has_token_types) == (None, 2, True)


ALL = (*FOLDERS, *GGUF, "llama", "marian")


@pytest.mark.parametrize("name", ALL)
def test_what_is_saved_is_loaded_as_the_same_tokenizer(name, tmp_path):
    tokenizer = load(name)
    for older in ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"):
        (tmp_path / older).write_text('{"eos_token": "</unwanted>"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    kept = [field.name for field in dataclasses.fields(Tokenizer) if field.name not in ("backend", "translation")]
    for field in [*kept, "vocab_size", "end_of_text", "fingerprint", "special_tokens"]:
        assert getattr(again, field) == getattr(tokenizer, field)
    texts = TEXTS["texts"] + TEXTS["special"]
    for special in (False, True):
        np.testing.assert_array_equal(again(texts, allow_special=special).tokens, tokenizer(texts, allow_special=special).tokens)
    np.testing.assert_array_equal(again.encode_target(texts).tokens, tokenizer.encode_target(texts).tokens)
    again.save(tmp_path / "twice")
    for path in (tmp_path / "twice").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_what_cannot_be_saved_is_said(tmp_path):
    (tmp_path / "file").touch()
    for tokenizer, path, message in [
        (load("marian"), tmp_path / "x.json", "cannot hold a Marian tokenizer, which is several files: name a folder"),
        (load("bert"), tmp_path / "file" / "folder", "cannot be written (Not a directory)"),
    ]:
        with pytest.raises(InputError) as caught:
            tokenizer.save(path)
        assert str(caught.value).startswith(f"{path} {message}")


@pytest.mark.parity
@pytest.mark.parametrize("name", ALL)
def test_transformers_opens_what_is_saved(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = load(name)
    tokenizer.save(tmp_path)
    if name == "marian":
        (tmp_path / "config.json").write_text('{"model_type": "marian"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [text for text in TEXTS["texts"] + TEXTS["special"] if ">>" not in text]
    assert rows_of(tokenizer(texts, allow_special=True), "tokens") == theirs(texts)["input_ids"]
    assert {role: getattr(tokenizer, role) for role in ROLES} == {role: getattr(theirs, f"{role}_token_id") for role in ROLES}
    assert theirs.model_max_length == (tokenizer.max_len or transformers.tokenization_utils_base.VERY_LARGE_INTEGER)
    if tokenizer.chat_template:
        assert theirs.apply_chat_template(CHATS["messages"], tokenize=False) == tokenizer.chat(CHATS["messages"], False)


def test_a_tokenizer_is_pickled_with_all_it_has():
    for name in ("bert", "marian", "qwen2"):
        tokenizer = load(name)
        again = pickle.loads(pickle.dumps(tokenizer))
        assert (again.fingerprint, again.pad, again.chat_template) == (tokenizer.fingerprint, tokenizer.pad, tokenizer.chat_template)
        texts = TEXTS["texts"] + TEXTS["special"]
        np.testing.assert_array_equal(again.encode_target(texts).tokens, tokenizer.encode_target(texts).tokens)
        np.testing.assert_array_equal(again(texts).inputs["tokens"], tokenizer(texts).inputs["tokens"])


REAL = json.loads((FOLDER / "real.json").read_text(encoding="utf-8"))


def test_the_tokenizer_of_minilm_gives_the_ids_of_transformers():
    tokenizer = load_tokenizer(real_weights.minilm_folder())
    assert rows_of(tokenizer(TEXTS["texts"]), "tokens") == REAL["minilm"]
    pairs, expected = tokenizer(TEXTS["firsts"], TEXTS["seconds"]), REAL["minilm pairs"]
    ours = {"input_ids": pairs.tokens, "token_type_ids": pairs.token_types, "attention_mask": pairs.valid}
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name])
    assert (tokenizer.pad, tokenizer.cls, tokenizer.sep, tokenizer.mask, tokenizer.max_len) == (0, 101, 102, 103, 512)


def test_the_vocabulary_of_minilm_alone_is_its_tokenizer(tmp_path):
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(real_weights.minilm_folder() / name, tmp_path)
    assert rows_of(load_tokenizer(tmp_path)(TEXTS["texts"]), "tokens") == REAL["minilm"]


def test_the_tokenizer_in_the_gguf_file_of_smollm2_gives_the_ids_of_transformers():
    tokenizer = load_tokenizer(real_weights.smollm2_gguf())
    texts, expected = list(REAL["smollm2"]), list(REAL["smollm2"].values())
    assert len(texts) > 10
    assert rows_of(tokenizer(texts), "tokens") == expected
    assert tokenizer.decode_batch(expected) == texts
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.end_of_text, tokenizer.vocab_size) == (1, 2, 2, 0, 49152)
    messages = json.loads((FOLDER / "smollm" / "chats.json").read_text(encoding="utf-8"))["messages"]
    assert tokenizer.encode_chat(messages).tokens.tolist() == REAL["smollm2 chat"]
    # GPT-2's pattern alone would leave the second space to the digit.
    assert [tokenizer.decode([index]) for index in tokenizer.encode("a  12").tolist()] == ["a", "  ", "1", "2"]


def test_a_missing_or_damaged_file_is_named(tmp_path):
    def damaged(name: str, content: bytes | None = None, of: str = "bert", **configs: dict) -> str:
        folder = tmp_path / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(FOLDER / of, folder)
        for file, config in configs.items():
            (folder / f"{file}.json").write_text(json.dumps(config))
        if content is not None:
            (folder / name).write_bytes(content)
        message = refused(folder)
        assert message.startswith((str(folder), f"folder {str(folder)!r}"))
        return message.removeprefix(str(folder) + "/")

    vocab = (FOLDER / "bert" / "vocab.txt").read_bytes()
    assert damaged("vocab.txt", vocab.replace(b"[SEP]", b"[sep]")).startswith("vocab.txt lacks the special tokens {'sep': '[SEP]'}")
    assert damaged("vocab.txt", b"\xff\xfe").startswith("vocab.txt cannot be read")
    assert damaged("tokenizer_config.json", b"{").startswith("tokenizer_config.json is not a sound JSON object")
    config = {"tokenizer_class": "XLNetTokenizer"}
    assert damaged("", tokenizer_config=config).startswith("vocab.txt is not read for a tokenizer of 'XLNetTokenizer'")
    assert "do_lower_case 'yes': expected true or false" in damaged("", tokenizer_config={"do_lower_case": "yes"})
    assert "has pad_token 3: expected a token's text" in damaged("", tokenizer_config={"pad_token": 3})
    assert "has padding_side 'up': expected 'left' or 'right'" in damaged("", tokenizer_config={"padding_side": "up"})
    assert "has model_max_length 'x': expected a number" in damaged("", tokenizer_config={"model_max_length": "x"})
    assert "gives the token '[PAD]' the id 7 in one file and 0" in damaged("", added_tokens={"[PAD]": 7})
    assert "added_tokens.json gives a token the id 'x'" in damaged("", added_tokens={"[PAD]": "x"})
    ids = {"a": 0, "b": 0, "<|endoftext|>": 1}
    message = damaged("vocab.json", json.dumps(ids).encode(), of="gpt2", tokenizer_config={})
    assert "not GPT-2's pair of files" in message or "two tokens the same id" in message
    spiece = (FOLDER / "t5" / "spiece.model").read_bytes()
    for content in (b"", b"junk", spiece[:5000], b"IQ== 0\nIg== 1\n"):
        assert damaged("spiece.model", content, of="t5").startswith("spiece.model is not a ")
    assert "extra_ids 'x': expected a number" in damaged("", of="t5", tokenizer_config={"extra_ids": "x"})
    message = damaged("vocab.json", b'{"</s>": 0, "<unk>": 1, "<pad>": 3}', of="marian")
    assert message.startswith("vocab.json does not number its 3 tokens 0, 1, 2")
    assert damaged("vocab.json", b'{"</s>": 0, "<unk>": 1}', of="marian").startswith("vocab.json lacks the token for pad")
    assert damaged("source.spm", b"", of="marian").startswith("source.spm is not a whole SentencePiece model")
    assert "a vocabulary for each language" in damaged("", of="marian", tokenizer_config={"separate_vocabs": True})
    (tmp_path / "folder" / "target.spm").unlink()
    assert "holds no tokenizer: expected tokenizer.json, source.spm and target.spm and vocab.json" in refused(tmp_path / "folder")


def write_gguf(path: Path, **values) -> None:
    """A GGUF file like that of the fixtures, with other values; None takes a key away."""
    changed = {f"tokenizer.{name}": value for name, value in values.items()}
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


def test_a_gguf_file_may_have_several_chat_templates_and_lie_alone_in_a_folder(tmp_path):
    write_gguf(tmp_path / "x.gguf", **{"chat_templates": ["rag"], "chat_template.rag": "second", "chat_template": "first"})
    assert load_tokenizer(tmp_path).chat_template == {"default": "first", "rag": "second"}


def test_a_config_that_contradicts_berts_tokenizer_json_overrules_it(tmp_path):
    shutil.copytree(FOLDER / "bert_saved", tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    texts = ["A Class", "a class"]
    assert load("bert_saved")(texts).tokens[0].tolist() == load("bert_saved")(texts).tokens[1].tolist()
    cased = load_tokenizer(tmp_path)(texts[0]).tokens[0].tolist()
    assert cased != load_tokenizer(tmp_path)(texts[1]).tokens[0].tolist()


@pytest.mark.parametrize("name", ["org/model", "org/model@v1"])
def test_what_is_no_path_is_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    asked = []

    def resolve(path_or_id, patterns):
        asked.append((path_or_id, patterns))
        return FOLDER / "bert"

    monkeypatch.setattr("flaxllm.data.tokenizer_files.resolve", resolve)
    assert load_tokenizer(name).fingerprint == load("bert").fingerprint
    assert asked[0][0] == name
    assert {"tokenizer.json", "tokenizer_config.json", "spiece.model", "merges.txt", "config.json"} <= set(asked[0][1])


@pytest.mark.parametrize("name", ["byts", "x.json", "org/x.gguf", "/nowhere", "a/b/c", "~/nowhere"])
def test_a_path_that_is_no_id_is_not_looked_for_on_the_hub(monkeypatch, name):
    monkeypatch.setattr("flaxllm.data.tokenizer_files.resolve", lambda *_: pytest.fail("the hub was asked"))
    assert refused(name).startswith(f"there is no tokenizer {name!r}: ")
