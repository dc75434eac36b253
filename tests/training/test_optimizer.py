import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.nn import Param
from flaxllm.training.optimizer import OPTIMIZERS, layer_factors, make_optimizer, make_schedule

DEPTH, WIDTH = 3, 160
LAYER = {
    "query": nn.dense_specs({"embed": WIDTH}, {"heads": 4, "head_dim": 40}),
    "out": nn.dense_specs({"heads": 4, "head_dim": 40}, {"embed": WIDTH}),
    "norm": nn.layer_norm_specs(WIDTH),
}
EMBEDDING = {"tokens": nn.embedding_specs("vocab", 200, WIDTH)}
STACKED = {"embedding": EMBEDDING, "layers": nn.stack(LAYER, DEPTH)}
TUPLE = {"embedding": EMBEDDING, "layers": (LAYER,) * DEPTH}


def random_like(specs: dict, seed: int) -> dict:
    return jax.tree.map(
        lambda p: jnp.asarray(np.random.default_rng(seed).normal(size=p.shape), jnp.float32),
        specs,
        is_leaf=lambda x: isinstance(x, Param),
    )


def as_tuple(tree: dict) -> dict:
    return {**tree, "layers": tuple(jax.tree.map(lambda x: x[i], tree["layers"]) for i in range(DEPTH))}


def steps(optimizer: optax.GradientTransformation, params: dict, gradients: list[dict]) -> dict:
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_stacked_layers_and_separate_ones_take_the_same_step(name, clip_norm, optimizer_config):
    optimizer_config.update(name=name, clip_norm=clip_norm)
    params, gradients = random_like(STACKED, 0), [random_like(STACKED, n) for n in (1, 2)]
    stacked = steps(make_optimizer(optimizer_config, lambda _: 1e-2, STACKED), params, gradients)
    separate = steps(make_optimizer(optimizer_config, lambda _: 1e-2, TUPLE), as_tuple(params), map(as_tuple, gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), as_tuple(stacked), separate)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), stacked, params)
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_adamw_is_its_formula_in_float64(optimizer_config):
    params, gradients = random_like(STACKED, 0), [random_like(STACKED, n) for n in (1, 2)]
    got = steps(make_optimizer(optimizer_config, lambda _: 1e-2, STACKED), params, gradients)

    def by_hand(param: Param, x, *gradients):
        x, m, v = np.asarray(x, np.float64), 0.0, 0.0
        for t, g in enumerate(gradients, 1):
            m, v = 0.9 * m + 0.1 * np.asarray(g, np.float64), 0.95 * v + 0.05 * np.square(np.asarray(g, np.float64))
            decay = 0.1 * x if param.is_matrix else 0.0
            x = x - 1e-2 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + decay)
        return x

    expected = jax.tree.map(by_hand, STACKED, params, *gradients, is_leaf=lambda x: isinstance(x, Param))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, expected)


def test_muon_orthogonalizes_each_layers_matrix_and_no_other(optimizer_config):
    optimizer_config.update(name="muon", weight_decay=0.0)
    params, gradient = random_like(STACKED, 0), random_like(STACKED, 1)
    moved = jax.tree.map(jnp.subtract, params, steps(make_optimizer(optimizer_config, lambda _: 1.0, STACKED), params, [gradient]))
    for matrix in (moved["layers"]["query"]["kernel"].reshape(DEPTH, WIDTH, WIDTH),
                   moved["layers"]["out"]["kernel"].reshape(DEPTH, WIDTH, WIDTH)):  # fmt: skip
        singular = np.linalg.svd(np.asarray(matrix), compute_uv=False) / (0.2 * WIDTH**0.5)
        assert 0.5 < np.quantile(singular, 0.05) and singular.max() < 1.3
    # Adam's first step has the same size everywhere.
    for tensor in (moved["embedding"]["tokens"], moved["layers"]["norm"]["scale"]):
        assert float(jnp.abs(tensor).std()) < 1e-3 < 0.5 < float(jnp.abs(tensor).mean())


