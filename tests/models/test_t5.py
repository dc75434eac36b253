import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models import build, preset, t5
from flaxllm.nn import Context, Taps
from models.support import Span, assert_near, loud, packed, padded, three

TINY = dict(
    vocab_size=40, num_layers=2, num_decoder_layers=3, num_heads=2, head_dim=6, d_model=16, d_mlp=20, num_buckets=8,
    max_distance=9,
)  # fmt: skip
V1_1 = dict(activation="gelu_tanh", gated=True, tied=False, scale_output=False)
MODELS = {"1.0": build("t5", TINY), "1.1": build("t5", {**TINY, **V1_1})}
MODEL = MODELS["1.0"]
SOURCE, TARGET = 12, 9
END = MODEL.config.eos_token




def soft(params: dict) -> dict:
    """With smaller queries: T5 does not scale its scores, and a softmax of great ones magnifies every rounding."""
    return nn.unflatten({path: 0.5 * x if "/query/" in path else x for path, x in nn.flatten(params).items()})


PARAMS = {version: soft(loud(model)) for version, model in MODELS.items()}
TOKENS = jax.random.randint(jax.random.PRNGKey(1), (2, SOURCE), 2, 40)
TARGETS = jax.random.randint(jax.random.PRNGKey(2), (2, TARGET), 2, 40)
APPLY = {version: jax.jit(model.apply) for version, model in MODELS.items()}

# The tensors of the released checkpoints, counted.
PUBLISHED = {
    "t5-small": 60_506_624, "t5-base": 222_903_552, "t5-large": 737_668_096, "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344, "t5-v1.1-small": 76_961_152, "t5-v1.1-base": 247_577_856, "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184, "t5-v1.1-xxl": 11_135_332_352, "mt5-small": 300_176_768, "mt5-base": 582_401_280,
    "mt5-large": 1_229_581_312, "mt5-xl": 3_742_619_648, "mt5-xxl": 12_921_057_280,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name):
    assert set(PUBLISHED) == set(t5.PRESETS)
    assert nn.count(preset(name).param_specs()) == PUBLISHED[name]


def bias_of_distances(table: np.ndarray, length: int, bidirectional: bool, max_distance: int) -> np.ndarray:
    """`[query, key, head]`: Raffel et al. 2020, section 2.1."""
    bias = np.zeros((length, length, table.shape[1]))
    for query, key in np.ndindex(length, length):
        buckets = len(table) // 2 if bidirectional else len(table)
        distance = abs(key - query) if bidirectional else max(query - key, 0)
        exact = buckets // 2
        bucket = distance
        if distance >= exact:
            far = np.log(distance / exact) / np.log(max_distance / exact) * (buckets - exact)
            bucket = min(exact + int(far), buckets - 1)
        bias[query, key] = table[bucket + buckets * (bidirectional and key > query)]
    return bias


