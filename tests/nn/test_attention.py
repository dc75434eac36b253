import importlib
import itertools
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.nn import Context, Mask, Replacement, Rules, Taps
from flaxllm.nn.mask import dense_mask

MODULE = importlib.import_module("flaxllm.nn.attention")  # the package's name for it is the function
SELF, CROSS, LONG = (2, 6, 6), (2, 5, 9), (2, 9, 5)  # batch, q_len, k_len
HERE = ["einsum", "xla", "blockwise"]  # the implementations that run on any device


@pytest.fixture(autouse=True, scope="module")
def blocks_of_four():
    """Blocks so small that short arrays have several of them, and a last one that is not full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flaxllm.nn.blockwise.CPU_BLOCK", 4)
        yield


def by_hand(q, k, v, seen, bias, scale, dout) -> dict[str, np.ndarray]:
    """Attention and its derivatives in float64, one query at a time, from the definition."""
    q, k, v, dout = (np.asarray(x, np.float64) for x in (q, k, v, dout))
    batch, q_len, heads, _ = q.shape
    full = (batch, heads, q_len, k.shape[1])
    bias = np.broadcast_to(0.0 if bias is None else np.asarray(bias, np.float64), full)
    seen = np.broadcast_to(True if seen is None else np.asarray(seen)[:, None], full)
    out, dq, dk, dv, dbias = map(np.zeros, (dout.shape, q.shape, k.shape, v.shape, full))
    for b, h, t in itertools.product(range(batch), range(heads), range(q_len)):
        shared = h * k.shape[2] // heads
        visible = np.flatnonzero(seen[b, h, t])
        if not visible.size:
            continue
        keys, values = k[b, visible, shared], v[b, visible, shared]
        scores = scale * keys @ q[b, t, h] + bias[b, h, t, visible]
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[b, t, h] = weights @ values
        dweights = values @ dout[b, t, h]
        dscores = weights * (dweights - weights @ dweights)
        dq[b, t, h] = scale * dscores @ keys
        dk[b, visible, shared] += scale * np.outer(dscores, q[b, t, h])
        dv[b, visible, shared] += np.outer(weights, dout[b, t, h])
        dbias[b, h, t, visible] = dscores
    return {"out": out, "dq": dq, "dk": dk, "dv": dv, "dbias": dbias}


def arrays(shape, heads, kv_heads, dim=4, v_dim=4, bias_shape=None, dtype=np.float32, seed=0) -> dict:
    (batch, q_len, k_len), rng = shape, np.random.default_rng(seed)
    shapes = {
        "q": (batch, q_len, heads, dim),
        "k": (batch, k_len, kv_heads, dim),
        "v": (batch, k_len, kv_heads, v_dim),
        "dout": (batch, q_len, heads, v_dim),
    }
    if bias_shape is not None:
        shapes["bias"] = bias_shape
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


@cache
def with_derivatives(name: str, scale: float | None = None):
    """The compiled implementation: what `by_hand` returns, as a function of arrays and mask."""

    @jax.jit
    def run(q, k, v, dout, mask=None, bias=None):
        def attend(q, k, v, bias):
            return nn.attention(q, k, v, mask, bias=bias, scale=scale, ctx=Context(attention=name))

        out, pull = jax.vjp(attend, q, k, v, bias)
        return dict(zip(("out", "dq", "dk", "dv", "dbias"), (out, *pull(dout)), strict=True))

    return run


def assert_is_the_formula(name: str, inputs: dict, mask: Mask | None, scale=None, atol=1e-5):
    got = with_derivatives(name, scale)(mask=mask, **inputs)
    q, k = inputs["q"], inputs["k"]
    seen = None if mask is None else dense_mask(mask, q.shape[1], k.shape[1])
    expected = by_hand(**{"bias": None} | inputs, seen=seen, scale=scale or q.shape[-1] ** -0.5)
    if "bias" in inputs:
        spread = tuple(axis for axis, size in enumerate(inputs["bias"].shape) if size == 1)
        expected["dbias"] = expected["dbias"].sum(spread, keepdims=True)
    else:
        assert got.pop("dbias") is None and expected.pop("dbias") is not None
    dtypes = {"out": "v", "dq": "q", "dk": "k", "dv": "v", "dbias": "bias"}
    for part, value in got.items():
        assert value.dtype == inputs[dtypes[part]].dtype
        error = np.abs(np.asarray(value, np.float64) - expected[part]).max()
        assert error < atol * max(1.0, np.abs(expected[part]).max()), f"{name} {part} is off by {error}"


KINDS = {  # shape, heads and key heads, rules of the mask, shape of the bias
    "packed and causal": (SELF, (4, 4), Mask(causal=True), None),
    "banded, grouped": (SELF, (4, 2), Mask(causal=True, window=3), (2, 4, 6, 6)),
    "cross, one key head": (CROSS, (4, 1), Mask(causal=True), (1, 4, 1, 9)),
    "two-sided band": (LONG, (2, 2), Mask(window=2), (2, 1, 9, 1)),
}


def of_kind(kind: str, seed: int = 0, **mask_arrays: jax.Array) -> tuple[dict, Mask]:
    """Arrays and mask of one kind, for one compiled program; unless given, the mask shows all."""
    (batch, q_len, k_len), heads, rules, bias_shape = KINDS[kind]
    of_queries, of_keys = jnp.zeros((batch, q_len), int), jnp.zeros((batch, k_len), int)
    shows_all = {"query_positions": of_queries, "query_segments": of_queries, "key_positions": of_keys}
    shows_all |= {"key_segments": of_keys, "key_valid": jnp.ones((batch, k_len), bool)}
    inputs = arrays((batch, q_len, k_len), *heads, bias_shape=bias_shape, seed=seed)
    return inputs, rules.replace(**shows_all | mask_arrays)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HERE)
@given(data=st.data())
@settings(max_examples=8, deadline=None, phases=[Phase.reuse, Phase.generate])  # small as they are
def test_every_implementation_is_the_formula_and_its_derivatives(name, kind, data):
    batch, q_len, k_len = KINDS[kind][0]

    def rows(length: int, values: st.SearchStrategy) -> jax.Array:
        row = st.lists(values, min_size=length, max_size=length)
        return jnp.array(data.draw(st.lists(row, min_size=batch, max_size=batch)))

    inputs, mask = of_kind(
        kind,
        seed=data.draw(st.integers(0, 1000)),
        query_positions=rows(q_len, st.integers(0, 9)),
        key_positions=rows(k_len, st.integers(0, 9)),
        query_segments=rows(q_len, st.integers(0, 1)),
        key_segments=rows(k_len, st.integers(0, 1)),
        key_valid=rows(k_len, st.sampled_from([True, True, True, False])),
    )
    assert_is_the_formula(name, inputs, mask)


@pytest.mark.parametrize(("name", "window"), [("einsum", 2), ("blockwise", 2), ("xla", 2), ("xla", None)])
def test_a_mask_without_positions_goes_by_the_order_of_the_arrays(name, window):
    assert_is_the_formula(name, arrays((2, 7, 7), 4, 2), Mask(causal=True, window=window))


@pytest.mark.parametrize("name", HERE)
def test_one_query_at_position_7_of_a_cache_sees_keys_0_to_7(name):
    inputs = arrays((1, 1, 10), 2, 2)
    mask = Mask(causal=True, query_positions=jnp.array([[7]]), key_positions=jnp.arange(10)[None])
    got = with_derivatives(name)(mask=mask, **inputs)
    expected = by_hand(**inputs, seen=[[[True] * 8 + [False] * 2]], bias=None, scale=0.5)
    for part in ("out", "dq", "dk", "dv"):
        np.testing.assert_allclose(got[part], expected[part], atol=1e-5)


@pytest.mark.parametrize("name", HERE)
def test_a_query_that_sees_nothing_gets_0_and_pulls_on_nothing(name):
    alone = jnp.tile(jnp.array([1, 1, 2, 1, 1, 1]), (2, 1))
    inputs, mask = of_kind("packed and causal", query_segments=alone, key_segments=jnp.ones((2, 6), int))
    got = with_derivatives(name)(mask=mask, **inputs)
    assert not got["out"][:, 2].any() and not got["dq"][:, 2].any()
    assert got["out"][:, 3].any() and got["dq"][:, 3].any()
    assert_is_the_formula(name, inputs, mask)


@pytest.mark.parametrize("name", ["einsum", "blockwise"])
def test_a_bias_of_minus_infinity_hides_like_a_mask(name):
    inputs, mask = of_kind("banded, grouped")
    seen = np.random.default_rng(0).random((2, 1, 6, 6)) < 0.5
    seen[0, :, 2] = False
    inputs["bias"] = jnp.where(seen, inputs["bias"], -jnp.inf)
    got = with_derivatives(name)(mask=mask, **inputs)
    inputs["bias"] = jnp.where(seen, inputs["bias"], 0.0)
    expected = by_hand(**inputs, seen=seen[:, 0], scale=0.5)
    for part, value in got.items():
        np.testing.assert_allclose(value, expected[part], atol=1e-5)


# With those of KINDS, every combination of full and broadcast over any three of the four axes.
@pytest.mark.parametrize("full", ["1111", "11nn", "nn11", "n11n", "1nn1"])
def test_a_bias_may_be_broadcast_over_any_axes_of_the_blocks(full):
    shape = tuple(size if f == "n" else 1 for f, size in zip(full, (2, 4, 5, 7), strict=True))
    assert_is_the_formula("blockwise", arrays((2, 5, 7), 4, 2, bias_shape=shape), None)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float64, 1e-12), (jnp.bfloat16, 0.03)])
def test_sums_are_as_wide_as_they_must_be_and_results_as_narrow_as_the_values(name, dtype, atol):
    with jax.enable_x64(dtype == jnp.float64):
        inputs = arrays((2, 6, 7), 4, 2, bias_shape=(1, 4, 6, 7), dtype=dtype)
        mask = Mask(key_valid=jnp.array([[True] * 6 + [False]]))
        library_rounds = name == "xla" and dtype == jnp.float64  # its softmax is in float32 always
        assert_is_the_formula(name, inputs, mask, scale=0.3, atol=1e-6 if library_rounds else atol)


@pytest.mark.parametrize("name", ["einsum", "blockwise"])
def test_values_may_differ_from_keys_in_width_and_dtype(name):
    inputs = arrays((2, 5, 6), 2, 2, v_dim=3)
    inputs |= {part: inputs[part].astype(jnp.bfloat16) for part in ("q", "k")}
    assert_is_the_formula(name, inputs, Mask(), atol=0.02)
    # Products of bfloat16 are exact in float32, so only the derivatives of queries and keys are rounded.
    expected = by_hand(**inputs, seen=None, bias=None, scale=0.5)
    got = with_derivatives(name)(mask=Mask(), **inputs)
    np.testing.assert_allclose(got["out"], expected["out"], atol=1e-5)


@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_the_derivatives_of_the_softmax_are_the_numerical_ones(mode):
    with jax.enable_x64(True):
        scores = np.random.default_rng(0).normal(size=(1, 2, 3, 5))
        seen = jnp.array([[True, False, True, True, True], [False] * 5, [True] * 5])[None, None]

        @jax.jit
        def softmax(scores: jax.Array) -> jax.Array:
            return MODULE.masked_softmax(jnp.asarray(scores), seen)

        check_grads(softmax, (scores,), order=2, modes=[mode], atol=1e-6, rtol=1e-6)


def test_a_hidden_block_is_not_computed():
    q, k, v, dout = arrays((1, 12, 12), 2, 2).values()
    causal = Mask(causal=True)
    clean = with_derivatives("blockwise")(q, k, v, dout, causal)
    # A weight of 0 times NaN is NaN: only what is left out altogether cannot spoil rows that do not see it.
    bad_k, bad_v = (x.at[:, 8:].set(jnp.nan) for x in (k, v))
    spoilt = with_derivatives("blockwise")(q, bad_k, bad_v, dout, causal)
    np.testing.assert_array_equal(spoilt["out"][:, :8], clean["out"][:, :8])
    np.testing.assert_array_equal(spoilt["dq"][:, :8], clean["dq"][:, :8])
    assert jnp.isnan(spoilt["out"][:, 8:]).all()


def temporary_bytes(name: str, length: int) -> int:
    x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)

    def total(q, k, v):
        return nn.attention(q, k, v, causal=True, ctx=Context(attention=name)).sum()

    return jax.jit(jax.grad(total, (0, 1, 2))).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("name", "growth"), [("einsum", 4), ("blockwise", 2)])
def test_memory_grows_with_the_square_of_the_length_or_with_the_length(name, growth, monkeypatch, optimized):
    monkeypatch.setattr("flaxllm.nn.blockwise.CPU_BLOCK", 32)
    grown = temporary_bytes(name, 4096) / temporary_bytes(name, 2048)
    assert 0.85 * growth < grown < 1.1 * growth


def test_each_row_drops_weights_of_its_own_and_the_mean_is_kept():
    q, k, _, _ = arrays((4, 50, 60), 2, 2).values()
    v = jnp.broadcast_to(jnp.eye(60)[None, :, None], (4, 60, 2, 60))  # so the output is the weights
    ctx = Context(dropout_key=jax.random.PRNGKey(3))

    def weights(rate: float, ctx: Context = ctx) -> np.ndarray:
        return np.asarray(nn.attention(q, k, v, dropout_rate=rate, ctx=ctx))

    whole, dropped = weights(0.0), weights(0.25)
    kept = dropped != 0.0
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.75, rtol=1e-5)
    assert abs(kept.mean() - 0.75) < 4 * (0.25 * 0.75 / kept.size) ** 0.5
    assert len({row.tobytes() for row in kept}) == 4
    assert abs(dropped.sum(-1).mean() - 1.0) < 4 * dropped.sum(-1).std() / kept[..., 0].size ** 0.5
    np.testing.assert_array_equal(weights(0.25, Context()), whole)


def test_blocks_may_be_mapped_over_and_made_again_in_a_scan():
    q, k, v, dout = arrays((3, 6, 6), 2, 2).values()
    causal, ctx = Mask(causal=True), Context(attention="blockwise")

    def total(q, k, v):
        def layer(carry, row):
            attended = jax.vmap(lambda *x: nn.attention(*(a[None] for a in x), causal, ctx=ctx)[0])(*row[:3])
            return carry + (attended * row[3]).sum(), None

        rows = tuple(x[:, None] for x in (q, k, v, dout))  # each layer maps over a batch of one
        return jax.lax.scan(jax.checkpoint(layer), 0.0, rows)[0]

    expected = with_derivatives("einsum")(q, k, v, dout, causal)
    for got, part in zip(jax.jit(jax.grad(total, (0, 1, 2)))(q, k, v), ("dq", "dk", "dv"), strict=True):
        np.testing.assert_allclose(got, expected[part], atol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_blocks_split_over_rows_and_heads_need_no_communication(axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    inputs = arrays((4, 6, 6), 4, 2)
    mask = Mask(causal=True, key_valid=jnp.arange(6)[None] < jnp.array([[6], [3], [5], [1]]))
    by_rows = NamedSharding(mesh, PartitionSpec("data"))
    split = NamedSharding(mesh, PartitionSpec("data", None, "model"))
    with jax.set_mesh(mesh):
        placed = {part: jax.device_put(value, split) for part, value in inputs.items()}
        by_row = jax.device_put(mask, by_rows)
        compiled = with_derivatives("blockwise").lower(mask=by_row, **placed).compile()
        got = compiled(mask=by_row, **placed)
    expected = by_hand(**inputs, seen=dense_mask(mask, 6, 6), bias=None, scale=0.5)
    for part in ("out", "dq", "dk", "dv"):
        assert got[part].sharding.is_equivalent_to(split, 4)
        np.testing.assert_allclose(got[part], expected[part], atol=1e-5)
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))


@pytest.mark.parametrize("name", HERE)
def test_every_implementation_lowers_for_accelerators(name):
    x = jax.ShapeDtypeStruct((1, 8, 2, 64), jnp.bfloat16)
    traced = with_derivatives(name).trace(x, x, x, x, Mask(causal=True))
    lowered = traced.lower(lowering_platforms=("cuda", "tpu"))
    assert "_platform_index" in lowered.as_text()


@pytest.fixture
def chosen(monkeypatch) -> list[str]:
    """The names of the implementations that were called."""
    names = []
    for name, implementation in MODULE.IMPLEMENTATIONS.items():

        def call(call, name=name, implementation=implementation):
            names.append(name)
            return implementation(call)

        monkeypatch.setitem(MODULE.IMPLEMENTATIONS, name, call)
    return names


def attend_abstractly(shape: tuple, ctx: Context = Context(), **options):  # noqa: B008 (frozen)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda x: nn.attention(x, x, x, causal=True, ctx=ctx, **options), x)


def test_auto_goes_by_the_size_of_the_scores_on_one_device(chosen):
    length = int((MODULE.DENSE_SCORE_BYTES / 4 / 8) ** 0.5)  # the scores of 2 rows and 4 heads just fit
    mesh = jax.make_mesh((2, 2, 2), ("data", "model", "sequence"), axis_types=(AxisType.Auto,) * 3)
    splits = {"batch": ("data",), "heads": ("model",), "length": ("sequence",)}
    rules = Rules(mesh, tuple(splits.items()))
    attend_abstractly((2, length, 4, 8))
    attend_abstractly((2, length + 1, 4, 8))
    attend_abstractly((4, 2 * length, 4, 8), Context(rules=rules))
    attend_abstractly((4, 2 * length + 1, 4, 8), Context(rules=rules))
    assert chosen == ["einsum", "blockwise", "einsum", "blockwise"]


@pytest.mark.parametrize("name", ["weights", "scores"])
def test_auto_writes_the_weights_down_for_whoever_looks_at_them_or_drops_some(name, chosen, monkeypatch):
    monkeypatch.setattr(MODULE, "DENSE_SCORE_BYTES", 0)
    attend_abstractly((1, 6, 2, 4))
    attend_abstractly((1, 6, 2, 4), nn.collecting(Context(taps=Taps(returned=(name,)))))
    attend_abstractly((1, 6, 2, 4), nn.collecting(Context(taps=Taps(returned=("other",)))))
    attend_abstractly((1, 6, 2, 4), Context(dropout_key=jax.random.PRNGKey(0)), dropout_rate=0.1)
    attend_abstractly((1, 6, 2, 4), Context(dropout_key=jax.random.PRNGKey(0)))
    assert chosen == ["blockwise", "einsum", "blockwise", "einsum", "blockwise"]


def test_weights_are_returned_and_replaced_by_their_names():
    q, k, v, _ = arrays((1, 3, 4), 2, 2).values()
    uniform = Replacement(jnp.full((1, 2, 3, 4), 0.25), jnp.array([False, True])[:, None, None])
    ctx = nn.collecting(Context(taps=Taps(returned=("weights", "scores"), replaced={"weights": uniform})))
    out = nn.attention(q, k, v, ctx=ctx)
    taps = nn.returned_taps(ctx)
    np.testing.assert_allclose(taps["scores"], np.einsum("bthd,bshd->bhts", q, k) / 2, atol=1e-5)
    np.testing.assert_allclose(taps["weights"][:, 0], jax.nn.softmax(taps["scores"][:, 0]), atol=1e-6)
    mean = v[:, :, 1].mean(1, keepdims=True)
    np.testing.assert_allclose(out[:, :, 1], np.broadcast_to(mean, (1, 3, 4)), atol=1e-6)


DROPS = {"dropout_rate": 0.1, "ctx": Context(dropout_key=jax.random.PRNGKey(0))}
TAPS = {"ctx": nn.collecting(Context(taps=Taps(returned=("weights",))))}
PRECISE = {"ctx": Context(precision="highest")}
BIAS, WIDE_BIAS = ({"bias": jnp.zeros((1, 1, 6, 7), dtype)} for dtype in (jnp.bfloat16, jnp.float32))
PADDED = {"mask": Mask(key_valid=jnp.ones((2, 7), bool))}
GPU = {"platform": "cuda 12090", "capability": "8.0"}


def have_gpu(monkeypatch, platform="cuda 12090", capability="8.0"):
    client, kind = SimpleNamespace(platform_version=platform), f"Some GPU {capability}"
    device = SimpleNamespace(client=client, compute_capability=capability, device_kind=kind)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])


@pytest.mark.parametrize(
    ("name", "gpu", "inputs", "options", "message"),
    [
        ("xla", {}, {}, DROPS, "'xla' has no attention dropout: use 'auto' or 'einsum'"),
        ("blockwise", {}, {}, DROPS, "'blockwise' has no attention dropout: use 'auto' or 'einsum'"),
        ("xla", {}, {}, TAPS, "'xla' never holds the attention weights that a tap asks for: use 'auto'"),
        ("blockwise", {}, {}, TAPS, "'blockwise' never holds the attention weights that a tap asks for"),
        ("xla", {}, {"v_dim": 16}, {}, "'xla' needs values as wide as keys, not 16 and 8"),
        ("xla", {}, {}, PRECISE, r"'xla' cannot be told the precision of its products \(highest\)"),
        ("cudnn", {}, {}, {}, "'cudnn' needs an NVIDIA GPU of the Ampere generation or newer, and .* is cpu"),
        ("cudnn", {"capability": "7.5"}, {}, {}, "Ampere generation or newer, and this is Some GPU 7.5"),
        ("cudnn", {"platform": "rocm 7"}, {}, {}, "Ampere generation or newer, and this is Some GPU 8.0"),
        ("cudnn", GPU, {"dtype": np.float32}, {}, "needs bfloat16 or float16 queries, not float32"),
        ("cudnn", GPU, {"dim": 12}, {}, "head_dim that is a multiple of 8 up to 128 on this GPU, not 12"),
        ("cudnn", GPU, {"dim": 136}, {}, "head_dim that is a multiple of 8 up to 128 on this GPU, not 136"),
        ("cudnn", {"capability": "9.0"}, {"dim": 264}, {}, "a multiple of 8 up to 256 on this GPU, not 264"),
        ("cudnn", GPU, {}, WIDE_BIAS, "a bias of the queries' dtype bfloat16, not float32"),
        ("cudnn", GPU, {}, BIAS, "needs even lengths where a bias or a mask is drawn, not 6 and 7"),
        ("cudnn", GPU, {}, PADDED, "needs even lengths where a bias or a mask is drawn, not 6 and 7"),
        ("cudnn", GPU, {"v_dim": 16}, {}, "'cudnn' needs values as wide as keys, not 16 and 8"),
        ("cudnn", GPU, {}, DROPS, "'cudnn' has no attention dropout"),
        ("cudnn", GPU, {}, TAPS, "'cudnn' never holds the attention weights"),
    ],
)
def test_what_an_implementation_cannot_serve_it_refuses(name, gpu, inputs, options, message, monkeypatch):
    if gpu:
        have_gpu(monkeypatch, **gpu)
        inputs = {"dtype": jnp.bfloat16} | inputs
    sizes = {"dim": 8, "v_dim": inputs.get("dim", 8)} | inputs
    q, k, v, _ = arrays((2, 6, 7), 2, 2, **sizes).values()
    ctx = options.get("ctx", Context()).replace(attention=name)
    with pytest.raises(InputError, match=message):
        nn.attention(q, k, v, **options | {"ctx": ctx})


def test_the_library_needs_one_dtype():
    q, k, v, _ = arrays((1, 3, 4), 2, 2).values()
    with pytest.raises(InputError, match="'xla' needs queries, keys and values of one dtype, not bfloat16"):
        nn.attention(q.astype(jnp.bfloat16), k, v, ctx=Context(attention="xla"))


def test_a_plainly_causal_mask_needs_no_drawing_and_so_no_even_length(monkeypatch):
    have_gpu(monkeypatch)
    received = {}

    def library(q, k, v, **options):
        received.update(options)
        return v

    monkeypatch.setattr(jax.nn, "dot_product_attention", library)
    x = jnp.zeros((1, 7, 2, 8), jnp.bfloat16)
    nn.attention(x, x, x, Mask(causal=True, window=3), ctx=Context(attention="cudnn"))
    assert received["implementation"] == "cudnn" and received["mask"] is None
    assert received["is_causal"] and received["local_window_size"] == (2, 0)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ([(2, 3, 4, 8)] * 3, {"causal": True, "mask": Mask()}, "both causal=True and a mask: write Mask"),
        ([(2, 3, 4, 8)] * 3, {"ctx": Context(attention="flash")}, "unknown attention implementation 'flash'"),
        ([(2, 3, 4, 8)] * 3, {"ctx": Context(attention="blockwize")}, "did you mean 'blockwise'"),
        ([(2, 3, 4, 8), (2, 3, 3, 8), (2, 3, 3, 8)], {}, "4 query heads cannot share 3 key heads: use a mul"),
        ([(2, 3, 4, 8), (1, 3, 4, 8), (1, 3, 4, 8)], {}, r"queries \(2, 3, 4, 8\), keys \(1, 3, 4, 8\) and"),
        ([(2, 3, 4, 8), (2, 3, 4, 6), (2, 3, 4, 8)], {}, r"keys \(2, 3, 4, 6\) and values .* expected \[bat"),
        ([(2, 3, 4, 8), (2, 5, 4, 8), (2, 3, 4, 8)], {}, r"keys \(2, 5, 4, 8\) and values \(2, 3, 4, 8\)"),
        ([(3, 4, 8)] * 3, {}, r"queries \(3, 4, 8\)"),
        ([(2, 3, 4, 8)] * 3, {"bias": jnp.zeros((4, 3, 3))}, r"bias has shape \(4, 3, 3\): expected \(2, 4"),
        ([(2, 3, 4, 8)] * 3, {"bias": jnp.zeros((1, 2, 3, 3))}, r"bias has shape \(1, 2, 3, 3\)"),
        ([(2, 3, 4, 8)] * 3, {"mask": PADDED["mask"]}, r"key_valid of shape \(2, 7\): expected \(2, 3\), or"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(shapes, options, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside of these tests
    with pytest.raises(InputError, match=message):
        nn.attention(*map(jnp.zeros, shapes), **options)
