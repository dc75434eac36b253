import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models import build, gpt, preset
from flaxllm.nn import Context, Taps

TINY = dict(vocab_size=50, max_len=16, num_layers=4, num_heads=2, head_dim=8, d_model=16, d_mlp=24)
MODEL = build("gpt", TINY)
PARAMS = MODEL.init(jax.random.PRNGKey(0))
TOKENS = jax.random.randint(jax.random.PRNGKey(1), (2, 12), 0, 50)

# Radford et al. 2019 (the released models' names) and Brown et al. 2020, table 2.1, in millions.
PUBLISHED = {
    "gpt2-124m": 124, "gpt2-355m": 355, "gpt2-774m": 774, "gpt2-1.5b": 1558,
    "gpt3-small": 125, "gpt3-medium": 350, "gpt3-large": 760, "gpt3-xl": 1_300,
    "gpt3-2.7b": 2_700, "gpt3-6.7b": 6_700, "gpt3-13b": 13_000, "gpt3-175b": 175_000,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name):
    assert set(PUBLISHED) == set(gpt.PRESETS)
    assert nn.count(preset(name).param_specs()) == pytest.approx(PUBLISHED[name] * 1e6, rel=0.02)


def in_numpy(params: dict, tokens: np.ndarray, config: gpt.Config, segments: np.ndarray | None = None) -> np.ndarray:
    """The logits by the papers' formulas, in float64 and one head at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(p, x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps) * p["scale"] + p["bias"]

    length = tokens.shape[1]
    x = params["embedding"]["tokens"][tokens] + params["embedding"]["positions"][:length]
    back = np.arange(length)[:, None] - np.arange(length)
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda p: p[i], params["layers"])
        seen = np.broadcast_to(back >= 0, (len(tokens), length, length))
        if config.window is not None and i % 2:
            seen = seen & (back < config.window)
        if segments is not None:
            seen = seen & (segments[:, :, None] == segments[:, None, :])
        h, p = norm(layer["attention_norm"], x), layer["attention"]
        for head in range(config.num_heads):
            q, k, v = (h @ p[n]["kernel"][:, head] + p[n]["bias"][head] for n in ("query", "key", "value"))
            scores = np.where(seen, q @ k.swapaxes(1, 2) / np.sqrt(config.head_dim), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            x = x + weights / weights.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][head]
        x = x + p["out"]["bias"]
        h, p = norm(layer["mlp_norm"], x), layer["mlp"]
        up = h @ p["up"]["kernel"] + p["up"]["bias"]
        up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + up @ p["down"]["kernel"] + p["down"]["bias"]
    return norm(params["final_norm"], x) @ params["embedding"]["tokens"].T


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_logits_are_the_formulas_of_the_papers(window, packed):
    model = build("gpt", {**TINY, "window": window})
    params = jax.tree.map(lambda x: 3 * x, PARAMS)
    segments = jnp.array([[1] * 5 + [2] * 7, [1] * 9 + [0] * 3]) if packed else None
    hidden = model.apply(params, TOKENS, segments=segments).hidden
    expected = in_numpy(params, np.asarray(TOKENS), model.config, None if segments is None else np.asarray(segments))
    np.testing.assert_allclose(model.unembed(params, hidden), expected, atol=1e-5 * np.abs(expected).max())


def test_a_packed_document_sees_itself_alone():
    positions = jnp.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    segments = jnp.array([[1] * 5 + [2] * 7])
    packed = MODEL.apply(PARAMS, TOKENS[:1], positions=positions, segments=segments).hidden
    alone = MODEL.apply(PARAMS, TOKENS[:1, 5:]).hidden
    np.testing.assert_allclose(packed[:, 5:], alone, atol=1e-5)


def test_a_later_token_changes_nothing_before_it():
    changed = MODEL.apply(PARAMS, TOKENS.at[:, 7].set(49)).hidden
    same = MODEL.apply(PARAMS, TOKENS).hidden
    np.testing.assert_array_equal(changed[:, :7], same[:, :7])
    assert (jnp.abs(changed[:, 7:] - same[:, 7:]).max(-1) > 1e-4).all()


def test_layers_as_a_tuple_give_the_same():
    cut = nn.unstack(jax.tree.map(jnp.copy, PARAMS))
    np.testing.assert_allclose(MODEL.apply(cut, TOKENS).hidden, MODEL.apply(PARAMS, TOKENS).hidden, atol=1e-6)


def test_every_inner_value_can_be_tapped():
    names = {"embedding", "hidden"} | {
        f"layers/{name}"
        for name in ("in", "attention_norm", "attention/query", "attention/key", "attention/value", "attention/scores",
                     "attention/weights", "attention/mixed", "attention/out", "middle", "mlp_norm", "mlp/up",
                     "mlp/activation", "mlp/out", "out")
    }  # fmt: skip
    taps = MODEL.apply(PARAMS, TOKENS, ctx=Context(taps=Taps(returned=tuple(sorted(names))))).taps
    assert set(taps) == names
    assert taps["layers/attention/weights"].shape == (4, 2, 2, 12, 12)
    np.testing.assert_allclose(taps["layers/in"][1:], taps["layers/out"][:-1])
    np.testing.assert_allclose(taps["layers/middle"] + taps["layers/mlp/out"], taps["layers/out"], atol=1e-6)
    np.testing.assert_allclose(taps["layers/attention/weights"].sum(-1), 1.0, atol=1e-6)


def test_bfloat16_compute_keeps_float32_parameters_near():
    low = MODEL.apply(PARAMS, TOKENS, ctx=Context(compute_dtype=jnp.bfloat16)).hidden
    assert low.dtype == jnp.bfloat16
    assert MODEL.unembed(PARAMS, low, ctx=Context(compute_dtype=jnp.bfloat16)).dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(low, np.float32), MODEL.apply(PARAMS, TOKENS).hidden, atol=0.1)


def test_a_model_is_static_hashes_and_pickles():
    assert pickle.loads(pickle.dumps(MODEL)) == MODEL and hash(MODEL) == hash(build("gpt", TINY))
    hidden = jax.jit(lambda model, params: model.apply(params, TOKENS).hidden)(MODEL, PARAMS)
    np.testing.assert_allclose(hidden, MODEL.apply(PARAMS, TOKENS).hidden, atol=1e-5)


def test_matmul_flops_are_those_of_the_compiled_program():
    model = build("gpt", {**TINY, "d_model": 256, "d_mlp": 1024, "head_dim": 128})
    params = nn.abstract(model.param_specs())

    def logits(params, tokens):
        layers = tuple(jax.tree.map(lambda p: p[i], params["layers"]) for i in range(model.config.num_layers))
        return model.unembed(params, model.apply({**params, "layers": layers}, tokens).hidden)

    counted = jax.jit(logits).lower(params, TOKENS).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(model.matmul_flops(TOKENS.size, TOKENS.shape[1]), rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layer": 2}, "unknown key 'num_layer' in the gpt config: did you mean 'num_layers'"),
        ({"num_heads": 0}, "num_heads of 1 or more"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\)"),
        ({"activation": "gelu_tan"}, "did you mean 'gelu_tanh'"),
        ({"window": 4, "num_layers": 3}, "even num_layers"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        build("gpt", {**TINY, **change})


def test_unknown_names_and_long_sequences_are_refused():
    with pytest.raises(InputError, match="did you mean 'gpt2-124m'"):
        preset("gpt2-124")
    with pytest.raises(InputError, match="unknown model family 'gtp': did you mean 'gpt'"):
        build("gtp", {})
    with pytest.raises(InputError, match="a sequence of 17 tokens is longer than this model's max_len of 16"):
        MODEL.apply(PARAMS, jnp.zeros((1, 17), jnp.int32))