def in_numpy(params: dict, config: t5.Config, tokens: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """What the formulas make of one source and one target, in float64 and one head at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(p, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * p["scale"]

    def attention(p, x, memory, bias=0.0, seen=True):
        out = 0.0
        for head in range(config.num_heads):
            q, k, v = (of @ p[n]["kernel"][:, head] for n, of in (("query", x), ("key", memory), ("value", memory)))
            scores = np.where(seen, q @ k.T + (bias if np.isscalar(bias) else bias[..., head]), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out = out + weights / weights.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][head]
        return out

    def mlp(p, x):
        if not config.gated:
            return np.maximum(x @ p["up"]["kernel"], 0) @ p["down"]["kernel"]
        gate = x @ p["gate"]["kernel"]
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        return gate * (x @ p["up"]["kernel"]) @ p["down"]["kernel"]

    def stack(p, ids, depth, memory=None):
        x, length = params["embedding"]["tokens"][ids], len(ids)
        bias = bias_of_distances(p["relative_bias"], length, memory is None, config.max_distance)
        seen = True if memory is None else np.tril(np.ones((length, length), bool))
        for i in range(depth):
            layer = jax.tree.map(lambda leaf: leaf[i], p["layers"])
            h = norm(layer["attention_norm"], x)
            x = x + attention(layer["attention"], h, h, bias, seen)
            if memory is not None:
                x = x + attention(layer["cross_attention"], norm(layer["cross_attention_norm"], x), memory)
            x = x + mlp(layer["mlp"], norm(layer["mlp_norm"], x))
        return norm(p["final_norm"], x)

    encoded = stack(params["encoder"], tokens, config.num_layers)
    hidden = stack(params["decoder"], targets, config.num_decoder_layers, encoded)
    table = params["embedding"]["tokens"] / np.sqrt(config.d_model) if config.tied else params["head"]["table"]
    return {"encoded": encoded, "hidden": hidden, "logits": hidden @ table.T}


@pytest.mark.parametrize("version", MODELS)
def test_hidden_states_and_logits_are_the_formulas_of_the_papers(version):
    model, params = MODELS[version], PARAMS[version]
    output = APPLY[version](params, TOKENS, TARGETS)
    for row in range(2):
        expected = in_numpy(params, model.config, np.asarray(TOKENS[row]), np.asarray(TARGETS[row]))
        assert_near(output.encoded[row], expected["encoded"])
        assert_near(output.hidden[row], expected["hidden"])
        assert_near(model.unembed(params, output.hidden)[row], expected["logits"])


def check_documents(version: str, sources: list[Span], targets: list[Span], inputs: dict[str, np.ndarray]) -> None:
    """Each document has the hidden states that it has alone."""
    output = APPLY[version](PARAMS[version], **inputs)
    for (row, start, stop), (_, begin, end) in zip(sources, targets, strict=True):
        source, target = inputs["tokens"][row, start:stop], inputs["decoder_tokens"][row, begin:end]
        alone = in_numpy(PARAMS[version], MODELS[version].config, source, target)
        assert_near(output.encoded[row, start:stop], alone["encoded"])
        assert_near(output.hidden[row, begin:end], alone["hidden"])


def random_tokens(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"tokens": rng.integers(0, 40, (3, SOURCE)), "decoder_tokens": rng.integers(0, 40, (3, TARGET))}


@pytest.mark.parametrize("version", MODELS)
@settings(max_examples=6, deadline=None)
@given(
    sizes=three(st.integers(1, SOURCE)),
    target_sizes=three(st.integers(1, TARGET)),
    left=st.booleans(),
    target_left=st.booleans(),
    seed=st.integers(0, 99),
)
def test_padding_and_the_order_of_rows_change_no_document(version, sizes, target_sizes, left, target_left, seed):
    sources, valid = padded(sizes, SOURCE, left)
    targets, decoder_valid = padded(target_sizes, TARGET, target_left)
    check_documents(version, sources, targets, random_tokens(seed) | {"valid": valid, "decoder_valid": decoder_valid})


@pytest.mark.parametrize("version", MODELS)
@settings(max_examples=6, deadline=None)
@given(cuts=three(st.integers(1, SOURCE - 1)), target_cuts=three(st.integers(1, TARGET - 1)), seed=st.integers(0, 99))
def test_packing_changes_no_document(version, cuts, target_cuts, seed):
    sources, segments, positions = packed([{cut} for cut in cuts], SOURCE)
    targets, decoder_segments, decoder_positions = packed([{cut} for cut in target_cuts], TARGET)
    inputs = random_tokens(seed) | dict(segments=segments, decoder_segments=decoder_segments)
    check_documents(version, sources, targets, inputs | dict(positions=positions, decoder_positions=decoder_positions))


def test_packing_needs_no_positions():
    """Within a document the distances of places are those of positions."""
    sources, segments, _ = packed([{5}, {7}, {3}], SOURCE)
    targets, decoder_segments, _ = packed([{4}, {2}, {6}], TARGET)
    check_documents("1.0", sources, targets, random_tokens(0) | dict(segments=segments, decoder_segments=decoder_segments))


def test_a_later_target_changes_nothing_before_it():
    same = APPLY["1.0"](PARAMS["1.0"], TOKENS, TARGETS).hidden
    changed = APPLY["1.0"](PARAMS["1.0"], TOKENS, TARGETS.at[:, 5].set(39)).hidden
    np.testing.assert_array_equal(changed[:, :5], same[:, :5])
    assert (jnp.abs(changed[:, 5:] - same[:, 5:]).max(-1) > 1e-4).all()


def test_encode_and_decode_are_the_halves_of_apply():
    params, whole = PARAMS["1.0"], APPLY["1.0"](PARAMS["1.0"], TOKENS, TARGETS)
    encode, decode = (jax.jit(half, static_argnums=1) for half in (t5.encode, t5.decode))
    encoded = encode(params, MODEL.config, TOKENS)
    assert_near(encoded, np.asarray(whole.encoded))
    assert_near(decode(params, MODEL.config, TARGETS, encoded), np.asarray(whole.hidden))
    taps = Taps(functions=(("decoder/layers/cross_attention/weights", lambda layer, weights: 0.0 * weights),))
    without_source = decode(params, MODEL.config, TARGETS, encoded, ctx=Context(taps=taps))
    assert jnp.abs(without_source - whole.hidden).max() > 0.1


def test_layers_as_tuples_give_the_same():
    cut = nn.unstack(jax.tree.map(jnp.copy, PARAMS["1.1"]))
    assert isinstance(cut["encoder"]["layers"], tuple) and len(cut["decoder"]["layers"]) == 3
    assert_near(APPLY["1.1"](cut, TOKENS, TARGETS).hidden, np.asarray(APPLY["1.1"](PARAMS["1.1"], TOKENS, TARGETS).hidden))


def test_every_inner_value_can_be_tapped():
    attention = ("query", "key", "value", "scores", "weights", "mixed", "out")
    layer = ["in", "attention_norm", *(f"attention/{name}" for name in attention), "middle", "mlp_norm", "mlp/up", "mlp/gate",
             "mlp/activation", "mlp/out", "out"]  # fmt: skip
    crossing = ["cross_attention_norm", *(f"cross_attention/{name}" for name in attention), "crossed"]
    names = {f"{stack}/{name}" for stack in ("encoder", "decoder") for name in ("embedding", "relative_bias", "hidden")}
    names |= {f"encoder/layers/{name}" for name in layer} | {f"decoder/layers/{name}" for name in layer + crossing}
    ctx = Context(taps=Taps(returned=tuple(sorted(names))))
    output = APPLY["1.1"](PARAMS["1.1"], TOKENS, TARGETS, ctx=ctx)
    taps = output.taps
    assert set(taps) == names
    assert taps["encoder/layers/attention/weights"].shape == (2, 2, 2, SOURCE, SOURCE)
    assert taps["decoder/layers/cross_attention/weights"].shape == (3, 2, 2, TARGET, SOURCE)
    np.testing.assert_allclose(taps["decoder/layers/cross_attention/weights"].sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(taps["decoder/layers/in"][1:], taps["decoder/layers/out"][:-1])
    crossed = taps["decoder/layers/middle"] + taps["decoder/layers/cross_attention/out"]
    np.testing.assert_allclose(crossed, taps["decoder/layers/crossed"], atol=1e-5)
    np.testing.assert_array_equal(taps["encoder/hidden"], output.encoded)
    with pytest.raises(InputError, match="did you mean 'decoder/layers/crossed'"):
        MODEL.apply(PARAMS["1.0"], TOKENS, TARGETS, ctx=Context(taps=Taps(returned=("decoder/layers/crosed",))))


LABELS = ("sad", "glad", "mad")


@pytest.fixture(scope="module")
def classifier() -> tuple:
    model = build("t5", {**TINY, "labels": LABELS}, "sequence-classification")
    return model, loud(model)


@pytest.mark.parametrize("left", [False, True])
def test_a_sequence_is_classified_by_what_the_decoder_makes_of_its_last_end_of_text(classifier, left):
    """The decoder reads the source one place late, after the start token: Lewis et al. 2020, section 3.2, for T5."""
    model, params = classifier
    sources, valid = padded([12, 7, 9], SOURCE, left)
    tokens = np.array(jax.random.randint(jax.random.PRNGKey(3), (3, SOURCE), 2, 40))
    ends = {0: 11, 1: 6, 2: 4}  # the third goes on after its end
    for row, start, _ in sources:
        tokens[row, start + ends[row]] = END
    tokens[0, 3] = END  # not the last
    output = jax.jit(model.apply)(params, jnp.asarray(tokens), valid=jnp.asarray(valid))
    for row, start, stop in sources:
        source = tokens[row, start:stop]
        shifted = np.array([model.config.decoder_start_token, *source[:-1]])
        pooled = in_numpy(params, model.config, source, shifted)["hidden"][ends[row]]
        assert_near(output.pooled[row], pooled)
        head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["head"])
        inner = np.tanh(pooled @ head["inner"]["kernel"] + head["inner"]["bias"])
        assert_near(output.logits[row], inner @ head["out"]["kernel"] + head["out"]["bias"])


def test_a_source_without_an_end_is_classified_at_its_last_token():
    tokens, valid = jnp.full((2, 6), 7), jnp.array([[True] * 4 + [False] * 2, [False] * 3 + [True] * 3])
    np.testing.assert_array_equal(t5.last_ends(tokens, END, valid), [3, 5])
    np.testing.assert_array_equal(t5.last_ends(tokens, None, None), [5, 5])
    np.testing.assert_array_equal(t5.last_ends(tokens.at[0, 1].set(3).at[0, 2].set(9), (9, 3), valid), [2, 5])


def test_token_classification_reads_an_encoder_alone():
    model = build("t5", {**TINY, "labels": LABELS}, "token-classification")
    params = loud(model)
    assert "decoder" not in params
    output = model.apply(params, TOKENS)
    expected = in_numpy(params | {"decoder": PARAMS["1.0"]["decoder"]}, model.config, np.asarray(TOKENS[0]), np.zeros(1, int))
    assert_near(output.hidden[0], expected["encoded"])
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["head"]["out"])
    assert_near(output.logits[0], expected["encoded"] @ head["kernel"] + head["bias"])


def test_dropout_acts_only_with_a_key_and_everywhere_the_paper_says(monkeypatch):
    """Raffel et al. 2020, section 3.1.2: at the input and output of a stack, on its skip connections and attention weights, in
    the mlp."""
    kept = []
    original = jax.random.bernoulli
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, rate, shape: kept.append(rate) or original(key, rate, shape))
    model = build("t5", {**TINY, "dropout": 0.25, "attention_dropout": 0.5})
    jax.eval_shape(lambda p: model.apply(p, TOKENS, TARGETS).hidden, PARAMS["1.0"])
    assert kept == []
    ctx = Context(dropout_key=jax.random.PRNGKey(0))
    jax.eval_shape(lambda p: model.apply(p, TOKENS, TARGETS, ctx=ctx).hidden, PARAMS["1.0"])
    assert sorted(kept) == [0.5] * 3 + [0.75] * 11


@pytest.mark.parametrize("version", MODELS)
def test_initial_values_let_a_deep_model_start(version):
    """Logits of a deviation near 1, and scores too, though they are not scaled."""
    sizes = dict(num_layers=1, num_decoder_layers=1, vocab_size=500, d_model=64, d_mlp=128, num_heads=4, head_dim=16)
    model = build("t5", {**vars(MODELS[version].config), **sizes})
    tokens = jax.random.randint(jax.random.PRNGKey(1), (2, 64), 0, 500)
    ctx = Context(taps=Taps(returned=("encoder/layers/attention/scores",)))

    @jax.jit
    def start(key):
        params = model.init(key)
        output = model.apply(params, tokens, tokens, ctx=ctx)
        return output.taps["encoder/layers/attention/scores"], model.unembed(params, output.hidden)

    for values in start(jax.random.PRNGKey(0)):
        assert 0.5 < values.std() < 2.0


def test_bfloat16_compute_keeps_float32_parameters_near():
    ctx = Context(compute_dtype=jnp.bfloat16)
    low = APPLY["1.0"](PARAMS["1.0"], TOKENS, TARGETS, ctx=ctx).hidden
    assert low.dtype == jnp.bfloat16
    assert MODEL.unembed(PARAMS["1.0"], low, ctx=ctx).dtype == jnp.float32
    high = APPLY["1.0"](PARAMS["1.0"], TOKENS, TARGETS).hidden
    assert jnp.abs(low - high).mean() < 0.05 * jnp.abs(high).mean()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_gradient_lowers_for_accelerators(platform):
    def loss(params):
        return MODEL.unembed(params, MODEL.apply(params, TOKENS, TARGETS).hidden).sum()

    traced = jax.jit(jax.grad(loss)).trace(nn.abstract(MODEL.param_specs()))
    assert "stablehlo.dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("version", MODELS)
def test_matmul_flops_are_those_of_the_compiled_program(version):
    model = build("t5", {**vars(MODELS[version].config), "d_model": 256, "d_mlp": 1024, "head_dim": 128})
    params = nn.abstract(model.param_specs())

    def layers(stack, depth):
        return {**stack, "layers": tuple(jax.tree.map(lambda p: p[i], stack["layers"]) for i in range(depth))}

    def logits(params, tokens):
        cut = {"encoder": layers(params["encoder"], 2), "decoder": layers(params["decoder"], 3)}
        return model.unembed(params, model.apply(params | cut, tokens, tokens).hidden)

    counted = jax.jit(logits).lower(params, TOKENS).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(model.matmul_flops(TOKENS.size, TOKENS.shape[1]), rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_decoder_layer": 2}, "unknown key 'num_decoder_layer' in the t5 config: did you mean 'num_decoder_layers'"),
        ({"num_decoder_layers": 0}, "num_decoder_layers of 1 or more, got 0"),
        ({"d_mlp": 0}, "d_mlp of 1 or more"),
        ({"classifier_dropout": 1.0}, r"classifier_dropout in \[0, 1\)"),
        ({"activation": "rellu"}, "did you mean 'relu'"),
        ({"num_buckets": 2}, "num_buckets of 4 or more"),
        ({"num_buckets": 32, "max_distance": 16}, "32 buckets up to 16"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        build("t5", {**TINY, **change})


def test_missing_targets_and_heads_are_refused(classifier):
    model, params = classifier
    with pytest.raises(InputError, match="needs positions beside the segments"):
        model.apply(params, TOKENS, segments=jnp.ones_like(TOKENS))
    with pytest.raises(InputError, match="leave decoder_tokens out where t5 has this head"):
        model.apply(params, TOKENS, TARGETS)
    with pytest.raises(InputError, match="needs decoder_tokens beside the tokens"):
        MODEL.apply(PARAMS["1.0"], TOKENS)
    with pytest.raises(InputError, match="an encoder alone: leave decoder_tokens out"):
        encoder = {name: PARAMS["1.0"][name] for name in ("embedding", "encoder")}
        build("t5", TINY, "encoder").apply(encoder, TOKENS, TARGETS)
    with pytest.raises(InputError, match="no table for logits over the vocabulary: use the head 'seq2seq-lm'"):
        base = build("t5", {**TINY, **V1_1}, None)
        base.unembed(base.init(jax.random.PRNGKey(0)), jnp.zeros((1, 16)))
