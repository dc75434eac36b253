"""What decoding makes of parameters: layers apart, outputs first, one matrix for all that reads the same."""

import jax
import numpy as np
import pytest

from decoding.tiny import MODELS, parameters, prepared
from flaxllm import nn
from flaxllm.decoding import prepare
from flaxllm.nn.quantized import Int8Matrix
from flaxllm.nn.weights import Joined, OutputsFirst


def _whole(layer: dict, place: str, names: tuple[str, ...]) -> np.ndarray:
    """The single matrix of kernels that are kept as one."""
    kept, *others = (layer[place][name]["kernel"] for name in names)
    assert isinstance(kept, Joined) and others == [None] * len(others)
    return np.asarray(kept.whole.matrix)


def _columns(params: dict, layer: int, place: str, name: str) -> np.ndarray:
    kernel = np.asarray(params["layers"][place][name]["kernel"][layer])
    return kernel.reshape(len(kernel), -1)


def test_kernels_of_one_input_are_one_matrix():
    params, layers = parameters("llama"), prepared("llama")["layers"]
    for place, names in (("attention", ("query", "key", "value")), ("mlp", ("up", "gate"))):
        for number, layer in enumerate(layers):
            expected = np.concatenate([_columns(params, number, place, name).T for name in names])
            np.testing.assert_array_equal(_whole(layer, place, names), expected)


def test_kernels_of_other_inputs_stay_apart():
    layer = prepared("t5")["decoder"]["layers"][0]
    assert _whole(layer, "attention", ("query", "key", "value")).shape == (3 * 32, 16)
    alone = [layer["cross_attention"][name]["kernel"] for name in ("query", "key", "value")] + [layer["mlp"]["up"]["kernel"]]
    assert all(isinstance(kernel, OutputsFirst) for kernel in alone)
    assert "gate" not in layer["mlp"]


def test_biases_stay_with_their_kernels():
    params, layer = parameters("gpt"), prepared("gpt")["layers"][1]
    for name in ("query", "key", "value"):
        np.testing.assert_array_equal(layer["attention"][name]["bias"], params["layers"]["attention"][name]["bias"][1])


def test_kernels_of_few_bits_are_one_matrix_too():
    layer = prepare(MODELS["llama"], parameters("llama"), "int8")["layers"][0]
    assert isinstance(layer["attention"]["query"]["kernel"].whole, Int8Matrix)
    assert layer["mlp"]["up"]["kernel"].whole.values.shape == (2 * 32, 16)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_nothing_is_kept_twice_and_the_given_parameters_stay(name):
    sizes = [sum(array.size for array in jax.tree.leaves(tree)) for tree in (prepared(name), parameters(name))]
    assert sizes == [nn.count(MODELS[name].param_specs())] * 2


def test_what_is_prepared_is_given_back():
    assert prepare(MODELS["llama"], prepared("llama")) is prepared("llama")
