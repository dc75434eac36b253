import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models import build, llama, preset
from flaxllm.nn import Context, Taps
from models.support import Span, assert_near, loud, packed, padded, three

TINY = dict(
    vocab_size=50, max_len=16, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=6, d_model=16, d_mlp=24, rope_base=50.0
)
VARIANTS = {
    "llama": {},
    "llama3": dict(tied=True, rope_scaling="llama3", rope_factor=4.0, rope_original_len=16, head_dim=8),
    "yarn": dict(rope_scaling="yarn", rope_factor=2.0, rope_original_len=12, rope_fast_turns=2.0, head_dim=8),
    "linear": dict(rope_scaling="linear", rope_factor=2.0, mlp_bias=True, num_kv_heads=4),
    "mistral": dict(window=3, num_kv_heads=1),
    "qwen2": dict(attention_bias=True, window=4, windowed=(False, True), activation="gelu_tanh", tied=True),
    "qwen3": dict(head_norm=True, attention_bias=True, attention_out_bias=True, norm_eps=1e-2, head_dim=8),
}
MODELS = {variant: build("llama", {**TINY, **fields}) for variant, fields in VARIANTS.items()}
MODEL = MODELS["llama"]


PARAMS = {variant: loud(model) for variant, model in MODELS.items()}
APPLY = {variant: jax.jit(model.apply) for variant, model in MODELS.items()}
TOKENS = jax.random.randint(jax.random.PRNGKey(1), (2, 12), 0, 50)

# In millions, from the papers' tables and the models' cards: Touvron et al. 2023 (Llama 2), Grattafiori et al. 2024 and the
# cards of Llama 3 to 3.2, Jiang et al. 2023, Yang et al. 2024 and the cards of Qwen2 and Qwen2.5, Yang et al. 2025, the
# cards of SmolLM2. Where a card gives the number of the released tensors, that is it.
PUBLISHED = {
    "llama2-7b": 6_738, "llama2-13b": 13_016, "llama2-70b": 68_977, "llama3-8b": 8_030, "llama3-70b": 70_554,
    "llama3.1-8b": 8_030, "llama3.1-70b": 70_554, "llama3.1-405b": 405_854, "llama3.2-1b": 1_236, "llama3.2-3b": 3_213,
    "mistral-7b-v0.1": 7_242, "qwen2-0.5b": 494, "qwen2-1.5b": 1_544, "qwen2-7b": 7_616, "qwen2.5-3b": 3_086,
    "qwen3-0.6b": 600, "qwen3-1.7b": 1_700, "qwen3-4b": 4_000, "qwen3-8b": 8_200,
    "smollm2-135m": 135, "smollm2-360m": 362, "smollm2-1.7b": 1_711,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name):
    assert set(PUBLISHED) == set(llama.PRESETS)
    assert nn.count(preset(name).param_specs()) == pytest.approx(PUBLISHED[name] * 1e6, rel=0.02)


