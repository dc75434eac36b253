import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.nn import Context, Replacement, Taps, tap

DEPTH = 6
PARAMS = {"layers": {"w": jax.random.normal(jax.random.PRNGKey(0), (DEPTH, 5, 5)) / 2, "b": jnp.arange(30.0).reshape(6, 5)}}
X = jax.random.normal(jax.random.PRNGKey(1), (2, 5))


def tanh_layer(params: dict, x: jax.Array, ctx: Context) -> jax.Array:
    return tap(jnp.tanh(x @ params["w"] + params["b"]), "out", ctx)


def sine_layer(params: dict, x: jax.Array, ctx: Context) -> jax.Array:
    return tap(jnp.sin(x @ params["w"] - params["b"]), "out", ctx)


def by_hand(cycle: tuple) -> list[np.ndarray]:
    """Every layer's output, in plain numpy."""
    functions = {tanh_layer: lambda h, b: np.tanh(h + b), sine_layer: lambda h, b: np.sin(h - b)}
    x, outs = np.asarray(X, np.float64), []
    for i in range(DEPTH):
        w, b = np.asarray(PARAMS["layers"]["w"][i], np.float64), np.asarray(PARAMS["layers"]["b"][i], np.float64)
        x = functions[cycle[i % len(cycle)]](x @ w, b)
        outs.append(x)
    return outs


def per_layer(params: dict) -> tuple:
    return tuple(jax.tree.map(lambda p: p[i], params) for i in range(DEPTH))


@pytest.mark.parametrize("cycle", [(tanh_layer,), (tanh_layer, sine_layer), (sine_layer, tanh_layer, tanh_layer)])
@pytest.mark.parametrize("form", [lambda p: p, per_layer], ids=["stacked", "tuple"])
@pytest.mark.parametrize("remat", [None, "full", "dots"])
def test_layers_run_in_order_in_every_form(cycle, form, remat):
    def run(params, x):
        return nn.scan_layers(cycle, form(params), x, Context(remat=remat))

    np.testing.assert_allclose(run(PARAMS["layers"], X), by_hand(cycle)[-1], atol=1e-5)
    gradient = jax.grad(lambda p: (run(p, X) ** 2).sum())(PARAMS["layers"])
    step = 1e-3 * jax.random.normal(jax.random.PRNGKey(5), (DEPTH, 5, 5))
    up, down = (jax.tree.map(jnp.add, PARAMS["layers"], {"w": sign * step, "b": 0 * PARAMS["layers"]["b"]}) for sign in (1, -1))
    numerical = ((run(up, X) ** 2).sum() - (run(down, X) ** 2).sum()) / 2
    np.testing.assert_allclose((gradient["w"] * step).sum(), numerical, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("form", [lambda p: p, per_layer], ids=["stacked", "tuple"])
def test_taps_return_and_replace_by_layer(form):
    cycle = (tanh_layer, sine_layer)

    def run(taps: Taps):
        ctx = nn.collecting(Context(taps=taps))
        x = nn.scan_layers(cycle, form(PARAMS["layers"]), X, ctx)
        return x, nn.returned_taps(ctx)

    x, taps = run(Taps(returned=("layers/out",)))
    np.testing.assert_allclose(taps["layers/out"], by_hand(cycle), atol=1e-5)
    mask = np.zeros((DEPTH, 2, 1), bool)
    mask[3, 1] = True
    new = Replacement(jnp.full((DEPTH, 2, 5), 0.5), jnp.asarray(mask))
    _, taps = run(Taps(returned=("layers/out",), replaced={"layers/out": new}))
    expected = by_hand(cycle)
    np.testing.assert_allclose(taps["layers/out"][:3], expected[:3], atol=1e-5)
    np.testing.assert_allclose(taps["layers/out"][3, 1], 0.5)
    np.testing.assert_allclose(taps["layers/out"][3, 0], expected[3][0], atol=1e-5)
    zeroed, _ = run(Taps(functions=(("layers/out", lambda layer, value: jnp.where(layer == DEPTH - 1, 0.0, value)),)))
    np.testing.assert_array_equal(zeroed, 0.0)


def test_an_unknown_tap_and_an_odd_depth_are_refused():
    ctx = nn.collecting(Context(taps=Taps(returned=("layers/ouch",))))
    nn.scan_layers((tanh_layer,), PARAMS["layers"], X, ctx)
    with pytest.raises(InputError, match="no tap is called 'layers/ouch'.*did you mean 'layers/out'"):
        nn.returned_taps(ctx)
    with pytest.raises(InputError, match="6 layers cannot alternate 4"):
        nn.scan_layers((tanh_layer,) * 4, PARAMS["layers"], X, Context())
    with pytest.raises(InputError, match="unknown remat policy 'fulll': did you mean 'full'"):
        nn.scan_layers((tanh_layer,), PARAMS["layers"], X, Context(remat="fulll"))


def test_without_taps_the_program_is_the_one_without_tap_points():
    def plain(params: dict, x: jax.Array, ctx: Context) -> jax.Array:
        return jnp.tanh(x @ params["w"] + params["b"])

    def lowered(layer) -> str:
        def run(params, x):
            return nn.scan_layers((layer,), params, x, Context())

        return jax.jit(run).lower(PARAMS["layers"], X).as_text()

    assert lowered(tanh_layer) == lowered(plain)


def test_unstack_cuts_by_layer_and_frees_the_stack():
    params = jax.tree.map(jnp.copy, PARAMS)
    cut = nn.unstack(params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params["layers"]))
    np.testing.assert_array_equal(cut["layers"][4]["w"], PARAMS["layers"]["w"][4])
    np.testing.assert_array_equal(nn.stack_layers(cut)["layers"]["b"], PARAMS["layers"]["b"])
