import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models import preset
from flaxllm.nn import Param
from flaxllm.parallel import activation_rules, make_mesh, parse_mesh, tree_shardings
from flaxllm.parallel.mesh import MESH_AXES, param_spec


def test_a_line_of_text_gives_the_sizes():
    assert parse_mesh("data:2,fsdp:2", 4) == {"data": 2, "fsdp": 2, "model": 1, "sequence": 1}
    assert parse_mesh("model:2, data:-1", 8) == {"data": 4, "fsdp": 1, "model": 2, "sequence": 1}
    assert make_mesh("data:2,model:4").shape == {"data": 2, "fsdp": 1, "model": 4, "sequence": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dat:2", "unknown axis 'dat': did you mean 'data'"),
        ("data", "bad entry 'data': write each axis once"),
        ("data:0", "bad entry 'data:0'"),
        ("data:2,data:2", "bad entry 'data:2'"),
        ("data:-1,fsdp:-1", "leaves 2 axes open"),
        ("data:3", "needs 3 devices, there are 8"),
        ("data:-1,model:3", "needs 3 devices or a multiple, there are 8"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_mesh(text, 8)


def test_parameters_split_by_their_logical_axes_where_they_divide():
    mesh = AbstractMesh((1, 4, 2, 1), MESH_AXES)
    specs = preset("gpt2-124m").param_specs()
    layer = specs["layers"]
    assert param_spec(layer["attention"]["query"]["kernel"], mesh) == PartitionSpec(None, "fsdp", "model", None)
    assert param_spec(layer["attention"]["out"]["kernel"], mesh) == PartitionSpec(None, "model", None, "fsdp")
    assert param_spec(layer["mlp"]["up"]["kernel"], mesh) == PartitionSpec(None, "fsdp", "model")
    # 50257 is odd: the vocabulary stays whole.
    assert param_spec(specs["embedding"]["tokens"], mesh) == PartitionSpec(None, "fsdp")


def test_rules_that_collide_raise():
    param = Param((8, 8), ("heads", "mlp"), nn.normal(1.0), ("heads",))
    with pytest.raises(ValueError, match="the sharding rules collide"):
        param_spec(param, AbstractMesh((1, 1, 2, 1), MESH_AXES))


def test_an_optimizers_moments_are_split_like_their_parameters():
    mesh = make_mesh("fsdp:4,model:2")
    specs = preset("gpt2-124m", vocab_size=64).param_specs()
    params = nn.abstract(specs)
    state = jax.eval_shape(optax.adamw(1e-3).init, params)
    shardings = tree_shardings(state, specs, mesh)
    kernel = shardings[0].mu["layers"]["mlp"]["up"]["kernel"]
    assert kernel.spec == PartitionSpec(None, "fsdp", "model")
    assert shardings[0].count.spec == PartitionSpec()
    assert tree_shardings(params, specs, mesh)["embedding"]["tokens"].spec == PartitionSpec("model", "fsdp")


def test_one_device_needs_no_rules():
    assert activation_rules(make_mesh("data:1", jax.devices()[:1])) is None
    rules = activation_rules(make_mesh("data:2,fsdp:2,model:2"))
    assert rules.spec("batch", "length", "heads", None) == PartitionSpec(("data", "fsdp"), None, ("model",), None)
    assert rules.split("batch") == 4 and rules.split("length") == 1


def test_placing_by_these_shardings_keeps_the_values():
    mesh = make_mesh("fsdp:4,model:2")
    model = preset("gpt2-124m", vocab_size=64, num_layers=2, d_model=32, num_heads=2, head_dim=8, d_mlp=64)
    params = model.init(jax.random.PRNGKey(0))
    placed = jax.tree.map(jax.device_put, params, tree_shardings(params, model.param_specs(), mesh))
    kernel = placed["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 8, 32)
    assert all(bool(jnp.array_equal(a, b)) for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(params)))


def test_an_axis_that_does_not_divide_is_in_one_part():
    rules = activation_rules(make_mesh("data:2,model:4"))
    assert rules.split("vocab") == rules.split("vocab", 64) == 4
    assert rules.split("vocab", 50257) == 1
    assert rules.split("length", 7) == 1
