import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn


def exact(positions: np.ndarray, width: int, interleaved: bool) -> np.ndarray:
    """Vaswani et al. 2017, section 3.5, component by component in float64."""
    vectors = np.zeros((*positions.shape, width))
    for i in range(width // 2):
        angle = positions / 10000 ** (2 * i / width)
        places = (2 * i, 2 * i + 1) if interleaved else (i, width // 2 + i)
        vectors[..., places[0]], vectors[..., places[1]] = np.sin(angle), np.cos(angle)
    return vectors


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("width", [2, 14, 512])
def test_vectors_are_the_formula_of_the_paper(width, interleaved, optimized):
    positions = np.arange(4096).reshape(2, 2048)
    vectors = jax.jit(lambda p: nn.sinusoids(p, width, interleaved))(positions)
    assert vectors.dtype == jnp.float32
    np.testing.assert_allclose(vectors, exact(positions, width, interleaved), rtol=0, atol=2e-6)


def test_far_positions_keep_four_decimals():
    positions = np.arange(0, 65536, 7)
    np.testing.assert_allclose(nn.sinusoids(jnp.asarray(positions), 512), exact(positions, 512, True), rtol=0, atol=3e-5)
