"""Tokenizers: text to ids as each defines it, back again, to disk, and what is said where it cannot be."""

import itertools
import json
import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from flaxllm.data import Tokenizer, byte_level, char_level, load_tokenizer, make_tokenizer, train_bpe
from flaxllm.errors import InputError

VERSES = "The quick brown fox's tail, 1234 times:\n\n  it isn't lazy.\nThe dog — naïve, 語語 — slept.\t\n \nThe end"
END_OF_TEXT = "<|endoftext|>"
# What GPT-2's pattern finds in a text of ASCII letters, digits, signs and spaces.
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")

# As many kinds of neighbours as a newline can have, so that a cut before it has every chance to matter.
mixed_texts = st.lists(
    st.sampled_from(["\n", " ", "\t", "\r", "\u2028", "\xa0", "\x1c", "\x85", "'", "s", "T", "7", ".", "é", "語"])
).map("".join)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([VERSES] * 3 + [VERSES.upper()], 320)


@pytest.fixture(scope="module")
def chars() -> Tokenizer:
    return char_level([VERSES, END_OF_TEXT, "\r\n\u2028\xa0\x1c\x85'sT7.é語"])


@pytest.fixture(params=["bytes", "chars", "bpe", "loaded", "pickled"], scope="module")
def tokenizer(request, bpe, chars, tmp_path_factory) -> Tokenizer:
    if request.param == "loaded":
        path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
        bpe.save(path)
        return load_tokenizer(path)
    others = {"bytes": byte_level, "chars": lambda: chars, "bpe": lambda: bpe}
    return others[request.param]() if request.param in others else pickle.loads(pickle.dumps(bpe))


def refused(call, *args) -> str:
    with pytest.raises(InputError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text())
def test_bytes_are_the_utf8_of_any_text(text):
    tokenizer = byte_level()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_bytes_have_257_ids_the_last_for_the_end_of_a_text():
    tokenizer = byte_level()
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
    assert tokenizer.decode([72, 105, 256]) == "Hi" + END_OF_TEXT


def test_bytes_that_are_no_utf8_decode_to_the_replacement_character():
    assert byte_level().decode([0x61, 0xC3, 0x62]) == "a\ufffdb"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text(), min_size=1).filter(any))
def test_characters_are_numbered_in_the_order_of_their_code_points(texts):
    tokenizer = char_level(iter(texts))
    alphabet = sorted(set("".join(texts)))
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (len(alphabet) + 1, len(alphabet))
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids.tolist() == [alphabet.index(char) for char in text]
        assert tokenizer.decode(ids) == text


def test_a_character_without_a_token_is_named():
    tokenizer = char_level(["abc"])
    message = "the tokenizer has no token for 'é': make it from text that has it, or use 'bytes'"
    assert refused(tokenizer.encode, "abé") == message
    assert refused(tokenizer.encode_batch, ["abc", "", "cébà"]) == message


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text())
def test_bpe_gives_any_text_back(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.backend.to_str())["model"]["merges"]]


def encode_plainly(tokenizer: Tokenizer, text: str) -> list[int]:
    """BPE by its definition (Sennrich et al. 2016): in each word, the earliest learned merge first, of ASCII text."""
    model = json.loads(tokenizer.backend.to_str())["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    ids = []
    for word in WORDS.findall(text):
        parts = [chr(256 + ord(char)) if char.isspace() else char for char in word]
        while True:
            rank, pair = min((ranks.get(pair, len(ranks)), pair) for pair in [*itertools.pairwise(parts), ("", "")])
            if rank == len(ranks):
                break
            merged = []
            for part in parts:
                if merged and (merged[-1], part) == pair:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        ids += [model["vocab"][part] for part in parts]
    return ids


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.lists(st.sampled_from([*"  \n\tThequickbrownfoxslazydgTHEisn't12,.:"])).map("".join))
def test_bpe_merges_as_it_is_defined(bpe, text):
    assert bpe.encode(text).tolist() == encode_plainly(bpe, text)


