import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from flaxllm.objectives.cross_entropy import chunks_needed, cross_entropy

BATCH, LENGTH, WIDTH, VOCAB = 3, 12, 8, 31
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(BATCH, LENGTH, WIDTH))
TABLE = RNG.normal(size=(VOCAB, WIDTH))
TARGETS = RNG.integers(0, VOCAB, (BATCH, LENGTH))
WEIGHTS = RNG.uniform(size=(BATCH, LENGTH)) * (RNG.uniform(size=(BATCH, LENGTH)) < 0.7)


def reference(z_loss: float, smoothing: float) -> tuple:
    """The loss's sum and its gradients, by formula in float64."""
    logits = HIDDEN @ TABLE.T
    goal = (1 - smoothing) * np.eye(VOCAB)[TARGETS] + smoothing / VOCAB
    log_partition = (logits - log_softmax(logits, -1))[..., 0]
    loss = -(goal * log_softmax(logits, -1)).sum(-1) + z_loss * log_partition**2
    probabilities = softmax(logits, -1)
    dlogits = probabilities - goal + (2 * z_loss * log_partition)[..., None] * probabilities
    dlogits *= WEIGHTS[..., None]
    return (loss * WEIGHTS).sum(), dlogits @ TABLE, np.einsum("btv,btd->vd", dlogits, HIDDEN)


def terms(hidden, table, chunks, z_loss=0.0, smoothing=0.0):
    return cross_entropy(
        lambda h: h @ table.T, hidden, jnp.asarray(TARGETS), jnp.asarray(WEIGHTS), z_loss, smoothing, chunks
    )


@pytest.mark.parametrize("chunks", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.0), (0.0, 0.1), (1e-2, 0.1)])
def test_loss_and_gradients_are_the_formula_in_float64(chunks, z_loss, smoothing):
    with jax.enable_x64(True):
        arrays = jnp.asarray(HIDDEN), jnp.asarray(TABLE)

        def loss(hidden, table):
            return 3.0 * terms(hidden, table, chunks, z_loss, smoothing)["loss"].sum

        value, gradients = jax.value_and_grad(loss, (0, 1))(*arrays)
        expected, dhidden, dtable = reference(z_loss, smoothing)
        np.testing.assert_allclose(value, 3 * expected, rtol=1e-12)
        np.testing.assert_allclose(gradients[0], 3 * dhidden, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(gradients[1], 3 * dtable, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("chunks", [1, 4])
def test_what_is_watched_carries_no_regularizer_and_no_gradient(chunks):
    hidden, table = jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(TABLE, jnp.float32)
    got = terms(hidden, table, chunks, z_loss=0.1, smoothing=0.1)
    np.testing.assert_allclose(got["cross_entropy"].sum, reference(0.0, 0.0)[0], rtol=1e-5)
    best = (HIDDEN @ TABLE.T).argmax(-1) == TARGETS
    np.testing.assert_allclose(got["accuracy"].sum, (best * WEIGHTS).sum(), rtol=1e-5)
    assert all(float(term.weight) == pytest.approx(WEIGHTS.sum()) for term in got.values())
    gradient = jax.grad(lambda h: terms(h, table, chunks)["cross_entropy"].sum)(hidden)
    np.testing.assert_array_equal(gradient, 0.0)


def test_chunked_never_holds_all_the_logits(optimized):
    hidden = jax.ShapeDtypeStruct((1, 64, 16), jnp.float32)
    table = jax.ShapeDtypeStruct((40_000, 16), jnp.float32)

    def loss(hidden, table, chunks):
        targets, weights = jnp.zeros((1, 64), jnp.int32), jnp.ones((1, 64))
        return cross_entropy(lambda h: h @ table.T, hidden, targets, weights, chunks=chunks)["loss"].sum

    def temporary_bytes(chunks):
        gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
        return gradient.lower(hidden, table, chunks).compile().memory_analysis().temp_size_in_bytes

    whole, table_bytes = 64 * 40_000 * 4, 40_000 * 16 * 4
    assert temporary_bytes(1) >= whole
    assert temporary_bytes(16) < whole / 16 * 3 + 2 * table_bytes


def test_chunks_are_as_few_as_the_bound_allows():
    assert chunks_needed(4, 256, 50_257, 2**30) == 1
    assert chunks_needed(4, 256, 50_257, 4 * 4 * 256 * 50_257 // 3) == 4  # 3 does not divide 256
    assert chunks_needed(1, 7, 10, 100) == 7
    assert chunks_needed(1, 8, 1000, 1) == 8
