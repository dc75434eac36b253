"""Tokenizers from the files that people have, against what transformers gives (frozen), and back into files."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto

import real_weights
from data.frozen_tokenizers import FOLDER, GGUF, MESSAGES, REAL, TEXTS, frozen, load, refused, rows_of
from flaxllm.data import Tokenizer, load_tokenizer
from flaxllm.errors import InputError

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
FOLDERS = ("bert", "bert_cased", "bert_saved", "gpt2", "qwen2_pair", "roberta", "roberta_prefix", "t5")
ALL = (*FOLDERS, *GGUF, "llama", "marian")


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
        pairs = TEXTS.get(call.pop("pairs", None))
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
    assert tokenizer(spelt, add_special_tokens=False).tokens[0].tolist() == tokenizer.encode(spelt).tolist()
    assert special <= set(tokenizer(spelt, allow_special=True).tokens[0].tolist())


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
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    assert "token_types" not in load_tokenizer(tmp_path)("a", "b").inputs
    (tmp_path / "config.json").unlink()
    assert "token_types" in load_tokenizer(tmp_path)("a", "b").inputs


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
        assert theirs.apply_chat_template(MESSAGES, tokenize=False) == tokenizer.chat(MESSAGES, False)


def test_a_tokenizer_is_pickled_with_all_it_has():
    for name in ("bert", "marian", "qwen2"):
        tokenizer = load(name)
        again = pickle.loads(pickle.dumps(tokenizer))
        assert (again.fingerprint, again.pad, again.chat_template) == (tokenizer.fingerprint, tokenizer.pad, tokenizer.chat_template)
        texts = TEXTS["texts"] + TEXTS["special"]
        np.testing.assert_array_equal(again.encode_target(texts).tokens, tokenizer.encode_target(texts).tokens)
        np.testing.assert_array_equal(again(texts).inputs["tokens"], tokenizer(texts).inputs["tokens"])


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
    assert "has do_basic_tokenize false" in damaged("", tokenizer_config={"do_basic_tokenize": False})
    assert "has pad_token 3: expected a token's text" in damaged("", tokenizer_config={"pad_token": 3})
    assert "has padding_side 'up': expected 'left' or 'right'" in damaged("", tokenizer_config={"padding_side": "up"})
    assert "has model_max_length 'x': expected a number" in damaged("", tokenizer_config={"model_max_length": "x"})
    assert "gives the token '[PAD]' the id 7 in one file and 0" in damaged("", added_tokens={"[PAD]": 7})
    assert "added_tokens.json gives a token the id 'x'" in damaged("", added_tokens={"[PAD]": "x"})
    assert "added_tokens.json gives a token the id '999" in damaged("", added_tokens={"[PAD]": "9" * 5000})
    ids = {"a": 0, "b": 0, "<|endoftext|>": 1}
    message = damaged("vocab.json", json.dumps(ids).encode(), of="gpt2", tokenizer_config={})
    assert "not GPT-2's pair of files" in message or "two tokens the same id" in message
    spiece = (FOLDER / "t5" / "spiece.model").read_bytes()
    for content in (b"junk", spiece[:5000]):
        assert damaged("spiece.model", content, of="t5").startswith("spiece.model is not a SentencePiece model")
    assert "Llama 3 has another kind of file" in damaged("spiece.model", b"IQ== 0\nIg== 1\n", of="t5")
    for field in ("pieces", "trainer_spec", "normalizer_spec"):
        model = ModelProto.FromString(spiece)
        model.ClearField(field)
        message = damaged("spiece.model", model.SerializeToString(), of="t5")
        assert message.startswith("spiece.model is not a whole SentencePiece model")
    model = ModelProto.FromString(spiece)
    model.pieces[7].piece = model.pieces[8].piece
    assert damaged("spiece.model", model.SerializeToString(), of="t5").startswith("spiece.model has a piece that is empty")
    model = ModelProto.FromString(spiece)
    model.trainer_spec.model_type = 3
    assert "of type 3: expected 1 (unigram) or 2 (BPE)" in damaged("spiece.model", model.SerializeToString(), of="t5")
    model = ModelProto.FromString(spiece)
    model.normalizer_spec.precompiled_charsmap = b"\x01\x02"
    assert "that cannot be used: " in damaged("spiece.model", model.SerializeToString(), of="t5")
    assert "extra_ids 'x': expected a number" in damaged("", of="t5", tokenizer_config={"extra_ids": "x"})
    message = damaged("vocab.json", b'{"</s>": 0, "<unk>": 1, "<pad>": 3}', of="marian")
    assert message.startswith("vocab.json does not number its 3 tokens 0, 1, 2")
    assert damaged("vocab.json", b'{"</s>": 0, "<unk>": 1}', of="marian").startswith("vocab.json lacks the token for pad")
    assert damaged("source.spm", b"", of="marian").startswith("source.spm is not a whole SentencePiece model")
    assert "a vocabulary for each language" in damaged("", of="marian", tokenizer_config={"separate_vocabs": True})
    (tmp_path / "folder" / "target.spm").unlink()
    assert "holds no tokenizer: expected tokenizer.json, source.spm and target.spm and vocab.json" in refused(tmp_path / "folder")


@pytest.mark.parametrize("damage", [
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AQI="}},
    {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[GONE]", "type_id": 0}}], "pair": [], "special_tokens": {}}},
])  # fmt: skip
def test_a_tokenizer_json_at_which_the_library_panics_is_refused(tmp_path, damage):
    shutil.copytree(FOLDER / "bert_saved", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    assert refused(tmp_path).startswith(f"{path} is not a tokenizer.json that can be read: ")


def test_merges_are_not_dropped_at_random_whatever_a_tokenizer_json_was_trained_with(tmp_path):
    load("gpt2").save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.fingerprint == load("gpt2").fingerprint
    for text in TEXTS["texts"]:
        assert tokenizer.encode(text).tolist() == load("gpt2").encode(text).tolist()


@pytest.mark.parametrize(("config", "side"), [
    ({"tokenizer_class": "LlamaTokenizer"}, "left"), ({"tokenizer_class": "LlamaTokenizerFast"}, "left"), ({}, "right"),
    ({"tokenizer_class": "PreTrainedTokenizerFast"}, "right"), ({"tokenizer_class": "LlamaTokenizer", "padding_side": "right"}, "right"),
])  # fmt: skip
def test_rows_are_filled_up_on_the_side_of_transformers_class_where_a_config_is_silent(tmp_path, config, side):
    shutil.copy(FOLDER / "llama" / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).padding_side == side


def test_qwen2_has_the_special_tokens_of_transformers_class_where_a_config_is_silent(tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FOLDER / "qwen2" / name, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": load("qwen2").unk}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.unk, tokenizer.pad) == (None, *[tokenizer.end_of_text] * 3)


def test_a_length_without_a_limit_is_none(tmp_path):
    shutil.copytree(FOLDER / "bert", tmp_path, dirs_exist_ok=True)
    for written, length in [("1e30", None), (str(int(1e30)), None), ("512.0", 512), ("null", None)]:
        (tmp_path / "tokenizer_config.json").write_text(f'{{"model_max_length": {written}}}')
        assert load_tokenizer(tmp_path).max_len == length


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


def test_a_tokenizer_is_loaded_without_the_library_of_the_pipelines():
    script = f"import sys; from flaxllm import load_tokenizer; load_tokenizer({str(FOLDER / 'bert')!r}); print('grain' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_end_of_a_text_is_part_of_the_fingerprint():
    tokenizer = load("t5")
    assert dataclasses.replace(tokenizer, eos=tokenizer.pad).fingerprint != tokenizer.fingerprint
    assert dataclasses.replace(tokenizer, mask=0).fingerprint == tokenizer.fingerprint
