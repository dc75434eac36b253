import numpy as np
import pytest

from flaxllm import nn
from flaxllm.nn import Param
from flaxllm.pretrained.names import Rule, as_theirs, linear, norm, rule_shape

WIDTH, HEADS, DIM = 5, 2, 3
QUERY = nn.dense_specs({"embed": WIDTH}, {"heads": HEADS, "head_dim": DIM})
OUT = nn.dense_specs({"heads": HEADS, "head_dim": DIM}, {"embed": WIDTH})


def filled(param: Param) -> np.ndarray:
    return np.arange(param.size, dtype=np.float32).reshape(param.shape)


def test_a_linear_layer_of_torch_has_outputs_first_and_heads_in_one_axis():
    ours = filled(QUERY["kernel"])
    theirs = as_theirs(ours, QUERY["kernel"], inputs_first=False)
    assert theirs.shape == (HEADS * DIM, WIDTH)
    for d in range(WIDTH):
        for h in range(HEADS):
            for k in range(DIM):
                assert theirs[h * DIM + k, d] == ours[d, h, k]


def test_several_input_axes_lie_in_one_axis_of_theirs():
    ours = filled(OUT["kernel"])
    theirs = as_theirs(ours, OUT["kernel"], inputs_first=False)
    assert theirs.shape == (WIDTH, HEADS * DIM)
    assert all(theirs[d, h * DIM + k] == ours[h, k, d] for d in range(WIDTH) for h in range(HEADS) for k in range(DIM))


def test_inputs_can_come_first():
    ours = filled(QUERY["kernel"])
    theirs = as_theirs(ours, QUERY["kernel"], inputs_first=True)
    assert theirs.shape == (WIDTH, HEADS * DIM)
    assert all(theirs[d, h * DIM + k] == ours[d, h, k] for d in range(WIDTH) for h in range(HEADS) for k in range(DIM))


@pytest.mark.parametrize(
    ("param", "shape"),
    [
        (QUERY["bias"], (HEADS * DIM,)),
        (OUT["bias"], (WIDTH,)),
        (nn.embedding_specs("vocab", 7, WIDTH), (7, WIDTH)),
        (Param((7, WIDTH), ("vocab", "embed"), nn.normal(1.0), ("embed",)), (7, WIDTH)),
    ],
    ids=["bias of heads", "bias", "lookup table", "unembedding table"],
)
def test_what_is_no_transposed_matrix_keeps_its_order(param, shape):
    theirs = as_theirs(filled(param), param, inputs_first=False)
    assert theirs.shape == shape
    np.testing.assert_array_equal(theirs.ravel(), filled(param).ravel())


@pytest.mark.parametrize("param", [QUERY["kernel"], OUT["kernel"], QUERY["bias"]])
def test_what_is_written_in_their_layout_lands_in_ours(param):
    layers = np.zeros((2, *param.shape), np.float32)
    as_theirs(layers[1], param, inputs_first=False)[...] = 1.0
    np.testing.assert_array_equal(layers.sum(axis=tuple(range(1, layers.ndim))), [0, param.size])


def test_fused_projections_stand_side_by_side_along_their_outputs():
    specs = {name: QUERY["kernel"] for name in ("q", "k", "v")}
    assert rule_shape(Rule(("q", "k", "v"), "c_attn.weight", inputs_first=True), specs) == (WIDTH, 3 * HEADS * DIM)
    assert rule_shape(Rule(("q", "k", "v"), "qkv.weight"), specs) == (3 * HEADS * DIM, WIDTH)


def test_rules_of_layers_name_weight_and_bias():
    assert linear("a", "b") == [Rule("a/kernel", "b.weight"), Rule("a/bias", "b.bias")]
    assert linear("a", "b", bias=False, inputs_first=True) == [Rule("a/kernel", "b.weight", True)]
    assert norm("a", "b", bias=False) == [Rule("a/scale", "b.weight")]
