import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models import build, preset, transformer
from flaxllm.nn import Context, Taps
from models.support import Span, assert_near, loud, packed, padded, three

TINY = dict(vocab_size=40, num_layers=2, num_decoder_layers=3, num_heads=2, head_dim=6, d_model=16, d_mlp=20, norm_eps=1e-5)
MARIAN = dict(
    source_vocab_size=30, num_decoder_heads=4, d_decoder_mlp=28, activation="silu", attention_bias=True, output_bias=True,
    scale_embedding=False, interleaved_positions=False, tied=False, pad_token=39,
)  # fmt: skip
MODELS = {"paper": build("transformer", TINY), "marian": build("transformer", {**TINY, **MARIAN})}
MODEL = MODELS["paper"]
SOURCE, TARGET = 12, 9


PARAMS = {name: loud(model) for name, model in MODELS.items()}
TOKENS = jax.random.randint(jax.random.PRNGKey(1), (2, SOURCE), 0, 30)
TARGETS = jax.random.randint(jax.random.PRNGKey(2), (2, TARGET), 0, 40)
APPLY = {name: jax.jit(model.apply) for name, model in MODELS.items()}


def test_presets_have_the_published_number_of_parameters():
    """Vaswani et al. 2017, table 3; Wu et al. 2021, table 2. The table's 65 million of the base model are 3% more than its
    own sizes make, counted here by hand: three attentions and two mlps of the widths 512 and 2048 in six pairs of layers."""
    base = 37000 * 512 + 6 * (3 * 4 * 512**2 + 2 * (2 * 512 * 2048 + 2048 + 512) + 5 * 2 * 512)
    published = {"transformer-base": base, "transformer-big": 213e6, "transformer-tiny": 2.6e6}
    assert {name: nn.count(preset(name).param_specs()) for name in transformer.PRESETS} == pytest.approx(published, rel=0.01)