def test_adafactor_factors_the_matrix_of_each_layer(optimizer_config):
    optimizer_config.update(name="adafactor", weight_decay=0.0)
    params, gradients = random_like(STACKED, 0), [random_like(STACKED, n) for n in (1, 2)]
    got = steps(make_optimizer(optimizer_config, lambda _: 1e-2, STACKED), params, gradients)

    def alone(x, *gradients):
        return steps(optax.adafactor(1e-2, multiply_by_parameter_scale=False), x, gradients)

    for layer in range(DEPTH):
        for name, shape in {"query": (WIDTH, WIDTH), "out": (WIDTH, WIDTH)}.items():
            tensors = [tree["layers"][name]["kernel"][layer].reshape(shape) for tree in (params, *gradients)]
            np.testing.assert_allclose(got["layers"][name]["kernel"][layer].reshape(shape), alone(*tensors), atol=1e-6)
    state = make_optimizer(optimizer_config, lambda _: 1e-2, STACKED).init(params)
    assert max(x.size for x in jax.tree.leaves(state)) < params["layers"]["query"]["kernel"].size / 10


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_acts_on_matrices_and_tables_only(name, optimizer_config):
    optimizer_config.update(name=name)
    params, nothing = random_like(STACKED, 0), jax.tree.map(jnp.zeros_like, random_like(STACKED, 0))
    decayed = steps(make_optimizer(optimizer_config, lambda _: 1e-2, STACKED), params, [nothing])
    kept = jax.tree.map(lambda new, old: float((new / old).mean()), decayed, params)
    for matrix in (kept["embedding"]["tokens"], kept["layers"]["query"]["kernel"], kept["layers"]["out"]["kernel"]):
        assert matrix == pytest.approx(1 - 1e-2 * 0.1, abs=1e-6)
    for vector in (kept["layers"]["query"]["bias"], kept["layers"]["norm"]["scale"]):
        assert vector == 1.0


def test_clipping_bounds_the_norm_of_the_whole_gradient(optimizer_config):
    optimizer_config.update(clip_norm=0.5, name="adamw", b1=0.0, b2=0.0, eps=1e6, weight_decay=0.0)
    params, gradient = random_like(STACKED, 0), random_like(STACKED, 1)
    # With so large an eps, Adam's step is proportional to the gradient.
    moved = jax.tree.map(jnp.subtract, params, steps(make_optimizer(optimizer_config, lambda _: 1e6, STACKED), params, [gradient]))
    assert float(optax.global_norm(moved)) == pytest.approx(0.5, rel=1e-3)


FREEZE = ("embedding/*", "layers/query/*", "layers/*/scale")
FROZEN = {"embedding/tokens", "layers/query/kernel", "layers/query/bias", "layers/norm/scale"}


def without(tree: dict, paths: set[str]) -> dict:
    return nn.unflatten({path: x for path, x in nn.flatten(tree).items() if path not in paths})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_frozen_stays_and_the_rest_is_trained_as_if_alone(name, optimizer_config):
    optimizer_config.update(name=name, clip_norm=0.5)  # a norm that must not count what is frozen
    params, gradients = random_like(STACKED, 0), [random_like(STACKED, n) for n in (1, 2)]
    trained = [without(tree, FROZEN) for tree in (STACKED, params, *gradients)]
    alone = make_optimizer(optimizer_config, lambda _: 1e-2, trained[0])
    expected = nn.flatten(steps(alone, trained[1], trained[2:]))
    optimizer_config.freeze = FREEZE
    optimizer = make_optimizer(optimizer_config, lambda _: 1e-2, STACKED)
    got = nn.flatten(steps(optimizer, params, gradients))
    assert {path for path in got if np.array_equal(got[path], nn.flatten(params)[path])} == FROZEN
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, rtol=1e-6, atol=1e-7)
    sizes = [sorted(x.size for x in jax.tree.leaves(o.init(p))) for o, p in ((optimizer, params), (alone, trained[1]))]
    assert sizes[0] == sizes[1]


