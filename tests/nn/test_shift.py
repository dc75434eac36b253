import jax.numpy as jnp
import numpy as np

from flaxllm import nn


def test_each_text_begins_with_the_start_and_follows_one_place_late():
    tokens = jnp.array([[5, 6, 7, 8, 9, 10], [0, 0, 5, 6, 7, 8]])
    packed_and_padded = jnp.array([[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]])
    shifted = nn.shift_right(tokens, packed_and_padded, 3)
    np.testing.assert_array_equal(shifted, [[3, 5, 6, 3, 8, 3], [3, 3, 3, 5, 6, 7]])
    np.testing.assert_array_equal(nn.shift_right(tokens, jnp.arange(6)[None], 3)[0], [3, 5, 6, 7, 8, 9])
