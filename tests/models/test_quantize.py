"""Whole models in few bits: equal to the plain model of the rounded weights, and near the one that was rounded."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.decoding import prepare
from flaxllm.decoding.reading import empty_cache, extend, has_encoder, with_source
from flaxllm.errors import InputError
from flaxllm.models import Model, build
from flaxllm.models.quantize import num_bytes, quantize
from flaxllm.nn.weights import Kept

_SIZES = dict(vocab_size=50, num_layers=1, num_heads=4, head_dim=8, d_model=32, d_mlp=64)
MODELS = {
    "gpt": build("gpt", _SIZES | dict(max_len=32)),
    "llama": build("llama", _SIZES | dict(num_kv_heads=2, window=6, windowed=(True,), tied=False)),
    "t5": build("t5", _SIZES | dict(num_buckets=8, max_distance=20, tied=False)),
    "transformer": build("transformer", _SIZES | dict(attention_bias=True, output_bias=True)),
    "bert": build("bert", _SIZES | dict(max_len=32)),
}
TOKENS = jax.random.randint(jax.random.PRNGKey(0), (2, 12), 1, 50)


def parameters(name: str) -> dict:
    return MODELS[name].init(jax.random.PRNGKey(1))


@partial(jax.jit, static_argnums=0)
def logits(model: Model, params: dict) -> jax.Array:
    inputs = (TOKENS, TOKENS[:, ::-1]) if has_encoder(model) else (TOKENS,)
    return model.unembed(params, model.apply(params, *inputs).hidden)


def rounded(model: Model, quantized: dict) -> dict:
    """The quantized weights as plain arrays, put back into the axes that the model declares."""
    plain = {}
    for path, weight in nn.flatten(quantized).items():
        param = nn.flatten(model.param_specs())[path]
        if isinstance(weight, Kept):
            stacked = [a for a in param.axes if a == nn.LAYERS]
            inputs = [a for a in param.axes if a in param.inputs]
            outputs = [a for a in param.axes if a not in stacked + inputs]
            order = [*stacked, *inputs, *outputs] if param.is_lookup else [*stacked, *outputs, *inputs]
            turned = weight.dequantized().reshape([param.axis_size(a) for a in order])
            weight = jnp.transpose(turned, [order.index(a) for a in param.axes])
        plain[path] = weight
    return nn.unflatten(plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [("gpt", "int8"), ("gpt", "int4"), ("llama", "int4"), ("t5", "int8"), ("transformer", "int4"), ("bert", "int8")],
)
def test_every_family_computes_with_the_rounded_weights(name, kind):
    model, params = MODELS[name], parameters(name)
    quantized = quantize(model, params, kind)
    plain = rounded(model, quantized)
    kept = {path for path, weight in nn.flatten(quantized).items() if isinstance(weight, Kept)}
    assert kept == {path for path in nn.flatten(params) if path.endswith(("kernel", "tokens", "table"))}
    got, expected, before = (np.asarray(logits(model, p)) for p in (quantized, plain, params))
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
    off = np.linalg.norm(got - before) / np.linalg.norm(before)
    assert 1e-4 < off < {"int8": 0.02, "int4": 0.15}[kind]


@partial(jax.jit, static_argnums=0)
def decoded(model: Model, params: dict) -> jax.Array:
    """The logits of a row's tokens, read in two parts."""
    cache = empty_cache(model, len(TOKENS), 16)
    cache = with_source(model, params, cache, TOKENS) if has_encoder(model) else cache
    taught = TOKENS[:, ::-1] if has_encoder(model) else TOKENS
    first, cache, _ = extend(model, params, cache, taught[:, :8], first=True)
    second, _, _ = extend(model, params, cache, taught[:, 8:])
    return model.unembed(params, jnp.concatenate([first, second], 1))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("gpt", "int4"), ("llama", "int8"), ("t5", "int4"), ("transformer", "int8")])
def test_every_writing_family_decodes(name, kind):
    model, params = MODELS[name], parameters(name)
    expected = np.asarray(logits(model, quantize(model, params, kind)))
    got = decoded(model, prepare(model, params, quantize=kind))
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


def test_the_tokens_have_eight_bits_and_the_rest_four():
    model = MODELS["gpt"]
    bytes_of = {path: num_bytes(tree) for path, tree in nn.flatten(quantize(model, parameters("gpt"), "int4")).items()}
    assert bytes_of["embedding/tokens"] == 50 * 32 + 50 * 4
    assert bytes_of["layers/mlp/up/kernel"] == 32 * 64 * 5 // 8
    assert bytes_of["embedding/positions"] == 32 * 32 * 4


def test_what_cannot_be_quantized_is_refused():
    model, params = MODELS["gpt"], parameters("gpt")
    with pytest.raises(InputError, match="cannot be quantized to 'int6': did you mean 'int[48]'"):
        quantize(model, params, "int6")
    for made in (prepare(model, params), quantize(model, params, "int8")):
        with pytest.raises(InputError, match="is no plain parameter of this model"):
            prepare(model, made, quantize="int8")
    narrow = build("gpt", _SIZES | dict(max_len=32, d_mlp=48))
    with pytest.raises(InputError, match="layers/mlp/down/kernel has 48 inputs, and 'int4' needs a multiple of 32: use 'int8'"):
        quantize(narrow, narrow.init(jax.random.PRNGKey(0)), "int4")
