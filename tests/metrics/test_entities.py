"""Entity scores: seqeval's published examples, and entities counted by hand."""

import pytest

from flaxllm.errors import InputError
from flaxllm.metrics import entities

pytest.importorskip("seqeval")


def tags(*sentences: str) -> list[list[str]]:
    return [sentence.split() for sentence in sentences]


def test_an_entity_counts_whole():
    # seqeval's README: of two true entities one is found, and of two predicted one is right.
    true = tags("O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O")
    predicted = tags("O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O")
    assert entities(predicted, true) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}


def test_type_start_and_end_must_be_right():
    true = tags("B-PER I-PER O B-LOC B-LOC I-LOC O O")
    predicted = tags("B-PER I-PER O B-ORG B-LOC O O B-PER")
    scores = entities(predicted, true)  # PER is right; LOC is an ORG, LOC LOC is cut short, and one PER is nothing
    assert scores == {"precision": 1 / 4, "recall": 1 / 3, "f1": pytest.approx(2 / 7)}


def test_strict_asks_for_a_beginning():
    # seqeval's README.
    true, predicted = tags("B-NP I-NP O"), tags("I-NP I-NP O")
    assert entities(predicted, true)["f1"] == 1.0
    assert entities(predicted, true, strict=True) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert entities(true, true, strict=True)["f1"] == 1.0


def test_entities_end_with_their_sentence():
    assert entities(tags("O B-PER", "I-PER O"), tags("O B-PER", "B-PER O"))["f1"] == 1.0
    assert entities(tags("O O"), tags("O O")) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


WRONG = {
    "there are 1 predictions for 2 references": (tags("O"), tags("O", "O")),
    "sentence 1 has 1 predicted tags for 2 words": (tags("O", "O"), tags("O", "O O")),
    "sentence 0 has the tag 'NOUN'": (tags("NOUN"), tags("O")),
    "sentence 0 has the tag 'I'": (tags("O"), tags("I")),
}


@pytest.mark.parametrize("expected", WRONG)
def test_what_are_no_tags_is_refused(expected):
    with pytest.raises(InputError, match=expected):
        entities(*WRONG[expected])