def test_bpe_learns_the_most_frequent_pair_first():
    text = "low lower newest newest newest widest widest"
    pairs = Counter(pair for word in WORDS.findall(text) for pair in itertools.pairwise(word))
    frequent = {pair for pair, count in pairs.items() if count == max(pairs.values())}
    tokenizer = train_bpe(iter([text]), 258)
    assert len(merges_of(tokenizer)) == 1 and merges_of(tokenizer)[0] in frequent


def test_bpe_has_the_size_asked_for_with_the_end_of_text_last(bpe):
    assert (bpe.vocab_size, bpe.end_of_text, len(merges_of(bpe))) == (320, 319, 320 - 257)
    assert len(bpe.encode(VERSES)) < 0.7 * len(VERSES.encode())


def test_bpe_training_is_deterministic():
    texts = [VERSES, VERSES.swapcase(), "ab ba ab ba cd dc cd dc"]
    assert len({train_bpe(texts, 300).fingerprint for _ in range(5)}) == 1


def test_text_that_spells_the_end_of_text_is_only_text(tokenizer):
    ids = tokenizer.encode(f"The {END_OF_TEXT}\n")
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == f"The {END_OF_TEXT}\n"
    assert tokenizer.decode([tokenizer.end_of_text]) == END_OF_TEXT


def test_a_batch_is_its_texts_one_by_one(tokenizer):
    texts = [VERSES, "", "The", VERSES[::-1]]
    for ids, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_an_id_outside_the_vocabulary_is_refused(tokenizer):
    size = tokenizer.vocab_size
    for wrong in (-1, size, 10**9):
        expected = f"there is no token {wrong}: the vocabulary has ids 0 to {size - 1}"
        assert refused(tokenizer.decode, [0, wrong]) == expected
    assert tokenizer.decode([]) == ""
    for row in (np.array([0.5]), np.array(3), np.array([[1], [2]]), np.array([True]), [2**70]):
        assert refused(tokenizer.decode, row).endswith("is no row of ids: expected whole numbers (decode_batch takes several rows)")


@pytest.mark.parametrize("name", ["bytes", "chars", "bpe"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=mixed_texts)
def test_cut_before_newlines_a_text_has_the_same_ids(bpe, chars, name, text):
    tokenizer = {"bytes": byte_level(), "chars": chars, "bpe": bpe}[name]
    assert tokenizer.may_cut_at_newlines
    cuts = [i for i in range(1, len(text)) if text[i] == "\n" and not text[i - 1].isspace()]
    parts = [text[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(text)])]
    ids = tokenizer.encode(text).tolist()
    assert [i for part in parts for i in tokenizer.encode(part).tolist()] == ids


def gpt2_like(*merges: tuple[str, str], **pre_tokenizer: bool) -> tokenizers.Tokenizer:
    """A byte-level BPE of a few letters."""
    letters = {letter: index for index, letter in enumerate(["a", "b", "Ċ", "Ġ", "ĊĊ", "aĊ"])}
    backend = tokenizers.Tokenizer(models.BPE(letters, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": True} | pre_tokenizer)
    return backend


def with_added_token(text: str) -> tokenizers.Tokenizer:
    backend = gpt2_like()
    backend.add_tokens([text])
    return backend


def with_normalizer() -> tokenizers.Tokenizer:
    backend = gpt2_like()
    backend.normalizer = normalizers.Replace("a\n", "b")
    return backend


UNCUTTABLE = {
    "merges across newlines": lambda: gpt2_like(("a", "Ċ"), use_regex=False),
    "a space put before each text": lambda: gpt2_like(add_prefix_space=True),
    "a token that is added across newlines": lambda: with_added_token("a\n"),
    "a normalizer": with_normalizer,
}


@pytest.mark.parametrize("kind", UNCUTTABLE)
def test_a_tokenizer_that_a_cut_would_change_is_not_cut(kind):
    tokenizer = Tokenizer(UNCUTTABLE[kind]())
    apart = [*tokenizer.encode("a").tolist(), *tokenizer.encode("\nb").tolist()]
    assert tokenizer.encode("a\nb").tolist() != apart
    assert not tokenizer.may_cut_at_newlines


def test_a_tokenizer_of_another_make_is_not_cut():
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    assert not Tokenizer(backend).may_cut_at_newlines
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"\w+"), "isolated")
    assert not Tokenizer(backend).may_cut_at_newlines


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=mixed_texts, where=st.floats(0, 1))
def test_the_bytes_of_ids_add_up_wherever_they_are_cut(bpe, chars, text, where):
    for tokenizer in (byte_level(), bpe, chars):
        ids = tokenizer.encode(text)
        cut = int(where * len(ids))
        assert tokenizer.num_bytes(ids[:cut]) + tokenizer.num_bytes(ids[cut:]) == len(text.encode())
    assert byte_level().num_bytes(byte_level().encode(text)[:cut]) == min(cut, len(text.encode()))
    assert chars.num_bytes(ids[:cut]) == len(text[:cut].encode())


