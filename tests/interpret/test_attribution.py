import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.interpret import direct_logit_attribution
from flaxllm.interpret.forward import forward
from flaxllm.models import Model
from interpret.small import MODELS, PAIRS, ROWS, SUMS, TARGET, in_float64, inputs, model_and_params, parameters, stack

RIGHT, WRONG, POSITION = np.array([3, 11]), np.array([7, 2]), np.array([-1, 2])


def by_hand(model: Model, params: dict, taps: dict, right: np.ndarray, wrong: np.ndarray | None, row: int, place: int) -> dict:
    """What each part adds in one row, in float64: it goes through the norm, its divisor given, and along the tokens' rows."""
    config, writer = model.config, params.get("decoder", params)
    table = params["head"]["table"] if model.family == "llama" else params["embedding"]["tokens"]
    unit = table[right] - (0 if wrong is None else table[wrong])
    unit = unit / np.sqrt(config.d_model) if model.family == "t5" else unit
    centre = (lambda x: x - x.mean()) if model.family == "gpt" else (lambda x: x)
    residual = taps["layers/out"][-1, row, place]
    divisor = np.sqrt((centre(residual) ** 2).mean() + config.norm_eps)

    def worth(x: np.ndarray) -> float:
        return float((writer["final_norm"]["scale"] * centre(x) / divisor) @ unit)

    depth = len(taps["layers/out"])
    found = {"embedding": worth(taps["embedding"][row, place]), "norm_bias": writer["final_norm"].get("bias", 0 * unit) @ unit}
    found["mlps"] = [worth(taps["layers/mlp/out"][layer, row, place]) for layer in range(depth)]
    biases = np.zeros(depth)
    for part, name in (("heads", "attention"), ("cross_heads", "cross_attention")):
        if name in writer["layers"]:
            out, mixed = writer["layers"][name]["out"], taps[f"layers/{name}/mixed"][:, row, place]
            heads = np.einsum("lhk,lhkd->lhd", mixed, out["kernel"])
            found[part] = [[worth(head) for head in layer] for layer in heads]
            biases += [worth(bias) for bias in out["bias"]] if "bias" in out else 0
    return found | {"attention_biases": biases}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("wrong", [WRONG, None], ids=["difference", "logit"])
def test_each_part_adds_its_share_and_all_the_logit(name, wrong):
    model, params = MODELS[name], in_float64(parameters(name))
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        found = direct_logit_attribution(model, params, right=RIGHT, wrong=wrong, position=POSITION, **inputs(name))
        output = forward(model, params, inputs(name), nn.Context(taps=nn.Taps(returned=("*",))))
        logits = np.asarray(model.unembed(params, output.hidden))
    taps = {path.removeprefix(stack(name)): np.asarray(value) for path, value in output.taps.items()}
    params = in_float64(params)
    for row, place in enumerate(POSITION):
        expected = by_hand(model, params, taps, RIGHT[row], None if wrong is None else wrong[row], row, place)
        assert expected.keys() == {part for part, value in found._asdict().items() if value is not None and part != "logit"}
        for part, values in expected.items():
            got = getattr(found, part)
            np.testing.assert_allclose(got[row] if got.ndim == 1 else got[:, row], values, rtol=1e-10, atol=1e-12, err_msg=part)
        logit = logits[row, place, RIGHT[row]] - (0 if wrong is None else logits[row, place, wrong[row]])
        np.testing.assert_allclose(sum(np.sum(values) for values in expected.values()), logit, rtol=1e-11)
        np.testing.assert_allclose(found.logit[row], logit, rtol=1e-12)


@pytest.mark.parametrize("name", ["gpt", "t5"])
def test_parts_add_up_in_float32_with_one_tree_for_each_layer(name):
    model, params = model_and_params(name)
    params = nn.unstack(jax.tree.map(jnp.copy, params))
    found = direct_logit_attribution(model, params, right=3, wrong=7, **inputs(name))
    total = sum(
        part.sum([axis for axis in range(part.ndim) if axis != (part.ndim > 1)]) for part in found[:-1] if part is not None
    )
    assert found.cross_heads is None or name in PAIRS
    np.testing.assert_allclose(total, found.logit, rtol=1e-5, atol=1e-5)
    assert total.shape == (ROWS,)


@pytest.mark.parametrize("name", ["bert", "transformer"])
def test_models_whose_layers_end_in_a_norm_are_refused(name):
    with pytest.raises(InputError, match=f"the logits of a {name} model are no sum of its parts"):
        direct_logit_attribution(*model_and_params(name), right=3, **inputs(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(right=30), "the token 30 is not in this model's vocabulary: expected a number of 0 to 29"),
        (dict(right=[1, 2], wrong=np.array([1, -1])), r"the token \[1, -1\] is not in"),
        (dict(right=1, position=TARGET), "the position 5 is not in a row of 5 tokens"),
        (dict(right=1, position=[0, -6]), r"the position \[0, -6\] is not in a row of 5 tokens"),
    ],
)
def test_tokens_and_positions_that_are_not_there_are_refused(options, message):
    options = {name: np.array(value) for name, value in options.items()}
    with pytest.raises(InputError, match=message):
        direct_logit_attribution(*model_and_params("t5"), **inputs("t5"), **options)