def in_numpy(params: dict, config: transformer.Config, tokens: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """What the paper's formulas make of one source and one target, in float64 and one head at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    width = config.d_model

    def embed(table, ids):
        x = table[ids] * (np.sqrt(width) if config.scale_embedding else 1)
        for place, i in np.ndindex(len(ids), width // 2):
            angle = place / 10000 ** (2 * i / width)
            sine, cosine = (2 * i, 2 * i + 1) if config.interleaved_positions else (i, width // 2 + i)
            x[place, sine] += np.sin(angle)
            x[place, cosine] += np.cos(angle)
        return x

    def norm(p, x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps) * p["scale"] + p["bias"]

    def attention(p, x, memory, num_heads, seen=True):
        def project(name, of, head):
            return of @ p[name]["kernel"][:, head] + (p[name]["bias"][head] if config.attention_bias else 0)

        out = p["out"]["bias"] if config.attention_bias else 0
        for head in range(num_heads):
            q, k, v = project("query", x, head), project("key", memory, head), project("value", memory, head)
            scores = np.where(seen, q @ k.T / np.sqrt(q.shape[-1]), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out = out + weights / weights.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][head]
        return out

    def mlp(p, x):
        up = x @ p["up"]["kernel"] + p["up"]["bias"]
        up = np.maximum(up, 0) if config.activation == "relu" else up / (1 + np.exp(-up))
        return up @ p["down"]["kernel"] + p["down"]["bias"]

    def stack(p, x, depth, num_heads, memory=None):
        seen = True if memory is None else np.tril(np.ones((len(x), len(x)), bool))
        for i in range(depth):
            layer = jax.tree.map(lambda leaf: leaf[i], p["layers"])
            x = norm(layer["attention_norm"], x + attention(layer["attention"], x, x, num_heads, seen))
            if memory is not None:
                x = norm(layer["cross_attention_norm"], x + attention(layer["cross_attention"], x, memory, num_heads))
            x = norm(layer["mlp_norm"], x + mlp(layer["mlp"], x))
        return x

    table = params["embedding"]["tokens"]
    source_table = params["embedding"].get("source_tokens", table)
    encoded = stack(params["encoder"], embed(source_table, tokens), config.num_layers, config.num_heads)
    heads = config.num_decoder_heads or config.num_heads
    hidden = stack(params["decoder"], embed(table, targets), config.num_decoder_layers, heads, encoded)
    head = params.get("head", {})
    return {"encoded": encoded, "hidden": hidden, "logits": hidden @ head.get("table", table).T + head.get("bias", 0)}


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_and_logits_are_the_formulas_of_the_paper(name):
    model, params = MODELS[name], PARAMS[name]
    output = APPLY[name](params, TOKENS, TARGETS)
    for row in range(2):
        expected = in_numpy(params, model.config, np.asarray(TOKENS[row]), np.asarray(TARGETS[row]))
        assert_near(output.encoded[row], expected["encoded"])
        assert_near(output.hidden[row], expected["hidden"])
        assert_near(model.unembed(params, output.hidden)[row], expected["logits"])


def check_documents(name: str, sources: list[Span], targets: list[Span], inputs: dict[str, np.ndarray]) -> None:
    """Each document has the hidden states that it has alone."""
    output = APPLY[name](PARAMS[name], **inputs)
    for (row, start, stop), (_, begin, end) in zip(sources, targets, strict=True):
        source, target = inputs["tokens"][row, start:stop], inputs["decoder_tokens"][row, begin:end]
        alone = in_numpy(PARAMS[name], MODELS[name].config, source, target)
        assert_near(output.encoded[row, start:stop], alone["encoded"])
        assert_near(output.hidden[row, begin:end], alone["hidden"])


def random_tokens(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"tokens": rng.integers(0, 30, (3, SOURCE)), "decoder_tokens": rng.integers(0, 40, (3, TARGET))}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6, deadline=None)
@given(
    sizes=three(st.integers(1, SOURCE)),
    target_sizes=three(st.integers(1, TARGET)),
    left=st.booleans(),
    target_left=st.booleans(),
    seed=st.integers(0, 99),
)
def test_padding_and_the_order_of_rows_change_no_document(name, sizes, target_sizes, left, target_left, seed):
    sources, valid = padded(sizes, SOURCE, left)
    targets, decoder_valid = padded(target_sizes, TARGET, target_left)
    check_documents(name, sources, targets, random_tokens(seed) | {"valid": valid, "decoder_valid": decoder_valid})


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6, deadline=None)
@given(cuts=three(st.integers(1, SOURCE - 1)), target_cuts=three(st.integers(1, TARGET - 1)), seed=st.integers(0, 99))
def test_packing_changes_no_document(name, cuts, target_cuts, seed):
    sources, segments, positions = packed([{cut} for cut in cuts], SOURCE)
    targets, decoder_segments, decoder_positions = packed([{cut} for cut in target_cuts], TARGET)
    inputs = random_tokens(seed) | dict(segments=segments, decoder_segments=decoder_segments)
    check_documents(name, sources, targets, inputs | dict(positions=positions, decoder_positions=decoder_positions))


def test_a_later_target_changes_nothing_before_it():
    same = APPLY["paper"](PARAMS["paper"], TOKENS, TARGETS).hidden
    changed = APPLY["paper"](PARAMS["paper"], TOKENS, TARGETS.at[:, 5].set(39)).hidden
    np.testing.assert_array_equal(changed[:, :5], same[:, :5])
    assert (jnp.abs(changed[:, 5:] - same[:, 5:]).max(-1) > 1e-4).all()


def test_encode_and_decode_are_the_halves_of_apply():
    params, whole = PARAMS["paper"], APPLY["paper"](PARAMS["paper"], TOKENS, TARGETS)
    encode, decode = (jax.jit(half, static_argnums=1) for half in (transformer.encode, transformer.decode))
    encoded = encode(params, MODEL.config, TOKENS)
    assert_near(encoded, np.asarray(whole.encoded))
    assert_near(decode(params, MODEL.config, TARGETS, encoded), np.asarray(whole.hidden))
    taps = Taps(functions=(("decoder/layers/cross_attention/weights", lambda layer, weights: 0.0 * weights),))
    without_source = decode(params, MODEL.config, TARGETS, encoded, ctx=Context(taps=taps))
    assert jnp.abs(without_source - whole.hidden).max() > 0.1


def test_layers_as_tuples_give_the_same():
    cut = nn.unstack(jax.tree.map(jnp.copy, PARAMS["marian"]))
    assert isinstance(cut["encoder"]["layers"], tuple) and len(cut["decoder"]["layers"]) == 3
    assert_near(APPLY["marian"](cut, TOKENS, TARGETS).hidden, np.asarray(APPLY["marian"](PARAMS["marian"], TOKENS, TARGETS).hidden))


def test_every_inner_value_can_be_tapped():
    attention = ("query", "key", "value", "scores", "weights", "mixed", "out")
    layer = ["in", *(f"attention/{name}" for name in attention), "middle", "mlp/up", "mlp/activation", "mlp/out", "out"]
    crossing = [*(f"cross_attention/{name}" for name in attention), "crossed"]
    names = {f"{stack}/{name}" for stack in ("encoder", "decoder") for name in ("embedding", "hidden")}
    names |= {f"encoder/layers/{name}" for name in layer} | {f"decoder/layers/{name}" for name in layer + crossing}
    output = APPLY["paper"](PARAMS["paper"], TOKENS, TARGETS, ctx=Context(taps=Taps(returned=tuple(sorted(names)))))
    taps = output.taps
    assert set(taps) == names
    assert taps["encoder/layers/attention/weights"].shape == (2, 2, 2, SOURCE, SOURCE)
    assert taps["decoder/layers/cross_attention/weights"].shape == (3, 2, 2, TARGET, SOURCE)
    np.testing.assert_allclose(taps["decoder/layers/cross_attention/weights"].sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(taps["decoder/layers/in"][1:], taps["decoder/layers/out"][:-1])
    np.testing.assert_array_equal(taps["encoder/hidden"], output.encoded)
    np.testing.assert_array_equal(taps["decoder/layers/out"][-1], output.hidden)


def test_looking_padding_up_trains_nothing():
    """As in Marian's models: the row of the padding token, with which a target begins, has no gradient from there."""

    def total(params, targets):
        return MODELS["marian"].apply(params, TOKENS, targets).hidden[..., 0].sum()

    gradient = jax.jit(jax.grad(total))(PARAMS["marian"], TARGETS.at[:, 0].set(39).at[:, 1].set(5))["embedding"]["tokens"]
    assert not gradient[39].any() and gradient[5].any()


def test_dropout_acts_only_with_a_key_and_where_the_paper_says(monkeypatch):
    """Vaswani et al. 2017, section 5.4: on the output of each sub-layer and on the sums of embeddings and positions; Marian's
    may drop attention weights and activations too."""
    kept = []
    original = jax.random.bernoulli
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, rate, shape: kept.append(rate) or original(key, rate, shape))
    model = build("transformer", {**TINY, "dropout": 0.125, "attention_dropout": 0.25, "activation_dropout": 0.5})
    jax.eval_shape(lambda p: model.apply(p, TOKENS, TARGETS).hidden, PARAMS["paper"])
    assert kept == []
    ctx = Context(dropout_key=jax.random.PRNGKey(0))
    jax.eval_shape(lambda p: model.apply(p, TOKENS, TARGETS, ctx=ctx).hidden, PARAMS["paper"])
    assert sorted(kept) == [0.5] * 2 + [0.75] * 3 + [0.875] * 7