def angles_of(config: llama.Config, length: int) -> np.ndarray:
    """How far each pair has turned at each position, as the papers and the released code have it."""
    pairs = np.arange(config.head_dim // 2)
    speed = config.rope_base ** (-2 * pairs / config.head_dim)
    turns = config.rope_original_len * speed / (2 * math.pi)
    if config.rope_scaling == "linear":
        speed = speed / config.rope_factor
    elif config.rope_scaling == "llama3":
        kept = np.clip((turns - config.rope_slow_turns) / (config.rope_fast_turns - config.rope_slow_turns), 0, 1)
        speed = kept * speed + (1 - kept) * speed / config.rope_factor
    elif config.rope_scaling == "yarn":
        edges = [config.head_dim * math.log(config.rope_original_len / (2 * math.pi * n)) / (2 * math.log(config.rope_base))
                 for n in (config.rope_fast_turns, config.rope_slow_turns)]  # fmt: skip
        first, last = max(math.floor(edges[0]), 0), min(math.ceil(edges[1]), config.head_dim - 1)
        scaled = np.clip((pairs - first) / (last - first), 0, 1)
        speed = speed * (1 - scaled) + speed / config.rope_factor * scaled
    return np.arange(length)[:, None] * speed


def in_numpy(params: dict, config: llama.Config, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What the papers' formulas make of one document, `[length]`, in float64 and one head at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    length, half = len(tokens), config.head_dim // 2
    turned = np.exp(1j * angles_of(config, length))
    if config.rope_scaling == "yarn":
        turned = turned * (0.1 * math.log(config.rope_factor) + 1)
    back = np.arange(length)[:, None] - np.arange(length)

    def norm(p, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * p["scale"]

    def rotate(x):
        pairs = (x[:, :half] + 1j * x[:, half:]) * turned
        return np.concatenate([pairs.real, pairs.imag], -1)

    def head_of(p, h, head):
        return h @ p["kernel"][:, head] + (p["bias"][head] if "bias" in p else 0)

    def dense(p, h):
        return h @ p["kernel"] + p.get("bias", 0)

    gates = {"silu": lambda x: x / (1 + np.exp(-x)),
             "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))}  # fmt: skip
    x = params["embedding"]["tokens"][tokens]
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda p: p[i], params["layers"])
        seen = back >= 0
        if config.window is not None and config.windowed[i % len(config.windowed)]:
            seen = seen & (back < config.window)
        h, p = norm(layer["attention_norm"], x), layer["attention"]
        for head in range(config.num_heads):
            shared = head // (config.num_heads // config.num_kv_heads)
            q, k, v = head_of(p["query"], h, head), head_of(p["key"], h, shared), head_of(p["value"], h, shared)
            if config.head_norm:
                q, k = norm(p["query_norm"], q), norm(p["key_norm"], k)
            scores = np.where(seen, rotate(q) @ rotate(k).T / np.sqrt(config.head_dim), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            x = x + weights / weights.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][head]
        x = x + p["out"].get("bias", 0)
        h, p = norm(layer["mlp_norm"], x), layer["mlp"]
        x = x + dense(p["down"], gates[config.activation](dense(p["gate"], h)) * dense(p["up"], h))
    hidden = norm(params["final_norm"], x)
    table = params["embedding"]["tokens"] if config.tied else params["head"]["table"]
    return {"hidden": hidden, "logits": hidden @ table.T}


@pytest.mark.parametrize("variant", VARIANTS)
def test_hidden_states_and_logits_are_the_formulas_of_the_papers(variant):
    model, params = MODELS[variant], PARAMS[variant]
    hidden = APPLY[variant](params, TOKENS).hidden
    for row in range(2):
        expected = in_numpy(params, model.config, np.asarray(TOKENS[row]))
        assert_near(hidden[row], expected["hidden"])
        assert_near(model.unembed(params, hidden)[row], expected["logits"])


def check_documents(variant: str, spans: list[Span], inputs: dict[str, np.ndarray]) -> None:
    """Each document `(row, start, stop)` has the hidden states that it has alone."""
    hidden = APPLY[variant](PARAMS[variant], **inputs).hidden
    for row, start, stop in spans:
        assert_near(hidden[row, start:stop], in_numpy(PARAMS[variant], MODELS[variant].config, inputs["tokens"][row, start:stop])["hidden"])


@pytest.mark.parametrize("variant", ["llama", "qwen2"])
@settings(max_examples=6, deadline=None)
@given(sizes=three(st.integers(1, 12)), left=st.booleans(), seed=st.integers(0, 99))
def test_padding_and_the_order_of_rows_change_no_document(variant, sizes, left, seed):
    spans, valid = padded(sizes, 12, left)
    check_documents(variant, spans, {"tokens": np.random.default_rng(seed).integers(0, 50, (3, 12)), "valid": valid})


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("variant", ["llama", "qwen2"])
@settings(max_examples=6, deadline=None)
@given(cuts=three(st.sets(st.integers(1, 11), max_size=4)), seed=st.integers(0, 99))
def test_packing_changes_no_document_whether_positions_are_told_or_not(variant, told, cuts, seed):
    spans, segments, positions = packed(cuts, 12)
    inputs = {"tokens": np.random.default_rng(seed).integers(0, 50, (3, 12)), "segments": segments}
    check_documents(variant, spans, inputs | ({"positions": positions} if told else {}))


@pytest.mark.parametrize("variant", ["llama", "qwen2"])
def test_layers_as_a_tuple_give_the_same(variant):
    cut = nn.unstack(jax.tree.map(jnp.copy, PARAMS[variant]))
    whole, apart = (APPLY[variant](params, TOKENS).hidden for params in (PARAMS[variant], cut))
    assert_near(apart, np.asarray(whole))


def test_every_inner_value_can_be_tapped():
    names = {"embedding", "hidden"} | {
        f"layers/{name}"
        for name in ("in", "attention_norm", "attention/query", "attention/key", "attention/value", "attention/rotated_query",
                     "attention/rotated_key", "attention/scores", "attention/weights", "attention/mixed", "attention/out",
                     "middle", "mlp_norm", "mlp/gate", "mlp/up", "mlp/activation", "mlp/out", "out")
    }  # fmt: skip
    taps = MODEL.apply(PARAMS["llama"], TOKENS, ctx=Context(taps=Taps(returned=tuple(sorted(names))))).taps
    assert set(taps) == names
    assert taps["layers/attention/weights"].shape == (4, 2, 4, 12, 12)
    assert taps["layers/attention/rotated_key"].shape == (4, 2, 12, 2, 6)
    np.testing.assert_allclose(taps["layers/attention/weights"].sum(-1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(taps["layers/in"][1:], taps["layers/out"][:-1])
    np.testing.assert_allclose(taps["layers/middle"] + taps["layers/mlp/out"], taps["layers/out"], atol=1e-6)
    np.testing.assert_array_equal(taps["layers/attention/rotated_query"][:, :, 0], taps["layers/attention/query"][:, :, 0])
    gated = jax.nn.silu(taps["layers/mlp/gate"]) * taps["layers/mlp/up"]
    np.testing.assert_allclose(taps["layers/mlp/activation"], gated, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "shape"),
    [("sequence-classification", (2, 3)), ("token-classification", (2, 12, 3)), ("question-answering", (2, 12, 2))],
)
def test_each_head_gives_its_logits(head, shape):
    model = build("llama", {**TINY, "num_layers": 1, "labels": ("a", "b", "c")}, head)
    params = loud(model)
    output = jax.jit(model.apply)(params, TOKENS)
    assert output.logits.shape == shape
    assert ("bias" in params["head"]["out"]) == (head != "sequence-classification")
    with pytest.raises(InputError, match="no table for logits over the vocabulary: use the head 'causal-lm'"):
        model.unembed(params, output.hidden)


def test_a_tied_model_has_no_parameters_for_its_head():
    assert "head" not in MODELS["qwen2"].param_specs()
    assert nn.count(build("llama", TINY).param_specs()) - nn.count(build("llama", {**TINY, "tied": True}).param_specs()) == 800


def test_bfloat16_compute_keeps_float32_parameters_near():
    params = MODEL.init(jax.random.PRNGKey(0))
    low = APPLY["llama"](params, TOKENS, ctx=Context(compute_dtype=jnp.bfloat16)).hidden
    assert low.dtype == jnp.bfloat16
    assert MODEL.unembed(params, low, ctx=Context(compute_dtype=jnp.bfloat16)).dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(low, np.float32), APPLY["llama"](params, TOKENS).hidden, atol=0.1)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_it_lowers_for_other_devices(platform):
    def loss(params, tokens):
        return MODEL.unembed(params, MODEL.apply(params, tokens).hidden).sum()

    traced = jax.jit(jax.grad(loss)).trace(PARAMS["llama"], TOKENS)
    assert "stablehlo.dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_matmul_flops_are_those_of_the_compiled_program():
    model = build("llama", {**TINY, "d_model": 256, "d_mlp": 1024, "head_dim": 128, "activation": "relu"})
    params = nn.abstract(model.param_specs())

    def logits(params, tokens):
        layers = tuple(jax.tree.map(lambda p: p[i], params["layers"]) for i in range(model.config.num_layers))
        return model.unembed(params, model.apply({**params, "layers": layers}, tokens).hidden)

    counted = jax.jit(logits).lower(params, TOKENS).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(model.matmul_flops(TOKENS.size, TOKENS.shape[1]), rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 0}, "num_kv_heads of 1 or more, got 0"),
        ({"num_kv_heads": 3}, "4 query heads, which 3 key heads cannot share"),
        ({"head_dim": 5}, "even head_dim, whose pairs rotate; got 5"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\), got 1.0"),
        ({"activation": "swish"}, "unknown activation 'swish': expected one of"),
        ({"rope_scaling": "lama3"}, "unknown rope_scaling 'lama3': did you mean 'llama3'"),
        ({"rope_base": 1.0}, "rope_base above 1 and a rope_factor above 0, got 1.0 and 1.0"),
        ({"rope_factor": 0.0}, "rope_factor above 0, got 50.0 and 0.0"),
        ({"rope_slow_turns": 4.0}, "0 < rope_slow_turns < rope_fast_turns, got 4.0 and 4.0"),
        ({"window": 0}, "window of 1 or more, or None; got 0"),
        ({"windowed": (True, False, True)}, "4 layers, among which the 3 entries of windowed cannot take turns"),
        ({"windowed": ()}, "4 layers, among which the 0 entries"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        build("llama", {**TINY, **change})
