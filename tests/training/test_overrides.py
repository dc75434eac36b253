"""Dotted keys: what a text or a value means for each, and what is said of those that cannot be."""

import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_dict

from flaxllm.errors import InputError
from flaxllm.training.overrides import dotted_keys, key_type, parse_override, with_changes


def make_config() -> ConfigDict:
    config = ConfigDict({
        "seed": 0,
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "nesterov": False},
        "data": {"batch_size": 8, "vocab_size": config_dict.placeholder(int), "sizes": (1, 2)},
        "objective": {"name": "causal-lm"},
        "remat": config_dict.placeholder(str),
    })  # fmt: skip
    return config.lock()


def test_every_key_that_holds_a_value_is_found():
    assert sorted(dotted_keys(make_config())) == [
        "data.batch_size", "data.sizes", "data.vocab_size", "objective.name", "optimizer.learning_rate",
        "optimizer.name", "optimizer.nesterov", "remat", "seed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optimizer.learning_rate", "3e-4", 0.0003),
        ("optimizer.learning_rate", "2", 2.0),
        ("data.batch_size", "64", 64),
        ("optimizer.nesterov", "true", True),
        ("optimizer.nesterov", "0", False),
        ("optimizer.name", "lion", "lion"),
        ("optimizer.name", "None", "None"),
        ("data.vocab_size", "512", 512),
        ("data.vocab_size", "None", None),
        ("remat", "full", "full"),
    ],
)
def test_a_text_becomes_a_value_of_the_keys_type(key, text, value):
    parsed = parse_override(make_config(), key, text)
    assert (parsed, type(parsed)) == (value, type(value))
    assert flatten_dict(with_changes(make_config(), {key: parsed}).to_dict(), sep=".")[key] == value


@given(st.floats(allow_nan=False), st.integers(-(2**60), 2**60))
def test_a_number_written_by_python_is_read_back(number, whole):
    config = make_config()
    assert parse_override(config, "optimizer.learning_rate", repr(number)) == number
    assert parse_override(config, "data.batch_size", repr(whole)) == whole


@pytest.mark.parametrize(
    ("key", "text", "sentence"),
    [
        ("optimizer.learning_rte", "1", "there is no config.optimizer.learning_rte: did you mean '(.*)learning_rate'"),
        ("optimzer.name", "1", "did you mean 'config.optimizer.name'"),
        ("learning_rate", "1", "did you mean 'config.optimizer.learning_rate'"),
        ("train.batch_size", "1", "did you mean 'config.data.batch_size'"),
        ("optimizer.foo", "1", "expected one of: config.optimizer.learning_rate, config.optimizer.name, "),
        ("optimizer", "1", "config.optimizer is a section: set one of its keys, such as config.optimizer.l"),
        ("data.batch_size", "1.5", "config.data.batch_size takes a whole number, not '1.5'"),
        ("data.batch_size", "None", "config.data.batch_size takes a whole number, not 'None'"),
        ("data.vocab_size", "many", "config.data.vocab_size takes a whole number or None, not 'many'"),
        ("optimizer.learning_rate", "fast", "config.optimizer.learning_rate takes a number, not 'fast'"),
        ("optimizer.nesterov", "maybe", "config.optimizer.nesterov takes true or false, not 'maybe'"),
        ("data.sizes", "(3,)", "config.data.sizes is a tuple, which can only be set in the config file"),
    ],
)
def test_what_cannot_be_is_said_with_the_nearest_name(key, text, sentence):
    with pytest.raises(InputError, match=sentence):
        parse_override(make_config(), key, text)


def test_changes_leave_the_config_itself_alone_and_keep_it_locked():
    config = make_config()
    changed = with_changes(config, {"optimizer.learning_rate": 2, "data.vocab_size": 7, "data.sizes": (4,)})
    assert (changed.optimizer.learning_rate, changed.data.vocab_size, changed.data.sizes) == (2.0, 7, (4,))
    assert (config.optimizer.learning_rate, config.data.vocab_size, config.data.sizes) == (1e-3, None, (1, 2))
    with pytest.raises(AttributeError):
        changed.optimizer.rate = 1.0


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("data.batch_size", 1.5, "config.data.batch_size takes a whole number, not 1.5"),
        ("data.batch_size", True, "config.data.batch_size takes a whole number, not True"),
        ("data.batch_size", None, "config.data.batch_size takes a whole number, not None"),
        ("optimizer.learning_rate", "1e-3", "config.optimizer.learning_rate takes a number, not '1e-3'"),
        ("optimizer.name", 3, "config.optimizer.name takes a text, not 3"),
        ("optimizer.names", "lion", "there is no config.optimizer.names: did you mean 'config.optimizer.name'"),
    ],
)
def test_values_are_checked_like_texts(key, value, sentence):
    with pytest.raises(InputError, match=sentence):
        with_changes(make_config(), {key: value})


def test_the_type_of_a_key_that_is_empty_is_known():
    assert key_type(make_config(), "remat") is str
    assert key_type(make_config(), "optimizer.nesterov") is bool
    with pytest.raises(InputError, match="there is no config.optimizer.nestrov"):
        key_type(make_config(), "optimizer.nestrov")