def test_bfloat16_compute_keeps_float32_parameters_near():
    ctx = Context(compute_dtype=jnp.bfloat16)
    low = APPLY["paper"](PARAMS["paper"], TOKENS, TARGETS, ctx=ctx).hidden
    assert low.dtype == jnp.bfloat16
    assert MODEL.unembed(PARAMS["paper"], low, ctx=ctx).dtype == jnp.float32
    high = APPLY["paper"](PARAMS["paper"], TOKENS, TARGETS).hidden
    assert jnp.abs(low - high).mean() < 0.05 * jnp.abs(high).mean()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_gradient_lowers_for_accelerators(platform):
    def loss(params):
        return MODEL.unembed(params, MODEL.apply(params, TOKENS, TARGETS).hidden).sum()

    traced = jax.jit(jax.grad(loss)).trace(nn.abstract(MODEL.param_specs()))
    assert "stablehlo.dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_matmul_flops_are_those_of_the_compiled_program():
    sizes = dict(d_model=256, d_mlp=1024, head_dim=128, num_decoder_heads=4, d_decoder_mlp=512)
    model = build("transformer", {**TINY, **sizes})
    params = nn.abstract(model.param_specs())

    def layers(stack, depth):
        return {"layers": tuple(jax.tree.map(lambda p: p[i], stack["layers"]) for i in range(depth))}

    def logits(params, tokens):
        cut = {"encoder": layers(params["encoder"], 2), "decoder": layers(params["decoder"], 3)}
        return model.unembed(params, model.apply(params | cut, tokens, tokens).hidden)

    counted = jax.jit(logits).lower(params, TOKENS).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(model.matmul_flops(TOKENS.size, TOKENS.shape[1]), rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_decoder_layer": 2}, "'num_decoder_layer' in the transformer config: did you mean 'num_decoder_layers'"),
        ({"num_decoder_layers": 0}, "num_decoder_layers of 1 or more, got 0"),
        ({"source_vocab_size": 0}, "source_vocab_size of 1 or more"),
        ({"d_mlp": 0}, "d_mlp of 1 or more"),
        ({"activation_dropout": 1.0}, r"activation_dropout in \[0, 1\)"),
        ({"activation": "rellu"}, "did you mean 'relu'"),
        ({"d_model": 15}, "an even d_model for sines and cosines, got 15"),
        ({"num_decoder_heads": 5}, "5 decoder heads, which do not divide the width of the encoder's, 2 of 6"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        build("transformer", {**TINY, **change})


def test_missing_targets_and_heads_are_refused():
    with pytest.raises(InputError, match="needs decoder_tokens beside the tokens"):
        MODEL.apply(PARAMS["paper"], TOKENS)
    with pytest.raises(InputError, match="no head 'causal-lm'"):
        build("transformer", TINY, "causal-lm")
    with pytest.raises(InputError, match="no table for logits over the vocabulary: use the head 'seq2seq-lm'"):
        base = build("transformer", {**TINY, **MARIAN}, None)
        base.unembed(base.init(jax.random.PRNGKey(0)), jnp.zeros((1, 16)))
