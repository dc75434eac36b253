import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import errors, linen, nnx
from flax.training.train_state import TrainState

from flaxllm import nn
from flaxllm.adapters import as_linen
from flaxllm.models import build

MODEL = build("gpt", dict(vocab_size=50, max_len=16, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=24, dropout=0.5))
CLASSIFIER = build("gpt", vars(MODEL.config), head="sequence-classification")
KEY = jax.random.PRNGKey(0)
PARAMS = MODEL.init(jax.random.PRNGKey(7))
TOKENS = jax.random.randint(jax.random.PRNGKey(1), (2, 12), 0, 50)
VALID = jnp.arange(12) < jnp.array([[12], [7]])
OPTIMIZER = optax.sgd(1e-2)  # AdamW would make a step of the rounding of gradients that are 0, as those of key biases


def loss_of(logits: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], TOKENS[:, 1:]).mean()


def assert_same(tree: dict, other: dict, atol: float = 0.0) -> None:
    leaves, others = nn.flatten(tree), nn.flatten(other)
    assert leaves.keys() == others.keys()
    for path, leaf in leaves.items():
        np.testing.assert_allclose(leaf, others[path], rtol=0, atol=atol, err_msg=path)


@pytest.fixture(scope="module")
def stepped() -> dict:
    """The parameters after one step of the functional way."""

    @jax.jit
    def step(params):
        gradients = jax.grad(lambda p: loss_of(MODEL.unembed(p, MODEL.apply(p, TOKENS).hidden)))(params)
        return optax.apply_updates(params, OPTIMIZER.update(gradients, OPTIMIZER.init(params), params)[0])

    return step(PARAMS)


def test_init_gives_the_models_own_tree_or_the_one_given():
    assert_same(as_linen(MODEL).init(KEY, TOKENS), {"params": MODEL.init(KEY)})
    assert_same(as_linen(MODEL, PARAMS).init(KEY, TOKENS), {"params": PARAMS})


def test_apply_gives_what_the_model_gives():
    module, params = as_linen(CLASSIFIER), CLASSIFIER.init(KEY)
    expected = CLASSIFIER.apply(params, TOKENS, valid=VALID)
    output = module.apply({"params": params}, TOKENS, valid=VALID)
    np.testing.assert_array_equal(output.hidden, expected.hidden)
    np.testing.assert_array_equal(output.logits, expected.logits)
    logits = as_linen(MODEL).apply({"params": PARAMS}, expected.hidden, method="unembed")
    np.testing.assert_array_equal(logits, MODEL.unembed(PARAMS, expected.hidden))


def test_a_dropout_key_turns_dropout_on():
    module = as_linen(MODEL)
    plain, first, again, other = (
        module.apply({"params": PARAMS}, TOKENS, rngs=rngs).hidden
        for rngs in ({}, {"dropout": KEY}, {"dropout": KEY}, {"dropout": jax.random.PRNGKey(1)})
    )
    np.testing.assert_array_equal(plain, MODEL.apply(PARAMS, TOKENS).hidden)
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - plain).max() > 0.1 and jnp.abs(first - other).max() > 0.1


def test_a_step_with_linen_is_the_functional_one(stepped):
    module = as_linen(MODEL, PARAMS)
    state = TrainState.create(apply_fn=module.apply, params=module.init(KEY, TOKENS)["params"], tx=OPTIMIZER)

    @jax.jit
    def step(state):
        def loss(params):
            hidden = state.apply_fn({"params": params}, TOKENS).hidden
            return loss_of(state.apply_fn({"params": params}, hidden, method="unembed"))

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    assert_same(step(state).params, stepped, atol=1e-6)


def test_a_step_with_nnx_is_the_functional_one(stepped):
    model = nnx.bridge.ToNNX(as_linen(MODEL, PARAMS), rngs=nnx.Rngs(0)).lazy_init(TOKENS)
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda model: loss_of(model.unembed(model(TOKENS).hidden)))(model)
        optimizer.update(model, gradients)

    step(model, optimizer)
    assert_same(nnx.to_pure_dict(nnx.state(model, nnx.Param)), stepped, atol=1e-6)


def test_a_model_is_a_part_of_a_larger_module():
    class Scorer(linen.Module):
        def setup(self):
            self.encoder, self.score = as_linen(MODEL), linen.Dense(1)

        def __call__(self, tokens):
            return self.score(self.encoder(tokens).hidden[:, 0])

    variables = Scorer().init(KEY, TOKENS)
    assert_same(jax.tree.map(jnp.shape, variables["params"]["encoder"]), jax.tree.map(jnp.shape, PARAMS))
    assert Scorer().apply(variables, TOKENS).shape == (2, 1)


def test_parameters_of_another_model_are_refused():
    wider = build("gpt", {**vars(MODEL.config), "d_mlp": 32}).init(KEY)
    with pytest.raises(errors.ScopeParamShapeError, match='"layers"'):
        as_linen(MODEL).apply({"params": wider}, TOKENS)
