"""Adapters on whole models: as the plain model of `W + scale * down up`, and trained alone."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.decoding import prepare
from flaxllm.decoding.reading import has_encoder
from flaxllm.errors import InputError
from flaxllm.models import Model, build, preset
from flaxllm.models.lora import attach, init_adapter, lora_specs, merge
from flaxllm.models.quantize import quantize
from models.support import assert_near, loud

_SIZES = dict(vocab_size=50, num_layers=2, num_heads=4, head_dim=8, d_model=32, d_mlp=64)
MODELS = {
    "gpt": build("gpt", _SIZES | dict(max_len=32, window=4)),
    "llama": build("llama", _SIZES | dict(num_kv_heads=2, tied=False)),
    "t5": build("t5", _SIZES | dict(num_decoder_layers=1, num_buckets=8, max_distance=20, tied=False, gated=True)),
    "transformer": build("transformer", _SIZES | dict(attention_bias=True, output_bias=True)),
    "bert": build("bert", _SIZES | dict(max_len=32, tied=False)),
}
TOKENS = jax.random.randint(jax.random.PRNGKey(0), (2, 12), 1, 50)
EVERYWHERE = ("*/kernel", "*/tokens")
ALPHA = 6.0


@cache
def case(name: str) -> tuple[Model, dict, dict]:
    """A model, its parameters, and an adapter of all that can be adapted, with no value at its start."""
    model = MODELS[name]
    specs = lora_specs(model, 3, (*EVERYWHERE, *(("head/table",) if name in ("llama", "t5") else ())))
    rng = np.random.default_rng(1)
    return model, loud(model), nn.map_specs(lambda p: jnp.asarray(rng.normal(0.0, 0.1, p.shape), jnp.float32), specs)


@partial(jax.jit, static_argnums=0)
def logits(model: Model, params: dict, ctx: nn.Context = nn.Context()) -> jax.Array:
    inputs = (TOKENS, TOKENS[:, ::-1]) if has_encoder(model) else (TOKENS,)
    return model.unembed(params, model.apply(params, *inputs, ctx=ctx).hidden)


def apart(params: dict) -> dict:
    """The parameters layer by layer."""
    return nn.unstack(jax.tree.map(jnp.copy, params))


def by_hand(model: Model, params: dict, adapter: dict, scale: float) -> dict:
    """The plain parameters with the adapter added in float64."""
    factors, summed = nn.flatten(adapter), nn.flatten(params)
    for path in {path.rpartition("/")[0] for path in factors}:
        down, up = (np.asarray(factors[f"{path}/{name}"], np.float64) for name in ("down", "up"))
        if path.startswith("embedding/") or path == "head/table":  # a row for each token
            delta = (down @ up).T
        else:
            pairs = zip(down, up) if "layers/" in path else [(down, up)]
            delta = np.stack([np.tensordot(*pair, axes=1) for pair in pairs]).reshape(summed[path].shape)
        summed[path] = jnp.asarray(np.asarray(summed[path], np.float64) + scale * delta, jnp.float32)
    return nn.unflatten(summed)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_family_computes_with_the_sum(name):
    model, params, adapter = case(name)
    expected = np.asarray(logits(model, by_hand(model, params, adapter, ALPHA / 3)))
    assert np.abs(expected - logits(model, params)).max() > 0.1 * np.abs(expected).max()
    attached = attach(model, params, adapter, ALPHA)
    assert_near(logits(model, attached), expected)
    assert_near(logits(model, attach(model, apart(params), adapter, ALPHA)), expected)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
        merge(model, params, adapter, ALPHA), by_hand(model, params, adapter, ALPHA / 3),
    )  # fmt: skip


def test_layers_are_cut_with_their_adapters():
    model, params, adapter = case("llama")
    expected = np.asarray(logits(model, attach(model, params, adapter, ALPHA)))
    assert_near(logits(model, prepare(model, attach(model, params, adapter, ALPHA))), expected)
    merged = merge(model, apart(params), adapter, ALPHA)
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-6), nn.stack_layers(merged), merge(model, params, adapter, ALPHA)
    )


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_weights_below_may_be_in_few_bits(kind):
    model, params, adapter = case("llama")
    few = quantize(model, params, kind)
    expected, rounded = (np.asarray(logits(model, attach(model, p, adapter, ALPHA))) for p in (params, few))
    off = np.linalg.norm(rounded - expected) / np.linalg.norm(expected)
    assert 1e-4 < off < {"int8": 0.05, "int4": 0.3}[kind]
    silent = jax.tree.map(jnp.zeros_like, adapter)
    np.testing.assert_array_equal(logits(model, attach(model, few, silent, ALPHA)), logits(model, few))


def test_ranks_stabilize_the_scale():
    model, params, adapter = case("gpt")
    expected = np.asarray(logits(model, by_hand(model, params, adapter, ALPHA / 3**0.5)))
    assert_near(logits(model, attach(model, params, adapter, ALPHA, rank_stabilized=True)), expected)
    assert_near(logits(model, merge(model, params, adapter, ALPHA, rank_stabilized=True)), expected)


def test_the_gradient_of_the_adapter_is_that_through_the_sum():
    model, params, adapter = case("gpt")

    @partial(jax.jit, static_argnums=0)
    def gradient(join, adapter):
        return jax.grad(lambda adapter: jnp.sin(logits(model, join(model, params, adapter, ALPHA))).sum())(adapter)

    beside, summed = gradient(attach, adapter), gradient(merge, adapter)
    for path, expected in nn.flatten(summed).items():
        np.testing.assert_allclose(nn.flatten(beside)[path], expected, atol=1e-4 * float(jnp.abs(expected).max()), err_msg=path)
        assert float(jnp.abs(expected).max()) > 0


def test_an_adapter_starts_without_effect_and_as_pefts_do():
    model = MODELS["gpt"]
    specs = lora_specs(model, 8, EVERYWHERE)
    adapter = nn.flatten(init_adapter(specs, {}, jax.random.PRNGKey(3)))
    for path, inputs in {"layers/attention/query/kernel": 32, "layers/mlp/down/kernel": 64, "embedding/tokens": 32}.items():
        down, bound = np.asarray(adapter[f"{path}/down"]), inputs**-0.5
        assert 0.95 * bound < np.abs(down).max() <= bound
        assert abs(down.std() - bound / 3**0.5) < 0.1 * bound
        assert not adapter[f"{path}/up"].any()
    params = loud(model)
    attached = attach(model, params, nn.unflatten(adapter), ALPHA)
    np.testing.assert_array_equal(logits(model, attached), logits(model, params))


def test_gpt3_has_the_published_number_of_trained_parameters():
    # Hu et al. 2021, table 4: 4.7M and 37.7M, queries and values with ranks 1 and 8.
    for rank, published in ((1, 4.7e6), (8, 37.7e6)):
        assert nn.count(lora_specs(preset("gpt3-175b"), rank)) == pytest.approx(published, rel=0.005)


def test_default_targets_are_the_queries_and_values_of_every_attention():
    paths = {path.rpartition("/")[0] for path in nn.flatten(lora_specs(MODELS["t5"], 2))}
    assert paths == {f"{place}/{name}/kernel" for name in ("query", "value")
                     for place in ("encoder/layers/attention", "decoder/layers/attention", "decoder/layers/cross_attention")}  # fmt: skip


def test_factors_are_split_as_their_kernels():
    specs = nn.flatten(lora_specs(MODELS["llama"], 2, ("layers/attention/value/kernel", "head/table")))
    axes = {path.removeprefix("layers/attention/"): (param.axes, param.shape, param.inputs) for path, param in specs.items()}
    assert axes == {
        "value/kernel/down": (("layers", "embed", "rank"), (2, 32, 2), ("embed",)),
        "value/kernel/up": (("layers", "rank", "kv_heads", "head_dim"), (2, 2, 2, 8), ("rank",)),
        "head/table/down": (("embed", "rank"), (32, 2), ("embed",)),
        "head/table/up": (("rank", "vocab"), (2, 50), ("rank",)),
    }


def test_dropout_is_the_same_however_the_layers_lie():
    model, params, adapter = case("llama")
    ctx = nn.Context(dropout_key=jax.random.PRNGKey(5))
    stacked = np.asarray(logits(model, attach(model, params, adapter, ALPHA, dropout=0.5), ctx))
    assert_near(logits(model, attach(model, apart(params), adapter, ALPHA, dropout=0.5), ctx), stacked)
    plain = np.asarray(logits(model, attach(model, params, adapter, ALPHA)))
    assert np.abs(stacked - plain).max() > 0.1 * np.abs(plain).max()
    np.testing.assert_array_equal(logits(model, attach(model, params, adapter, ALPHA, dropout=0.5)), plain)


def test_a_new_head_is_trained_whole():
    model = build("bert", _SIZES | dict(max_len=32), head="sequence-classification")
    params = loud(model)
    specs = lora_specs(model, 2, whole=("head/*", "layers/mlp_norm/*"))
    adapter = init_adapter(specs, params, jax.random.PRNGKey(0))
    np.testing.assert_array_equal(adapter["layers"]["mlp_norm"]["scale"], params["layers"]["mlp_norm"]["scale"])
    assert adapter["head"]["out"]["kernel"] is not params["head"]["out"]["kernel"]  # a step that gives its arrays away
    changed = adapter | {"head": jax.tree.map(lambda x: x + 1.0, adapter["head"])}
    for params_of in (params, apart(params)):
        attached = attach(model, params_of, changed, ALPHA)
        np.testing.assert_array_equal(attached["head"]["out"]["bias"], params["head"]["out"]["bias"] + 1.0)
    np.testing.assert_array_equal(merge(model, params, changed, ALPHA)["head"]["out"]["bias"], params["head"]["out"]["bias"] + 1.0)
    np.testing.assert_array_equal(params_of["layers"][1]["mlp_norm"]["scale"], params["layers"]["mlp_norm"]["scale"][1])


@pytest.mark.parametrize(
    ("rank", "targets", "whole", "message"),
    [
        (0, ("*/query/kernel",), (), "the rank of an adapter is 0: expected 1 or more"),
        (2, ("*/querry/kernel",), (), "targets has '.*querry/kernel', which matches no parameter: expected one of: .*attention/query/kernel"),
        (2, ("layers/attention/query/*",), (), "match layers/attention/query/bias, which is no kernel: did you mean 'layers/att"),
        (2, ("embedding/positions",), (), "match embedding/positions, which is no kernel"),
        (2, ("layers/attention/querry/kernel",), (), "did you mean 'layers/attention/query/kernel'"),
        (2, ("*/query/kernel",), ("head/*",), "whole has 'head/[*]', which matches no parameter"),
        (2, ("*/query/kernel",), ("layers/*",), "layers/attention/query/kernel is both among"),
    ],
)
def test_what_cannot_be_adapted_is_refused(rank, targets, whole, message):
    with pytest.raises(InputError, match=message):
        lora_specs(MODELS["gpt"], rank, targets, whole)


def test_an_adapter_of_another_model_is_refused():
    model, params, adapter = case("gpt")
    query = adapter["layers"]["attention"]["query"]["kernel"]
    for wrong, message in [
        ({"layers": {"attention": {"q": {"kernel": query}}}}, "has layers/attention/q/kernel/.*, which this model has not: did you"),
        ({"layers": {"attention": {"query": {"kernel": {"up": query["up"]}}}}}, r"has \['up'\] for .*: expected down and up"),
        ({"layers": {"attention": {"query": {"kernel": query | {"down": query["up"]}}}}}, "has shape .* is it another model's?"),
        ({"final_norm": {"scale": jnp.ones(3)}}, r"has shape \(3,\) for final_norm/scale: expected \(32,\)"),
    ]:  # fmt: skip
        for join in (attach, merge):
            with pytest.raises(InputError, match=message):
                join(model, params, wrong, ALPHA)
    with pytest.raises(InputError, match="has final_norm/.*, which the parameters have not"):
        attach(model, {"layers": params["layers"]}, {"final_norm": params["final_norm"]}, ALPHA)
    with pytest.raises(InputError, match="dropout is 1.0: expected a rate"):
        attach(model, params, adapter, ALPHA, dropout=1.0)
    joined = params | {"layers": jax.tree.map(lambda x: None, params["layers"])}
    with pytest.raises(InputError, match="is joined to others for decoding: attach the adapter before"):
        attach(model, joined, adapter, ALPHA)
    for kept in (quantize(model, params, "int8"), prepare(model, params), attach(model, params, adapter, ALPHA)):
        with pytest.raises(InputError, match="prepared, quantized or adapted already: merge into parameters as they were loaded"):
            merge(model, kept, adapter, ALPHA)
