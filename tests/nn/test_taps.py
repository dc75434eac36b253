"""Taps on a stack of small layers: what is returned, replaced, changed and added, in every way that layers run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.nn import Context, Replacement, Rules, Taps, tap

DEPTH, WIDTH = 4, 5
PARAMS = {"w": jax.random.normal(jax.random.PRNGKey(0), (DEPTH, WIDTH, WIDTH)) / 2}
X = jax.random.normal(jax.random.PRNGKey(1), (8, WIDTH))
NEW = jax.random.normal(jax.random.PRNGKey(2), (DEPTH, 8, WIDTH))
MASK = jnp.arange(DEPTH)[:, None, None] == 1
STEP = jnp.arange(1.0, DEPTH + 1)[:, None, None] / 10
CHANGED = Taps(
    returned=("first", "layers/*"),
    replaced={"layers/in": Replacement(NEW, MASK)},
    functions=(("layers/out", lambda layer, value: jnp.where(layer == 2, 2 * value, value)),),
    added={"layers/out": STEP, "first": jnp.ones(WIDTH)},
)


def layer(params: dict, x: jax.Array, ctx: Context) -> jax.Array:
    x = nn.constrain(tap(x, "in", ctx), ctx, "batch", None)
    return tap(jnp.tanh(x @ params["w"]), "out", ctx)


def run(params: dict | tuple, x: jax.Array, taps: Taps | None, **others) -> tuple[jax.Array, dict]:
    ctx = nn.collecting(Context(taps=taps, **others))
    return nn.scan_layers((layer,), params, tap(x, "first", ctx), ctx), nn.returned_taps(ctx)


def by_hand() -> tuple[np.ndarray, dict]:
    w, new, step = (np.asarray(x, np.float64) for x in (PARAMS["w"], NEW, STEP))
    x = np.asarray(X, np.float64) + 1
    taps = {"first": x, "layers/in": [], "layers/out": []}
    for i in range(DEPTH):
        x = new[1] if i == 1 else x
        taps["layers/in"].append(x)
        x = np.tanh(x @ w[i]) * (2 if i == 2 else 1) + step[i]
        taps["layers/out"].append(x)
    return x, taps


def assert_as_by_hand(found: tuple[jax.Array, dict]) -> None:
    x, taps = by_hand()
    np.testing.assert_allclose(found[0], x, atol=1e-5)
    assert found[1].keys() == taps.keys()
    for name, value in taps.items():
        np.testing.assert_allclose(found[1][name], value, atol=1e-5, err_msg=name)


def unrolled(params: dict) -> tuple:
    return tuple(jax.tree.map(lambda p: p[i], params) for i in range(DEPTH))


@pytest.mark.parametrize("form", [lambda params: params, unrolled], ids=["stacked", "tuple"])
@pytest.mark.parametrize("remat", [None, "full"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_values_change_and_come_back_however_layers_run(form, remat, transform):
    assert_as_by_hand(transform(partial(run, remat=remat))(form(PARAMS), X, CHANGED))


def test_rows_of_a_vmap_have_taps_of_their_own():
    per_row = CHANGED.replace(replaced={"layers/in": Replacement(NEW[:, :, None], MASK)})
    axes = Taps(CHANGED.returned, {"layers/in": Replacement(1, None)}, CHANGED.functions, {"layers/out": None, "first": None})
    x, taps = jax.vmap(run, (None, 0, axes))(PARAMS, X[:, None], per_row)
    assert_as_by_hand((x[:, 0], {name: value[:, 0] if name == "first" else value[:, :, 0].swapaxes(0, 1) for name, value in taps.items()}))


def test_a_mesh_splits_what_is_tapped():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rules = Rules(mesh, (("batch", ("data",)),))
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
    found = jax.jit(partial(run, rules=rules))(PARAMS, x, CHANGED)
    assert_as_by_hand(found)
    assert found[1]["layers/in"].sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, "data")), 3)


@pytest.mark.parametrize("remat", [None, "full"])
def test_gradients_reach_what_is_added_and_what_replaces(remat):
    def total(added: jax.Array, new: jax.Array) -> jax.Array:
        taps = Taps(replaced={"layers/in": Replacement(new, MASK)}, added={"layers/out": added})
        return (run(PARAMS, X, taps, remat=remat)[0] ** 2).sum()

    zeros = jnp.zeros((DEPTH, 8, WIDTH))
    of_added, of_new = jax.jit(jax.grad(total, (0, 1)))(zeros, NEW)
    w, x, outs = np.asarray(PARAMS["w"], np.float64), np.asarray(NEW[1], np.float64), []
    for i in range(1, DEPTH):
        x = np.tanh(x @ w[i])
        outs.append(x)
    gradient = 2 * x
    for i in reversed(range(1, DEPTH)):
        np.testing.assert_allclose(of_added[i], gradient, atol=1e-5)
        gradient = (gradient * (1 - outs[i - 1] ** 2)) @ w[i].T
    np.testing.assert_allclose(of_new[1], gradient, atol=1e-5)
    np.testing.assert_array_equal(of_added[0], 0.0)  # what it changes is replaced
    np.testing.assert_array_equal(of_new[jnp.array([0, 2, 3])], 0.0)


def test_another_replacement_compiles_nothing():
    traced = []

    @jax.jit
    def traced_run(taps: Taps) -> jax.Array:
        traced.append(1)
        return run(PARAMS, X, taps)[0]

    outputs = []
    for number in range(3):
        mask = jnp.arange(DEPTH)[:, None, None] == number
        taps = Taps(replaced={"layers/in": Replacement(NEW * number, mask)}, added={"layers/out": STEP * number})
        outputs.append(traced_run(taps))
    assert len(traced) == 1
    assert not np.allclose(outputs[1], outputs[2])


def test_all_is_replaced_where_no_mask_is_given():
    x, taps = run(PARAMS, X, Taps(("layers/out",), {"layers/out": Replacement(NEW[:, :1])}))
    np.testing.assert_array_equal(taps["layers/out"], jnp.broadcast_to(NEW[:, :1], NEW.shape))
    np.testing.assert_array_equal(x, jnp.broadcast_to(NEW[-1, :1], X.shape))


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (Taps(returned=("layers/outs",)), "no tap is called 'layers/outs' in this model: did you mean 'layers/out'"),
        (Taps(returned=("layers/o*", "mlp/*")), "no tap is called 'mlp/\\*' in this model"),
        (Taps(replaced={"lasers/out": Replacement(NEW)}), "no tap is called 'lasers/out' in this model: did you mean 'layers/out'"),
        (Taps(added={"in": STEP}), "no tap is called 'in' in this model"),
        (Taps(functions=(("out", lambda layer, value: value),)), "no tap is called 'out' in this model"),
        (Taps(replaced={"layers/out": Replacement(NEW[:3])}), r"'layers/out' is in each of 4 layers: .* not of shape \(3, 8, 5\)"),
        (Taps(replaced={"layers/out": Replacement(NEW, MASK[0])}), r"expected data with a leading axis of 4, not of shape \(1, 1\)"),
        (Taps(added={"layers/out": NEW[0, 0, 0]}), r"expected data with a leading axis of 4, not of shape \(\)"),
        (
            Taps(added={"layers/out": NEW[:, :3]}),
            r"'layers/out' has the shape \(8, 5\) in each layer, to which data of shape \(3, 5\) does not broadcast",
        ),
        (Taps(added={"first": NEW}), r"'first' has the shape \(8, 5\), to which data of shape \(4, 8, 5\) does not broadcast"),
    ],
)
@pytest.mark.parametrize("form", [lambda params: params, unrolled], ids=["stacked", "tuple"])
def test_what_does_not_fit_is_refused_in_one_sentence(taps, message, form):
    with pytest.raises(InputError, match=message) as refused:
        run(form(PARAMS), X, taps)
    assert "\n" not in str(refused.value)
