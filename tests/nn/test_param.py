import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.nn import Param

KEY = jax.random.PRNGKey(0)


def layer_specs() -> dict:
    return {"up": nn.dense_specs({"embed": 4}, {"mlp": 8}), "norm": nn.layer_norm_specs(4)}


def test_a_tensor_starts_from_its_own_path_and_layer_alone():
    alone = nn.init({"layers": nn.stack(layer_specs(), 2)}, KEY)
    more = nn.init({"other": layer_specs(), "layers": nn.stack(layer_specs(), 3)}, KEY)
    np.testing.assert_array_equal(alone["layers"]["up"]["kernel"], more["layers"]["up"]["kernel"][:2])


def test_no_two_tensors_or_layers_start_alike():
    specs = {"a": nn.dense_specs({"embed": 4}, {"mlp": 4}), "layers": nn.stack(layer_specs(), 2)}
    params = nn.init(specs, KEY)
    first, second = params["layers"]["up"]["kernel"]
    assert not np.allclose(first, second)
    assert not np.allclose(params["a"]["kernel"], first[:, :4])


def test_initial_deviation_is_the_declared_one():
    kernel = nn.init({"k": Param((200, 300), ("embed", "mlp"), nn.normal(0.02), ("embed",))}, KEY)["k"]
    assert abs(float(kernel.std()) / 0.02 - 1) < 0.02
    assert abs(float(kernel.mean())) < 0.02 * 4 / (200 * 300) ** 0.5


def test_count_and_abstract_agree_with_the_arrays():
    specs = {"layers": nn.stack(layer_specs(), 3)}
    params = nn.init(specs, KEY, jnp.bfloat16)
    assert nn.count(specs) == sum(x.size for x in jax.tree.leaves(params))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert nn.abstract(specs, jnp.bfloat16) == shapes


def test_inputs_and_outputs_split_the_axes_of_a_matrix():
    param = nn.stack(nn.dense_specs({"heads": 2, "head_dim": 3}, {"embed": 5}), 4)["kernel"]
    assert (param.inputs, param.outputs, param.fan_in) == (("heads", "head_dim"), ("embed",), 6)
    assert param.is_matrix and not param.is_lookup
    assert nn.embedding_specs("vocab", 7, 5).is_lookup
    assert not nn.layer_norm_specs(5)["scale"].is_matrix


def test_a_declaration_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="as many different axis names"):
        Param((2, 3), ("embed", "embed"), nn.normal(1.0))
    with pytest.raises(ValueError, match="not all among the axes"):
        Param((2, 3), ("embed", "mlp"), nn.normal(1.0), ("heads",))
