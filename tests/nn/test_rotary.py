import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm.nn import RotaryScaling, rotary_frequencies, rotary_magnitude, rotate, rotation

LLAMA3 = RotaryScaling("llama3", 8.0, 8192, 1.0, 4.0)
YARN = RotaryScaling("yarn", 4.0, 32768, 1.0, 32.0)


@pytest.mark.parametrize(("head_dim", "base"), [(2, 10_000.0), (10, 1_000.0), (64, 1e5), (128, 5e5)])
def test_frequencies_are_the_papers(head_dim, base):
    expected = [base ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    found = rotary_frequencies(head_dim, base)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=3e-7)


def test_linear_scaling_divides_all_frequencies():
    scaled = rotary_frequencies(64, 10_000.0, RotaryScaling("linear", 2.5))
    np.testing.assert_allclose(scaled, rotary_frequencies(64, 10_000.0) / 2.5, rtol=1e-6)


def test_llama3_scaling_is_that_of_the_released_code():
    """Wavelengths below a quarter of the old context stay, those above all of it are scaled, others lie between."""
    expected = []
    for i in range(64):
        frequency = 5e5 ** (-2 * i / 128)
        wavelength = 2 * math.pi / frequency
        if wavelength > 8192:
            frequency /= 8
        elif wavelength > 8192 / 4:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            frequency = (1 - smooth) * frequency / 8 + smooth * frequency
        expected.append(frequency)
    np.testing.assert_allclose(rotary_frequencies(128, 5e5, LLAMA3), expected, rtol=1e-5)


def test_yarn_scaling_is_that_of_its_paper():
    """Section 3.2 with the ramp over dimensions of the released code, for Qwen2.5's settings."""
    plain = 1e6 ** (-np.arange(0, 128, 2) / 128)
    first, last = (128 * math.log(32768 / (turns * 2 * math.pi)) / (2 * math.log(1e6)) for turns in (32, 1))
    first, last = math.floor(first), math.ceil(last)
    assert 0 < first < last < 64
    scaled = np.clip((np.arange(64) - first) / (last - first), 0, 1)
    np.testing.assert_allclose(rotary_frequencies(128, 1e6, YARN), plain * (1 - scaled) + plain / 4 * scaled, rtol=1e-6)


def test_only_yarn_lengthens_queries_and_keys():
    assert rotary_magnitude(YARN) == pytest.approx(1 + 0.1 * math.log(4))
    assert rotary_magnitude(None) == rotary_magnitude(LLAMA3) == rotary_magnitude(RotaryScaling("yarn", 1.0)) == 1.0


@pytest.mark.parametrize("magnitude", [1.0, 1.25])
def test_each_pair_turns_as_a_complex_number(magnitude):
    x = jax.random.normal(jax.random.PRNGKey(0), (2, 5, 3, 8))
    positions = jnp.array([[0, 1, 2, 3, 4], [7, 8, 0, 1, 500]])
    frequencies = rotary_frequencies(8, 100.0)
    turned = rotate(x, rotation(positions, frequencies, magnitude))
    pairs = np.asarray(x[..., :4], np.float64) + 1j * np.asarray(x[..., 4:], np.float64)
    angles = np.asarray(positions, np.float64)[:, :, None, None] * frequencies.astype(np.float64)
    expected = magnitude * pairs * np.exp(1j * angles)
    np.testing.assert_allclose(turned, np.concatenate([expected.real, expected.imag], -1), atol=5e-5)


def test_products_depend_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.PRNGKey(1), (2, 1, 6, 2, 16))
    frequencies = rotary_frequencies(16, 10_000.0)

    def products(start: int) -> jax.Array:
        by = rotation(start + jnp.arange(6)[None], frequencies)
        return jnp.einsum("bthd,bshd->bhts", rotate(q, by), rotate(k, by))

    np.testing.assert_allclose(products(0), products(300), atol=1e-3)
    assert jnp.abs(products(0) - jnp.einsum("bthd,bshd->bhts", q, k)).max() > 0.5


def test_low_precision_is_rounded_once_at_the_end():
    x = jax.random.normal(jax.random.PRNGKey(2), (1, 4, 1, 8)).astype(jnp.bfloat16)
    by = rotation(jnp.array([[4001, 4002, 4003, 4004]]), rotary_frequencies(8, 10_000.0))
    turned = rotate(x, by)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, rotate(x.astype(jnp.float32), by).astype(jnp.bfloat16))