def test_the_bytes_of_any_other_tokenizer_are_those_of_the_decoded_text():
    backend = tokenizers.Tokenizer(models.WordLevel({"naïve": 0, "語": 1}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(backend)
    assert tokenizer.num_bytes(tokenizer.encode("naïve 語")) == len("naïve 語".encode())
    backend.decoder = decoders.Metaspace()
    assert Tokenizer(backend).num_bytes(np.array([0, 1])) == len("naïve語".encode())


def test_a_tokenizer_comes_back_from_disk_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "folder")
    tokenizer.save(tmp_path / "other.json")
    names = ["folder", "other.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == names
    for path in (tmp_path / "folder", tmp_path / "folder" / "tokenizer.json", str(tmp_path / "other.json")):
        loaded = load_tokenizer(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert (loaded.vocab_size, loaded.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
        np.testing.assert_array_equal(loaded.encode(VERSES), tokenizer.encode(VERSES))


def test_saving_replaces_what_was_there(bpe, tmp_path):
    byte_level().save(tmp_path)
    bpe.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == bpe.fingerprint


def test_the_fingerprint_tells_tokenizers_apart(bpe, chars):
    others = [byte_level(), chars, char_level(["abc"]), char_level(["abd"]), bpe, train_bpe([VERSES], 300)]
    assert len({other.fingerprint for other in others}) == len(others)
    assert char_level(["cab"]).fingerprint == char_level(["a", "bc"]).fingerprint


def test_a_file_that_truncates_and_pads_is_read_without(bpe, tmp_path):
    spec = tokenizers.Tokenizer.from_str(bpe.backend.to_str())
    spec.enable_truncation(3)
    spec.enable_padding(length=500)
    spec.save(str(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(load_tokenizer(tmp_path).encode(VERSES), bpe.encode(VERSES))


def test_a_file_without_an_end_of_text_has_none(tmp_path):
    gpt2_like().save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.end_of_text is None and loaded.vocab_size == 6


def write_pair(bpe: Tokenizer, folder: Path, vocab_name: str, merges_name: str, drop: str | None = None) -> None:
    """GPT-2's two files, of another BPE."""
    vocab = {token: index for token, index in bpe.backend.get_vocab().items() if token != drop}
    (folder / vocab_name).write_text(json.dumps(vocab))
    merges = "".join(f"{left} {right}\n" for left, right in merges_of(bpe))
    (folder / merges_name).write_text(f"#version: 0.2\n{merges}", encoding="utf-8")


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
@pytest.mark.parametrize("drop", [None, END_OF_TEXT])
def test_the_two_files_of_gpt2_are_a_tokenizer(bpe, tmp_path, names, drop):
    write_pair(bpe, tmp_path, *names, drop)
    loaded = load_tokenizer(tmp_path)
    np.testing.assert_array_equal(loaded.encode(VERSES + END_OF_TEXT), bpe.encode(VERSES + END_OF_TEXT))
    assert loaded.decode(loaded.encode(VERSES)) == VERSES
    assert (loaded.vocab_size, loaded.end_of_text) == (bpe.vocab_size, bpe.end_of_text)


def test_a_config_names_a_tokenizer_or_gives_its_path(bpe, tmp_path):
    bpe.save(tmp_path)
    made = [make_tokenizer("bytes", iter(())), make_tokenizer("chars", iter(["cab"])),
            make_tokenizer("bpe", iter([VERSES]), 300), make_tokenizer(str(tmp_path), iter(()))]  # fmt: skip
    same = [byte_level(), char_level(["abc"]), train_bpe([VERSES], 300), bpe]
    assert [tokenizer.fingerprint for tokenizer in made] == [tokenizer.fingerprint for tokenizer in same]


def test_a_vocab_size_is_needed_for_bpe_and_refused_elsewhere(tmp_path):
    assert refused(make_tokenizer, "bpe", [VERSES]).endswith("set vocab_size")
    for spec in ("bytes", "chars", str(tmp_path)):
        assert f"{spec!r} has its own: leave it None" in refused(make_tokenizer, spec, [VERSES], 300)


@pytest.mark.parametrize("size", [-1, 0, 256, 2**20 + 1, 10**12, 2**70])
def test_a_size_that_no_bpe_can_have_is_refused(size):
    message = refused(train_bpe, [VERSES], size)
    assert message.startswith(f"a byte-level BPE cannot have {size} tokens: set vocab_size from 257 ")


def test_a_size_beyond_what_the_text_has_merges_for_is_refused_with_the_one_that_is_not():
    message = refused(train_bpe, ["hello hello"], 100_000)
    most = int(re.search(r"at most (\d+)", message)[1])
    assert "not for the 100000 asked for" in message
    assert train_bpe(["hello hello"], most).vocab_size == most


def test_what_goes_wrong_with_the_text_is_what_is_said_of_training():
    def documents():
        yield VERSES
        raise InputError("the file is damaged")

    assert refused(train_bpe, documents(), 300) == refused(char_level, documents()) == "the file is damaged"


def test_a_path_that_leads_nowhere_names_what_is_near(tmp_path):
    assert refused(make_tokenizer, "byte", []) == "there is no tokenizer 'byte': did you mean 'bytes'?"
    (tmp_path / "tokenizer.json").touch()
    near = str(tmp_path / "tokenizer.json")
    assert refused(load_tokenizer, tmp_path / "tokenizr.json").endswith(f"did you mean {near!r}?")
    assert "expected bytes, chars, bpe, or a path that exists" in refused(load_tokenizer, tmp_path / "zzz")
    assert "there is no tokenizer" in refused(load_tokenizer, "nowhere" * 40)  # longer than a name can be


def test_a_folder_without_a_tokenizer_says_what_was_expected(tmp_path):
    (tmp_path / "vocab.json").touch()
    assert refused(load_tokenizer, tmp_path) == (
        f"folder {str(tmp_path)!r} holds no tokenizer: expected tokenizer.json, source.spm and target.spm and vocab.json, "
        "spiece.model, tokenizer.model, encoder.json and vocab.bpe, vocab.json and merges.txt, vocab.txt, or a lone .gguf"
    )


@pytest.mark.parametrize("damage", ["cut short", "empty", "another json", "not UTF-8"])
def test_a_damaged_file_is_named(bpe, tmp_path, damage):
    content = bpe.backend.to_str().encode()
    path = tmp_path / "tokenizer.json"
    path.write_bytes({"cut short": content[: len(content) // 2], "empty": b"", "another json": b'{"a": 1}',
                      "not UTF-8": content + b"\xff"}[damage])  # fmt: skip
    assert refused(load_tokenizer, tmp_path).startswith(f"{path} is not a tokenizer.json that can be read: ")


@pytest.mark.parametrize("damage", ["cut short", "a merge of what is no token", "not UTF-8"])
def test_a_damaged_pair_of_files_is_named(bpe, tmp_path, damage):
    write_pair(bpe, tmp_path, "vocab.json", "merges.txt")
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    if damage == "cut short":
        vocab.write_text(vocab.read_text()[:100])
    else:
        merges.write_bytes(merges.read_bytes() + (b"\xff \xff\n" if damage == "not UTF-8" else b"xyz zyx\n"))
    assert refused(load_tokenizer, tmp_path).startswith(f"{vocab} and merges.txt are not GPT-2's pair of files: ")
