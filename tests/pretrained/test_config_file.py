"""What is said of a config.json whose values are not what they must be."""

import math

import pytest

from flaxllm.errors import InputError
from flaxllm.models.heads import LABELS
from flaxllm.pretrained.config_file import Keys, labels_of
from flaxllm.pretrained.families import family_of, head_of


def labels(**values) -> tuple[str, ...]:
    return labels_of(Keys(values, "config.json"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, "1", True, [1]])
def test_a_number_is_finite(value):
    with pytest.raises(InputError, match="^config.json has norm_eps .*: expected a"):
        Keys({"norm_eps": value}, "config.json").number("norm_eps")


def test_labels_are_named_by_id_or_counted():
    assert labels() == LABELS
    assert labels(num_labels=3) == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert labels(id2label={"1": "b", "0": "a"}) == labels(id2label={"1": "b", "0": "a"}, num_labels=2) == ("a", "b")
    assert labels(id2label={"0": "a"}, num_labels=2) == LABELS


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id2label": 3}, "has id2label 3: expected an object"),
        ({"id2label": ["a"], "num_labels": 1}, r"has id2label \['a'\]: expected an object"),
        ({"id2label": {"x": "a"}}, "has id2label {'x': 'a'}: expected an object"),
        ({"id2label": {"1": "a"}}, r"has id2label with the numbers \[1\]: expected 0 to 0"),
        ({"num_labels": -1}, "has num_labels -1: expected a number of classes"),
        ({"num_labels": 10**30}, "has num_labels 1000000000000000000000000000000: expected a number of classes"),
    ],
)
def test_labels_that_are_none_are_refused(values, message):
    with pytest.raises(InputError, match=f"^config.json {message}"):
        labels(**values)


@pytest.mark.parametrize("value", [["bert"], {"bert": 1}, 3, "brt"])
def test_a_model_type_is_one_that_is_known(value):
    with pytest.raises(InputError, match="^config.json has model_type .*, no model of flaxllm: "):
        family_of(Keys({"model_type": value}, "config.json"))


def test_an_unknown_architecture_is_told_the_nearest_of_its_model_type():
    keys = Keys({"model_type": "distilbert", "architectures": ["DistilBertForMaskedLn"]}, "config.json")
    with pytest.raises(InputError, match="'DistilBertForMaskedLn', which is not known: did you mean 'DistilBertForMaskedLM'"):
        head_of(keys, "bert")
    with pytest.raises(InputError) as error:
        head_of(Keys({"model_type": "distilbert", "architectures": [["x"]]}, "config.json"), "bert")
    assert "DistilBertModel" in str(error.value) and "Roberta" not in str(error.value)
