import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models import bert, build, preset
from flaxllm.nn import Context, Taps
from models.support import Span, assert_near, loud, packed, padded, three

TINY = dict(vocab_size=50, max_len=16, num_layers=3, num_heads=2, head_dim=8, d_model=16, d_mlp=24, norm_eps=1e-5)
VARIANTS = {
    "bert": {},
    "roberta": dict(position_offset=2, num_token_types=1, pooler=False, pad_token=1, transform_activation="relu"),
    "distilbert": dict(num_token_types=0, pooler=False, activation="relu"),
}
MODELS = {variant: build("bert", {**TINY, "variant": variant, **fields}) for variant, fields in VARIANTS.items()}
MODEL = MODELS["bert"]


PARAMS = {variant: loud(model) for variant, model in MODELS.items()}
APPLY = {variant: jax.jit(model.apply) for variant, model in MODELS.items()}
TOKENS = jax.random.randint(jax.random.PRNGKey(1), (2, 12), 5, 50)

# Devlin et al. 2019, section 3; the released RoBERTa models' table; Sanh et al. 2019, table 3: in millions.
PUBLISHED = {"bert-base": 110, "bert-large": 340, "roberta-base": 125, "roberta-large": 355, "distilbert-base": 66}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(name):
    assert set(PUBLISHED) == set(bert.PRESETS)
    assert nn.count(preset(name).param_specs()) == pytest.approx(PUBLISHED[name] * 1e6, rel=0.02)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def in_numpy(params: dict, config: bert.Config, tokens: np.ndarray, types: np.ndarray | int = 0) -> dict[str, np.ndarray]:
    """What the papers' formulas make of one document, `[length]`, in float64 and one head at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    activation = {"gelu": gelu, "relu": lambda x: np.maximum(x, 0)}

    def norm(p, x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps) * p["scale"] + p["bias"]

    def dense(p, x):
        return x @ p["kernel"] + p["bias"]

    table = params["embedding"]
    x = table["tokens"][tokens] + table["positions"][config.position_offset :][: len(tokens)]
    if config.num_token_types:
        x = x + table["token_types"][types]
    x = norm(table["norm"], x)
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda p: p[i], params["layers"])
        p, attended = layer["attention"], layer["attention"]["out"]["bias"]
        for head in range(config.num_heads):
            q, k, v = (x @ p[n]["kernel"][:, head] + p[n]["bias"][head] for n in ("query", "key", "value"))
            scores = q @ k.T / np.sqrt(config.head_dim)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            attended = attended + weights / weights.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][head]
        x = norm(layer["attention_norm"], x + attended)
        x = norm(layer["mlp_norm"], x + dense(layer["mlp"]["down"], activation[config.activation](dense(layer["mlp"]["up"], x))))
    head = params["head"]
    transformed = norm(head["norm"], activation[config.transform_activation or config.activation](dense(head["transform"], x)))
    logits = transformed @ table["tokens"].T + head["vocabulary"]["bias"]
    pooled = {"pooled": np.tanh(dense(params["pooler"], x[0]))} if config.pooler else {}
    return {"hidden": x, "logits": logits} | pooled


@pytest.mark.parametrize(("variant", "typed"), [("bert", True), *((variant, False) for variant in VARIANTS)])
def test_hidden_states_pooled_output_and_logits_are_the_formulas_of_the_papers(variant, typed):
    model, params = MODELS[variant], PARAMS[variant]
    given = {"token_types": jnp.arange(24).reshape(2, 12) % 2} if typed else {}
    output = APPLY[variant](params, TOKENS, **given)
    for row in range(2):
        types = np.asarray(given["token_types"][row]) if typed else 0
        expected = in_numpy(params, model.config, np.asarray(TOKENS[row]), types)
        assert_near(output.hidden[row], expected["hidden"])
        assert_near(model.unembed(params, output.hidden)[row], expected["logits"])
        if model.config.pooler:
            assert_near(output.pooled[row], expected["pooled"])


def types_of(variant: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    kinds = MODELS[variant].config.num_token_types
    return {"token_types": rng.integers(0, kinds, (3, 12))} if kinds else {}


def check_documents(variant: str, spans: list[Span], inputs: dict[str, np.ndarray]) -> None:
    """Each document `(row, start, stop)` has the hidden states that it has alone."""
    output = APPLY[variant](PARAMS[variant], **inputs)
    for row, start, stop in spans:
        types = inputs["token_types"][row, start:stop] if "token_types" in inputs else 0
        alone = in_numpy(PARAMS[variant], MODELS[variant].config, inputs["tokens"][row, start:stop], types)
        assert_near(output.hidden[row, start:stop], alone["hidden"])
        if output.pooled is not None and (row, start) == next(span[:2] for span in spans if span[0] == row):
            assert_near(output.pooled[row], alone["pooled"])


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=6, deadline=None)
@given(sizes=three(st.integers(1, 12)), left=st.booleans(), seed=st.integers(0, 99))
def test_padding_and_the_order_of_rows_change_no_document(variant, sizes, left, seed):
    rng = np.random.default_rng(seed)
    spans, valid = padded(sizes, 12, left)
    check_documents(variant, spans, {"tokens": rng.integers(0, 50, (3, 12)), "valid": valid, **types_of(variant, rng)})


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=6, deadline=None)
@given(cuts=three(st.sets(st.integers(1, 11), max_size=4)), seed=st.integers(0, 99))
def test_packing_changes_no_document(variant, cuts, seed):
    rng = np.random.default_rng(seed)
    spans, segments, positions = packed(cuts, 12)
    inputs = {"tokens": rng.integers(0, 50, (3, 12)), "segments": segments, "positions": positions}
    check_documents(variant, spans, inputs | types_of(variant, rng))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sequence_can_be_as_long_as_max_len(variant):
    hidden = APPLY[variant](PARAMS[variant], jnp.arange(16)[None]).hidden
    assert_near(hidden[0], in_numpy(PARAMS[variant], MODELS[variant].config, np.arange(16))["hidden"])


def test_layers_as_a_tuple_give_the_same():
    cut = nn.unstack(jax.tree.map(jnp.copy, PARAMS["bert"]))
    whole, apart = (MODEL.apply(params, TOKENS) for params in (PARAMS["bert"], cut))
    np.testing.assert_allclose(apart.hidden, whole.hidden, atol=1e-5)
    np.testing.assert_allclose(apart.pooled, whole.pooled, atol=1e-5)


def test_every_inner_value_can_be_tapped():
    names = {"embedding", "hidden", "pooled"} | {
        f"layers/{name}"
        for name in ("in", "attention/query", "attention/key", "attention/value", "attention/scores", "attention/weights",
                     "attention/mixed", "attention/out", "middle", "mlp/up", "mlp/activation", "mlp/out", "out")
    }  # fmt: skip
    output = MODEL.apply(PARAMS["bert"], TOKENS, ctx=Context(taps=Taps(returned=tuple(sorted(names)))))
    taps = output.taps
    assert set(taps) == names
    assert taps["layers/attention/weights"].shape == (3, 2, 2, 12, 12)
    np.testing.assert_allclose(taps["layers/attention/weights"].sum(-1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(taps["layers/in"][1:], taps["layers/out"][:-1])
    np.testing.assert_array_equal(taps["layers/in"][0], taps["embedding"])
    np.testing.assert_array_equal(taps["hidden"], taps["layers/out"][-1])
    np.testing.assert_array_equal(taps["pooled"], output.pooled)
    norm = jax.tree.map(lambda p: p[0], PARAMS["bert"]["layers"]["mlp_norm"])
    out = nn.layer_norm(norm, taps["layers/middle"][0] + taps["layers/mlp/out"][0], 1e-5, Context())
    np.testing.assert_allclose(out, taps["layers/out"][0], atol=1e-5)


HEADS = {
    "bert": {
        "masked-lm": (2, 12, 50), "pretraining": (2, 2), "next-sentence": (2, 2), "sequence-classification": (2, 3),
        "token-classification": (2, 12, 3), "question-answering": (2, 12, 2),
    },
    "roberta": {
        "masked-lm": (2, 12, 50), "sequence-classification": (2, 3), "token-classification": (2, 12, 3),
        "question-answering": (2, 12, 2),
    },
}  # fmt: skip
HEADS["distilbert"] = HEADS["roberta"]
ALL_HEADS = [(variant, head) for variant in HEADS for head in HEADS[variant]]


def with_head(variant: str, head: str | None, **changes):
    return build("bert", {**TINY, **VARIANTS[variant], "variant": variant, "labels": ("a", "b", "c"), **changes}, head)


@pytest.mark.parametrize(("variant", "head"), ALL_HEADS)
def test_each_head_gives_its_logits(variant, head):
    model = with_head(variant, head, pooler=False)
    assert set(bert.heads(model.config)) == set(HEADS[variant])
    params = model.init(jax.random.PRNGKey(0))
    output = model.apply(params, TOKENS)
    reads_pooler = variant == "bert" and head in ("pretraining", "next-sentence", "sequence-classification")
    assert (output.pooled is not None) == reads_pooler
    if head in bert.VOCABULARY_HEADS:
        assert model.unembed(params, output.hidden).shape == (2, 12, 50)
    else:
        with pytest.raises(InputError, match="no head for a vocabulary: build or load it with the head 'masked-lm'"):
            model.unembed(params, output.hidden)
    if head != "masked-lm":
        assert output.logits.shape == HEADS[variant][head]


def test_an_untied_vocabulary_has_a_matrix_of_its_own():
    model = with_head("bert", "masked-lm", tied=False)
    params = loud(model)
    hidden = model.apply(params, TOKENS).hidden
    table = params["head"]["vocabulary"]["kernel"].T
    tied = {**params, "embedding": {**params["embedding"], "tokens": table}}
    np.testing.assert_allclose(model.unembed(params, hidden), MODEL.unembed(tied, hidden), rtol=1e-6)
    assert not np.allclose(model.unembed(params, hidden), MODEL.unembed(params, hidden), atol=0.1)


# Which rates drop something where. The released code of BERT has none before next-sentence logits and spans; RoBERTa's and
# DistilBERT's differ in the classifiers, of which DistilBERT's reads undropped values and drops those of its own layer.
TRUNK = {"dropout", "attention_dropout"}
DROPS = {
    ("bert", "next-sentence"): TRUNK,
    ("bert", "sequence-classification"): TRUNK | {"classifier_dropout"},
    ("bert", "token-classification"): TRUNK | {"classifier_dropout"},
    ("bert", "question-answering"): TRUNK | {"span_dropout"},
    ("roberta", "sequence-classification"): TRUNK | {"classifier_dropout"},
    ("distilbert", "sequence-classification"): TRUNK | {"classifier_dropout"},
    ("distilbert", "token-classification"): TRUNK,
    ("distilbert", "question-answering"): TRUNK | {"span_dropout"},
}
NO_DROPOUT = dict.fromkeys(("dropout", "attention_dropout", "classifier_dropout", "span_dropout"), 0.0)


@pytest.mark.parametrize(("variant", "head"), DROPS)
def test_each_rate_of_dropout_acts_where_it_should(variant, head):
    dropping = Context(dropout_key=jax.random.PRNGKey(3))
    params = nn.unstack(loud(with_head(variant, head, num_layers=1)))
    expected = with_head(variant, head, num_layers=1).apply(params, TOKENS).logits
    for name in NO_DROPOUT:
        model = with_head(variant, head, num_layers=1, **{**NO_DROPOUT, name: 0.5})
        same = np.allclose(model.apply(params, TOKENS, ctx=dropping).logits, expected, atol=1e-5)
        assert same == (name not in DROPS[variant, head]), name


def test_the_heads_of_the_released_models_drop_with_their_rates():
    rates = {name: bert.heads(preset(name).config) for name in ("bert-base", "roberta-base", "distilbert-base")}
    assert rates["bert-base"]["next-sentence"].dropout == rates["bert-base"]["pretraining"].dropout == 0.0
    for name, expected in (("roberta-base", (0.1, 0.1)), ("distilbert-base", (0.0, 0.2))):
        shape = rates[name]["sequence-classification"]
        assert (shape.dropout, shape.inner_dropout) == expected


def test_dropout_follows_the_norm_of_the_embedding_and_precedes_those_of_the_layers():
    model = build("bert", {**TINY, "num_layers": 1, "dropout": 0.5, "attention_dropout": 0.0})
    taps = Taps(returned=("embedding", "layers/in", "layers/middle"))
    given = model.apply(loud(model), TOKENS, ctx=Context(dropout_key=jax.random.PRNGKey(0), taps=taps)).taps
    dropped = given["layers/in"][0] == 0
    assert 0.4 < dropped.mean() < 0.6
    np.testing.assert_allclose(given["layers/in"][0], jnp.where(dropped, 0.0, 2 * given["embedding"]), rtol=1e-6)
    assert (given["layers/middle"][0] == 0).mean() < 0.01


def test_bfloat16_compute_keeps_float32_parameters_near():
    params = MODEL.init(jax.random.PRNGKey(0))
    low = MODEL.apply(params, TOKENS, ctx=Context(compute_dtype=jnp.bfloat16))
    assert low.hidden.dtype == low.pooled.dtype == jnp.bfloat16
    assert MODEL.unembed(params, low.hidden, ctx=Context(compute_dtype=jnp.bfloat16)).dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(low.hidden, np.float32), MODEL.apply(params, TOKENS).hidden, atol=0.1)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_it_lowers_for_other_devices(platform):
    def loss(params, tokens):
        output = MODEL.apply(params, tokens)
        return MODEL.unembed(params, output.hidden).sum() + output.pooled.sum()

    traced = jax.jit(jax.grad(loss)).trace(PARAMS["bert"], TOKENS)
    assert "stablehlo.dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_matmul_flops_are_those_of_the_compiled_program():
    model = build("bert", {**TINY, "d_model": 256, "d_mlp": 1024, "head_dim": 128, "activation": "relu", "pooler": False})
    params = nn.abstract(model.param_specs())

    def logits(params, tokens):
        layers = tuple(jax.tree.map(lambda p: p[i], params["layers"]) for i in range(model.config.num_layers))
        return model.unembed(params, model.apply({**params, "layers": layers}, tokens).hidden)

    counted = jax.jit(logits).lower(params, TOKENS).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(model.matmul_flops(TOKENS.size, TOKENS.shape[1]), rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "robert"}, "unknown variant 'robert': did you mean 'roberta'"),
        ({"num_heads": 0}, "num_heads of 1 or more, got 0"),
        ({"num_token_types": -1}, "num_token_types of 0 or more, got -1"),
        ({"classifier_dropout": 1.0}, r"classifier_dropout in \[0, 1\), got 1.0"),
        ({"activation": "gelu_tan"}, "unknown activation 'gelu_tan': did you mean 'gelu_tanh'"),
        ({"transform_activation": "relo"}, "unknown transform_activation 'relo': did you mean 'relu'"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        build("bert", {**TINY, **change})


def test_a_head_of_another_variant_and_inputs_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="no head 'next-sentence'"):
        with_head("roberta", "next-sentence")
    with pytest.raises(InputError, match="a sequence of 17 tokens is longer than this model's max_len of 16"):
        MODEL.apply(PARAMS["bert"], jnp.zeros((1, 17), jnp.int32))
    with pytest.raises(InputError, match="has no token types .* leave token_types out"):
        MODELS["distilbert"].apply(PARAMS["distilbert"], TOKENS, token_types=jnp.zeros_like(TOKENS))


def test_looking_padding_up_trains_nothing():
    """As in transformers' models, also where what is made of padding is looked at: here all of it is."""
    tokens = jnp.array([[5, 7, MODEL.config.pad_token, MODEL.config.pad_token]])
    gradient = jax.grad(lambda params: jnp.square(MODEL.apply(params, tokens).hidden).sum())(PARAMS["bert"])
    used = jnp.abs(gradient["embedding"]["tokens"]).sum(-1) > 0
    assert jnp.flatnonzero(used).tolist() == [5, 7]
