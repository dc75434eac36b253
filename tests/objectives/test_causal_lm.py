import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm.models import build
from flaxllm.nn import Context
from flaxllm.objectives import causal_lm, means
from flaxllm.objectives.causal_lm import next_token_example
from flaxllm.objectives.objective import Term, add_terms

MODEL = build("gpt", dict(vocab_size=30, max_len=16, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=24))
PARAMS = jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.PRNGKey(0)))
OBJECTIVE = causal_lm(MODEL, None, 16)
DOCUMENTS = [np.random.default_rng(n).integers(0, 30, n).astype(np.int32) for n in (6, 11, 4, 17)]


def rows(layout: list[list[int]], length: int = 16) -> dict[str, jax.Array]:
    """A batch whose rows hold the documents of these numbers, one after another."""
    batch = {k: np.zeros((len(layout), length), np.int32) for k in ("tokens", "targets", "segments", "positions")}
    batch["weights"] = np.zeros((len(layout), length), np.float32)
    for row, documents in enumerate(layout):
        start = 0
        for segment, document in enumerate(documents, 1):
            example = next_token_example(DOCUMENTS[document], np.random.default_rng(0))
            here = slice(start, start := start + len(example["tokens"]))
            for key, value in example.items():
                batch[key][row, here] = value
            batch["segments"][row, here] = segment
            batch["positions"][row, here] = np.arange(here.stop - here.start)
    return {key: jnp.asarray(value) for key, value in batch.items()} | {"row": jnp.arange(len(layout))}


def loss_sum(layout, length=16) -> float:
    return float(OBJECTIVE.terms(PARAMS, rows(layout, length), Context())["loss"].sum)


def test_packing_padding_and_order_do_not_change_a_documents_loss():
    alone = [loss_sum([[d]]) for d in range(4)]
    assert loss_sum([[0, 2], [1], [3]]) == pytest.approx(sum(alone), rel=1e-5)
    assert loss_sum([[2, 0]]) == pytest.approx(alone[0] + alone[2], rel=1e-5)
    assert loss_sum([[3], [1], [2, 0]]) == pytest.approx(sum(alone), rel=1e-5)
    assert loss_sum([[2]], length=3) == pytest.approx(alone[2], rel=1e-5)


def test_weights_are_known_before_the_model_runs():
    batch = rows([[0, 2], [1]])
    assert float(OBJECTIVE.weights(batch)["loss"]) == 5 + 3 + 10
    assert float(OBJECTIVE.terms(PARAMS, batch, Context())["loss"].weight) == 5 + 3 + 10


def test_a_smaller_logit_bound_changes_nothing_but_memory():
    batch = rows([[0, 2], [1]])
    chunked = causal_lm(MODEL, None, 16, max_logit_bytes=4 * 30 * 2 * 3)

    def value_and_gradient(objective):
        return jax.value_and_grad(lambda p: objective.terms(p, batch, Context())["loss"].sum)(PARAMS)

    (plain, plain_gradient), (small, small_gradient) = value_and_gradient(OBJECTIVE), value_and_gradient(chunked)
    assert float(plain) == pytest.approx(float(small), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain_gradient, small_gradient)


def test_terms_add_before_they_divide():
    left, right = {"loss": Term(jnp.array(6.0), jnp.array(3.0))}, {"loss": Term(jnp.array(10.0), jnp.array(1.0))}
    assert float(means(add_terms(left, right))["loss"]) == 4.0
    assert float(means({"loss": Term(jnp.array(0.0), jnp.array(0.0))})["loss"]) == 0.0
