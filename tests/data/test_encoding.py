"""Texts as rows for a model: what each option does, and what is said of those that cannot be."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.frozen_tokenizers import load
from flaxllm.data import byte_level, char_level, load_tokenizer
from flaxllm.data.encoding import check_texts
from flaxllm.errors import InputError

words = st.lists(st.sampled_from(["dog", "Class", "it's", "naïve", "語", "12"]), max_size=9).map(" ".join)


@pytest.fixture(scope="module")
def bert():
    return load("bert")


@pytest.fixture(scope="module")
def roberta():
    return load("roberta")


def refused(call, *args, **options) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_text_is_a_batch_of_one(bert):
    one, several = bert("a dog"), bert(["a dog"])
    assert one.tokens.shape == several.tokens.shape == (1, len(bert.encode("a dog")) + 2)
    assert one.tokens[0].tolist() == [bert.cls, *bert.encode("a dog").tolist(), bert.sep]
    assert {name: array.dtype for name, array in one.inputs.items()} == {
        "tokens": np.int32, "valid": np.bool_, "token_types": np.int32}  # fmt: skip
    assert one.row.tolist() == [0]


def test_no_text_makes_no_row(bert):
    empty = bert([])
    assert empty.tokens.shape == (0, 0) and empty.offsets.shape == (0, 0, 2) and empty.row.shape == (0,)
    assert bert([], max_len=5, padding="max_len").tokens.shape == (0, 5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.lists(st.tuples(words, words), min_size=1, max_size=3), room=st.integers(0, 8), side=st.sampled_from(["left", "right"]))
def test_pairs_are_cut_from_the_longer_until_they_fit(bert, texts, room, side):
    firsts, seconds = zip(*texts)
    encoded = bert(firsts, seconds, max_len=room + 3, padding="max_len", padding_side=side)
    assert encoded.tokens.shape == (len(texts), room + 3)
    for row, (first, second) in enumerate(texts):
        first, second = bert.encode(first).tolist(), bert.encode(second).tolist()
        kept = [int(((encoded.sequence_ids[row] == side) & encoded.valid[row]).sum()) for side in (0, 1)]
        cut = [len(first) - kept[0], len(second) - kept[1]]
        assert sum(kept) == min(len(first) + len(second), room)
        assert not all(cut) or abs(kept[0] - kept[1]) <= 1
        assert not any(cut) or cut[int(len(second) > len(first))] > 0
        first, second = first[: kept[0]], second[: kept[1]]
        valid = encoded.valid[row]
        assert encoded.tokens[row][valid].tolist() == [bert.cls, *first, bert.sep, *second, bert.sep]
        assert encoded.token_types[row][valid].tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1)
        assert (encoded.tokens[row][~valid] == bert.pad).all() and encoded.special[row][~valid].all()
        padding = room + 3 - valid.sum()
        assert (valid[:padding] if side == "left" else valid[len(valid) - padding :]).sum() == 0


@pytest.mark.parametrize(("truncation", "cut"), [("only_first", 0), ("only_second", 1)])
def test_one_text_of_a_pair_is_cut_and_the_other_stays_whole(bert, truncation, cut):
    texts = ["dog " * 9, "class " * 9]
    ids = [bert.encode(text).tolist() for text in texts]
    encoded = bert(*texts, max_len=sum(map(len, ids)), truncation=truncation)
    ids[cut] = ids[cut][:-3]
    assert encoded.tokens[0].tolist() == [bert.cls, *ids[0], bert.sep, *ids[1], bert.sep]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(first=words, second=st.lists(words, min_size=1, max_size=4).map(" ".join), room=st.integers(2, 9), stride=st.integers(0, 4))
def test_windows_hold_all_of_a_text_and_overlap_by_the_stride(bert, first, second, room, stride):
    first, stride = first[:6], min(stride, room - 1)
    size = len(bert.encode(first))
    encoded = bert([first, ""], [second, second], max_len=size + room + 3, truncation="only_second", stride=stride)
    ids = bert.encode(second).tolist()
    windows = [row[kind == 1].tolist() for row, kind, of in zip(encoded.tokens, encoded.sequence_ids, encoded.row) if of == 0]
    assert encoded.row.tolist() == sorted(encoded.row.tolist())
    assert all(len(window) == room for window in windows[:-1]) and len(windows[-1]) <= room
    assert [*windows[0], *itertools.chain.from_iterable(window[stride:] for window in windows[1:])] == ids
    assert all(before[len(before) - stride :] == after[:stride] for before, after in itertools.pairwise(windows))


def test_windows_of_both_texts_of_a_pair_are_all_combinations(bert):
    first, second = "dog " * 20, "class " * 20
    encoded = bert(first, second, max_len=23, stride=2)
    places = [encoded.offsets[row][encoded.sequence_ids[row] == side][0].tolist() for row in range(len(encoded.row)) for side in (0, 1)]
    parts = [(tuple(a), tuple(b)) for a, b in zip(places[::2], places[1::2])]
    assert len(parts) == len(set(parts)) == len({a for a, _ in parts}) * len({b for _, b in parts}) > 4
    assert (encoded.token_types[encoded.sequence_ids == 1] == 1).all() and (encoded.token_types[encoded.sequence_ids == 0] == 0).all()


def test_places_of_tokens_are_those_of_their_text(bert, roberta):
    text = "Naïve  dogs, it's 語"
    for tokenizer in (bert, roberta):
        encoded = tokenizer(text)
        assert encoded.offsets[0][encoded.special[0]].tolist() == [[0, 0], [0, 0]]
        inside = sorted({tuple(place) for place in encoded.offsets[0][~encoded.special[0]].tolist()})
        assert "".join(text[start:stop] for start, stop in inside if stop - start).replace(" ", "") == text.replace(" ", "")


def test_words_are_numbered_as_they_were_given(bert):
    text = ["Hello", "naïve", "supercalifragilistic", "dogs"]
    encoded = bert([text, ["dog"]], split_words=True)
    for number, word in enumerate(text):
        assert encoded.tokens[0][encoded.word_ids[0] == number].tolist() == bert.encode(word).tolist()
    assert encoded.word_ids[0][[0, -1]].tolist() == [-1, -1]
    assert (encoded.word_ids == -1).tolist() == encoded.special.tolist()
    np.testing.assert_array_equal(bert(["dog", "dogs"], split_words=True).tokens, bert([["dog", "dogs"]], split_words=True).tokens)


def test_a_tokenizer_without_pad_fills_up_with_the_end_of_text():
    gpt2, chars = load("gpt2"), char_level(["abc"])
    assert gpt2.pad is None
    encoded = gpt2(["a", "a dog"])
    assert (encoded.tokens[~encoded.valid] == gpt2.end_of_text).all() and not encoded.valid.all()
    assert chars(["a", "abc"]).tokens.tolist() == [[0, 3, 3], [0, 1, 2]]


def test_left_is_where_a_config_that_says_so_cuts_and_fills_up(bert, tmp_path):
    bert.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left", "truncation_side": "left"}))
    left, text = load_tokenizer(tmp_path), "dogs class the end"
    assert left(["dog", text]).valid[0].tolist() == bert(["dog", text], padding_side="left").valid[0].tolist()
    assert left(["dog", text], padding_side="right").valid.tolist() == bert(["dog", text]).valid.tolist()
    assert left(text, max_len=4).tokens[0].tolist() == [bert.cls, *bert.encode(text).tolist()[-2:], bert.sep]


def test_special_tokens_are_left_out_where_they_are_not_wanted(bert):
    encoded = bert("a dog", "a class", add_special_tokens=False)
    assert encoded.tokens[0].tolist() == [*bert.encode("a dog").tolist(), *bert.encode("a class").tolist()]
    assert not encoded.special.any()
    assert bert("a dog class", max_len=2, add_special_tokens=False).tokens[0].tolist() == bert.encode("a dog class").tolist()[:2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "longest"}, "truncation cannot be 'longest': did you mean 'longest_first'?"),
        ({"padding": "max"}, "padding cannot be 'max': "),
        ({"padding_side": "lef"}, "padding_side cannot be 'lef': did you mean 'left'?"),
        ({"padding": "max_len"}, "padding='max_len' and stride need a length: set max_len"),
        ({"stride": 1}, "padding='max_len' and stride need a length: set max_len"),
        ({"max_len": 0}, "max_len is 0: expected at least 1"),
        ({"max_len": 5, "stride": -1}, "stride is -1: expected at least 0"),
        ({"max_len": 5, "truncation": "only_second"}, "truncation='only_second' cuts the second texts of pairs"),
        ({"max_len": 1}, "text 0 cannot be cut to max_len 1: 2 special tokens and what is not cut (longest_first) have 2"),
        ({"max_len": 4, "stride": 2}, "stride 2 is not less than the 2 tokens of a window"),
        ({"pairs": ["a"]}, "there are 2 texts and 1 second texts: expected as many of both"),
        ({"pairs": ["a", None]}, "the second text of pair 1 is None: expected a string"),
        ({"pairs": ["a", "dog dog dog"], "max_len": 5, "truncation": "only_first"}, "text 1 cannot be cut to max_len 5: "),
        ({"padding": None}, "rows of 2 and 8 tokens make no array"),
    ],
)
def test_what_cannot_be_done_is_said(bert, options, message):
    assert refused(bert, ["", "dog dog dog"], **options).startswith(message)


def test_what_is_no_text_is_named(bert):
    assert refused(bert, ["a", float("nan")]) == "text 1 is nan: expected a string"
    assert refused(bert, [["a"]]) == "text 0 is ['a']: expected a string"
    assert refused(check_texts, ["a", None]) == "text 1 is None: expected a string"
    words = "expected a list of strings, its words"
    assert refused(bert, [["a"], ["b", 3]], split_words=True) == f"text 1 is ['b', 3]: {words}"
    assert refused(bert, "b c", split_words=True) == f"text 0 is 'b c': {words}"
    assert refused(bert, [["a"], "b c"], split_words=True) == f"text 1 is 'b c': {words}"
    assert refused(char_level(["abc"]), ["abc", "abé"]).startswith("the tokenizer has no token for 'é'")
    assert "'\\ud800'" in refused(byte_level(), "a\ud800")
