"""Tags of words: rows by hand, every word once however a sentence is cut, the loss in float64, and the judge's figures."""

import dataclasses

import numpy as np
import pytest
from scipy.special import log_softmax

from flaxllm.errors import InputError
from flaxllm.objectives import token_classification
from objectives.batches import apply, batches, judged, summed, tiny

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
WORDS = ["Anna", "Hello", "lives", "in", "unbelievable", "Paris", "."]
TAGS = ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "O"]
HEAD = "token-classification"


@pytest.fixture(scope="module")
def bert():
    return tiny("bert", HEAD, "bert", labels=LABELS)


def objective_of(bert, max_len: int, **options):
    return token_classification(bert[0], bert[2], max_len, **options)


def test_the_first_token_of_a_word_has_its_tag(bert):
    tokenizer = bert[2]
    (item,) = objective_of(bert, 40).items([{"words": WORDS, "tags": TAGS}])
    pieces = [tokenizer.encode(word) for word in WORDS]
    assert max(map(len, pieces)) > 2
    starts = 1 + np.cumsum([0, *map(len, pieces[:-1])])
    assert item.example["tokens"].tolist() == [tokenizer.cls, *np.concatenate(pieces), tokenizer.sep]
    assert np.flatnonzero(item.example["weights"]).tolist() == starts.tolist() == item.places.tolist()
    assert [LABELS[label] for label in item.example["targets"][starts]] == item.tags == TAGS
    (whole,) = objective_of(bert, 40, all_subtokens=True).items([{"words": WORDS, "tags": [LABELS.index(tag) for tag in TAGS]}])
    goes_on = {"B-PER": "I-PER", "B-LOC": "I-LOC"}
    expected = [tag for tag, piece in zip(TAGS, pieces) for tag in [tag, *(len(piece) - 1) * [goes_on.get(tag, tag)]]]
    assert [LABELS[label] for label in whole.example["targets"][1:-1]] == expected
    assert whole.example["weights"].tolist() == [0, *np.ones(len(expected)), 0]
    assert whole.places.tolist() == starts.tolist()


@pytest.mark.parametrize(("tokenizer", "family"), [("bert", "bert"), ("roberta_prefix", "bert"), ("llama", "llama")])
def test_every_word_counts_once_however_a_sentence_is_cut(tokenizer, family):
    model, _, tokenizer = tiny(family, HEAD, tokenizer, labels=LABELS)
    rng = np.random.default_rng(0)
    for max_len in (4, 5, 9, 64):
        sentences = [[*rng.choice([*WORDS, "\u200b", ""], rng.integers(1, 12))] for _ in range(20)]
        records = [{"words": words, "tags": rng.integers(0, 5, len(words))} for words in sentences]
        items = token_classification(model, tokenizer, max_len).items(records)
        assert max(len(item.example["tokens"]) for item in items) <= max_len
        assert [item.record for item in items] == sorted(item.record for item in items)
        for number, record in enumerate(records):
            windows = [item for item in items if item.record == number]
            assert [tag for window in windows for tag in window.tags] == [LABELS[tag] for tag in record["tags"]]
            has_tokens = [len(tokenizer([word], split_words=True, add_special_tokens=False).tokens[0]) > 0 for word in record["words"]]
            places = np.concatenate([window.places for window in windows])
            assert (places >= 0).tolist() == has_tokens
            targets = [LABELS[window.example["targets"][place]] if place >= 0 else tag for window in windows for place, tag in zip(window.places, window.tags)]
            assert targets == [LABELS[tag] for tag in record["tags"]]
            learned = np.concatenate([np.flatnonzero(window.example["weights"]) for window in windows])
            assert learned.tolist() == places[places >= 0].tolist()


def test_a_tokenizer_that_goes_from_the_right_changes_nothing(bert):
    model, _, tokenizer = bert
    other = dataclasses.replace(tokenizer, truncation_side="left", padding_side="left")
    records = [{"words": WORDS, "tags": TAGS}, {"words": WORDS[:2], "tags": TAGS[:2]}]
    for item, same in zip(*(token_classification(model, each, 7).items(records) for each in (tokenizer, other)), strict=True):
        assert item.tags == same.tags and item.example["tokens"].tolist() == same.example["tokens"].tolist()


def test_the_loss_is_the_formula_in_float64(bert):
    model, params, tokenizer = bert
    records = [{"words": WORDS, "tags": TAGS}, {"words": ["Paris"], "tags": ["B-LOC"]}]
    objective = objective_of(bert, 20)
    items = objective.items(records)
    loss = right = count = 0
    for item in items:
        inputs = {name: item.example[name][None] for name in ("tokens", "token_types")}
        log_p = log_softmax(np.asarray(apply(model, params, inputs).logits[0], np.float64), -1)
        at = np.flatnonzero(item.example["weights"])
        goals = [LABELS.index(tag) for tag in item.tags]
        loss, count, right = loss - log_p[at, goals].sum(), count + len(at), right + (log_p[at].argmax(-1) == goals).sum()
    assert len(items) > 2 and count == 8
    for made in (batches(objective, items, 4), batches(objective, items[::-1], 4)):
        sums = summed(objective, params, made)
        assert sums["loss"] == pytest.approx((loss, 8), rel=1e-5)
        assert sums["accuracy"] == (right, 8)
    figures = judged(objective, params, items, 4)
    assert figures["accuracy"] == right / 8
    assert figures.keys() == {"accuracy", "precision", "recall", "f1"}


def test_the_judge_joins_the_windows_of_a_sentence(bert):
    objective = objective_of(bert, 4)  # two tokens of text a row
    records = [{"words": ["a", "b", "c", "", "d", "e"], "tags": ["O", "B-PER", "I-PER", "I-PER", "O", "B-LOC"]}, {"words": ["a"], "tags": ["B-LOC"]}]
    items = objective.items(records)
    assert [item.tags for item in items] == [["O", "B-PER"], ["I-PER", "I-PER", "O"], ["B-LOC"], ["B-LOC"]]
    assert [item.places.tolist() for item in items] == [[1, 2], [1, -1, 2], [1], [1]]
    said = np.array([[4, 0, 1, 4], [4, 2, 0, 4], [4, 3, 4, 4], [4, 0, 4, 4]])  # what stands at [CLS] and [SEP] is not read
    # Of three entities one is right: the word without a token is said to be "O", which ends Anna's name too early.
    figures = objective.judge.score(items, {"labels": said})
    assert figures == pytest.approx({"precision": 1 / 2, "recall": 1 / 3, "f1": 0.4, "accuracy": 5 / 7})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"words": ["a"]}, "record 0 has no field 'tags'"),
        ({"words": "a", "tags": ["O"]}, "record 0 has 'a' as its 'words': expected a list of words"),
        ({"words": [], "tags": []}, r"record 0 has \[\] as its 'words': expected strings, one at least"),
        ({"words": ["a", 3], "tags": ["O", "O"]}, "expected strings, one at least"),
        ({"words": ["a", "b"], "tags": ["O"]}, "record 0 has 2 words and 1 tags: expected a tag for each word"),
        ({"words": ["a"], "tags": ["B-PERS"]}, "record 0 has 'B-PERS' in its 'tags', which is no label: did you mean 'B-PER'"),
    ],
)
def test_a_record_that_cannot_be_is_named(bert, record, message):
    with pytest.raises(InputError, match=message):
        objective_of(bert, 20).items([record])
