"""Preferences: the loss by its formula in float64 on fixed numbers, its gradient by equation 7's, and the references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from flaxllm.errors import InputError
from flaxllm.nn import Context
from flaxllm.objectives import add_references, dpo
from objectives.batches import apply, batches, summed, tiny

RECORDS = [
    {"prompt": "Is it cold?", "chosen": " Yes, it is.", "rejected": " No"},
    {"prompt": "And", "chosen": " now it is not", "rejected": " now it is"},
    {"prompt": "", "chosen": "A house", "rejected": "The house on the hill"},
]
REFERENCES = [(-30.0, -20.5), (-41.0, -52.25), (-18.0, -33.0)]


@pytest.fixture(scope="module")
def llama():
    return tiny("llama", "causal-lm", "llama", dropout=0.5)


@pytest.fixture(scope="module")
def pairs(llama):
    items = dpo(llama[0], llama[2], 48).items(RECORDS)
    return [pair._replace(references=of_pair) for pair, of_pair in zip(items, REFERENCES)]


@pytest.fixture(scope="module")
def answers(llama, pairs):
    """The log-probabilities of chosen and rejected, [pair, side], in float64 from each one's own logits."""
    model, params, _ = llama

    def of(item) -> float:
        padded = np.pad(item.tokens, (0, 30 - len(item.tokens)))  # what comes later is not seen
        logits = np.asarray(model.unembed(params, apply(model, params, {"tokens": padded[None]}).hidden)[0], np.float64)
        log_p = log_softmax(logits, -1)[np.arange(len(item.tokens) - 1), item.tokens[1:]]
        return log_p[item.answer[1:]].sum()

    return np.array([[of(pair.chosen), of(pair.rejected)] for pair in pairs])


def test_answers_end_and_their_prompts_are_alike(llama, pairs):
    tokenizer = llama[2]
    for record, pair in zip(RECORDS, pairs):
        for side in ("chosen", "rejected"):
            item = getattr(pair, side)
            assert tokenizer.decode(item.tokens[item.answer]) == record[side].strip() + "</s>"
        prompts = [item.tokens[~item.answer].tolist() for item in (pair.chosen, pair.rejected)]
        assert prompts[0] == prompts[1]


@pytest.mark.parametrize(("beta", "label_smoothing"), [(0.1, 0.0), (0.5, 0.2)])
def test_the_loss_is_the_formula_in_float64(llama, pairs, answers, beta, label_smoothing):
    model, params, tokenizer = llama
    objective = dpo(model, tokenizer, 48, beta=beta, label_smoothing=label_smoothing)
    rewards = beta * (answers - REFERENCES)
    margin = rewards[:, 0] - rewards[:, 1]
    p = 1 / (1 + np.exp(-margin))
    loss = -(1 - label_smoothing) * np.log(p) - label_smoothing * np.log(1 - p)
    assert 0 < (margin > 0).sum() < 3
    for made in (batches(objective, pairs, 4), batches(objective, pairs[::-1], 4)):
        sums = summed(objective, params, made)
        assert sums["loss"] == pytest.approx((loss.sum(), 3), rel=1e-5)
        assert sums["margin"] == pytest.approx((margin.sum(), 3), rel=1e-4)
        assert sums["accuracy"] == ((margin > 0).sum(), 3)


def test_the_gradient_is_equation_7s(llama, pairs, answers):
    """-beta sigmoid(-margin) (gradient of log p(chosen) - gradient of log p(rejected))."""
    model, params, tokenizer = llama
    objective = dpo(model, tokenizer, 48, beta=0.5)
    batch = batches(objective, pairs, 4)[0]
    margin = 0.5 * ((answers - REFERENCES) @ [1, -1])
    factor = jnp.asarray(np.pad(-0.5 / (1 + np.exp(margin)), (0, 1)), jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(params):
        total = 0.0
        for side, sign in (("chosen", 1), ("rejected", -1)):
            hidden = model.apply(params, batch[f"{side}_tokens"]).hidden
            log_p = jax.nn.log_softmax(model.unembed(params, hidden))
            of_target = jnp.take_along_axis(log_p, batch[f"{side}_targets"][..., None], -1)[..., 0]
            total += sign * (factor * (of_target * batch[f"{side}_weights"]).sum(-1)).sum()
        return total

    key = jax.random.PRNGKey(0)  # dropout is left out, though the model has some
    got = jax.jit(jax.grad(lambda p: objective.terms(p, batch, Context(dropout_key=key))["loss"].sum))(params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(gradient(params))):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, np.abs(b).max()))


def test_references_are_the_starting_models_own(llama, pairs, answers):
    model, params, tokenizer = llama
    objective = dpo(model, tokenizer, 48)
    bare = objective.items(RECORDS)
    filled = add_references(model, params, bare, 48, batch_size=4)
    np.testing.assert_allclose([pair.references for pair in filled], answers, rtol=1e-5)
    sums = summed(objective, params, batches(objective, filled, 4))
    assert sums["loss"] == pytest.approx((3 * np.log(2), 3), rel=1e-4)
    with pytest.raises(InputError, match="no log-probabilities of the model that training starts from: call add_references"):
        objective.example(bare[0], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "record 0 has no field 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "record 0 has 3 as its 'rejected': expected text, or a list of messages"),
        ({"prompt": "a b c " * 30, "chosen": "b", "rejected": "c"}, "record 0 has no answer in the first 48 of"),
    ],
)
def test_a_record_that_cannot_be_is_named(llama, record, message):
    with pytest.raises(InputError, match=message):
        dpo(llama[0], llama[2], 48).items([record])


def test_settings_that_cannot_be_are_refused(llama):
    for settings in ({"beta": 0.0}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1}):
        with pytest.raises(InputError, match="expected one above 0, and one from 0 to below 0.5"):
            dpo(llama[0], None, 48, **settings)
    with pytest.raises(InputError, match="dpo needs a model with the head 'causal-lm'"):
        dpo(tiny("bert", "masked-lm", "bert")[0], None, 48)