HEAD = {"out": nn.dense_specs({"embed": WIDTH}, {"classes": 2})}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lower_layers_learn_slower(name, optimizer_config):
    specs = STACKED | {"head": HEAD}
    params, gradient = random_like(specs, 0), random_like(specs, 1)

    def first_step(**changes) -> dict:
        optimizer_config.update(name=name, **changes)
        return steps(make_optimizer(optimizer_config, lambda _: 1e-2, specs), params, [gradient])

    plain, decayed = first_step(), first_step(layer_decay=0.5)
    by_layer = np.array([0.5**3, 0.5**2, 0.5], np.float32)
    factors = {"embedding": lambda x: 0.5**4 * x, "layers": lambda x: np.einsum("l,l...->l...", by_layer, x), "head": lambda x: x}
    for part, times in factors.items():
        moves = (jax.tree.map(lambda a, b: np.asarray(a - b), tree[part], params[part]) for tree in (decayed, plain))
        jax.tree.map(lambda d, p: np.testing.assert_allclose(d, times(p), atol=2e-6), *moves)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layers_apart_are_frozen_and_slowed_as_stacked_ones(name, optimizer_config):
    optimizer_config.update(name=name, clip_norm=0.5, freeze=("layers/query/*",), layer_decay=0.7)
    params, gradients = random_like(STACKED, 0), [random_like(STACKED, n) for n in (1, 2)]
    stacked = steps(make_optimizer(optimizer_config, lambda _: 1e-2, STACKED), params, gradients)
    separate = steps(make_optimizer(optimizer_config, lambda _: 1e-2, TUPLE), as_tuple(params), map(as_tuple, gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), as_tuple(stacked), separate)


def test_each_stack_is_counted_from_its_own_top():
    norm = {"norm": nn.layer_norm_specs(4)}
    specs = {"embedding": EMBEDDING, "encoder": {"layers": nn.stack(norm, 2), "relative_bias": EMBEDDING["tokens"]},
             "decoder": {"layers": nn.stack(norm, 3), "final_norm": norm["norm"]}}  # fmt: skip
    factors = nn.flatten(layer_factors(specs, 0.5))
    np.testing.assert_allclose(factors["encoder/layers/norm/scale"].ravel(), [0.25, 0.5])
    np.testing.assert_allclose(factors["decoder/layers/norm/bias"].ravel(), [0.125, 0.25, 0.5])
    assert factors["embedding/tokens"] == 0.5**4
    assert factors["encoder/relative_bias"] == factors["decoder/final_norm/scale"] == 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", {0: 0.25, 3: 1.0, 4: 1.0, 54: 0.1 + 0.9 * 0.5, 104: 0.1}),
        ("linear", {0: 0.25, 3: 1.0, 54: 0.55, 104: 0.1}),
        ("rsqrt", {0: 0.25, 3: 1.0, 4: 1.0, 16: 0.5, 100: 0.2}),
        ("constant", {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 104: 1.0}),
    ],
)
def test_schedules_are_their_formulas(name, expected, optimizer_config):
    optimizer_config.update(schedule=name, learning_rate=2.0, warmup_steps=4)
    schedule = make_schedule(optimizer_config, 104)
    for step, value in expected.items():
        assert float(schedule(step)) == pytest.approx(2.0 * value, rel=1e-5), step
    if name == "cosine":
        assert float(schedule(30)) == pytest.approx(2.0 * (0.1 + 0.9 * (1 + np.cos(np.pi * 26 / 100)) / 2), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "adamm"}, "unknown optimizer.name 'adamm': did you mean 'adamw'"),
        ({"schedule": "cosin"}, "unknown optimizer.schedule 'cosin': did you mean 'cosine'"),
        ({"freeze": ("layers/query",)}, "optimizer.freeze has 'layers/query', which matches no parameter: did you mean 'layers/"),
        ({"freeze": ("*",)}, "optimizer.freeze matches every parameter"),
        ({"layer_decay": 0.0}, "optimizer.layer_decay is 0.0: expected a number above 0"),
        ({"layer_decay": 1.5}, "optimizer.layer_decay is 1.5"),
        ({"warmup_steps": 101}, "warmup_steps is 101, which must lie between 0 and the run's 100 steps"),
    ],
)
def test_what_does_not_exist_is_refused(change, message, optimizer_config):
    optimizer_config.update(change)
    with pytest.raises(InputError, match=message):
        make_optimizer(optimizer_config, make_schedule(optimizer_config, 100), STACKED)
