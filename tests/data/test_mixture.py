"""Sets mixed by their sizes or by rates, against the formulas."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxllm.data import Mixture, mixing_rates
from flaxllm.errors import InputError


def test_rates_are_sizes_up_to_a_limit():
    np.testing.assert_allclose(mixing_rates([10, 30, 60]), [0.1, 0.3, 0.6])
    np.testing.assert_allclose(mixing_rates([10, 30, 60], limit=30), [1 / 7, 3 / 7, 3 / 7])


def test_temperature_makes_rates_alike():
    expected = np.array([10, 30, 60]) ** 0.5
    np.testing.assert_allclose(mixing_rates([10, 30, 60], temperature=2.0), expected / expected.sum())
    np.testing.assert_allclose(mixing_rates([10, 30, 60], temperature=1e9), [1 / 3] * 3, rtol=1e-6)


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 10.0)), min_size=1, max_size=4))
def test_every_item_is_there_and_parts_stand_in_their_ratio(parts):
    sizes, rates = zip(*parts)
    mixed = Mixture([[(number, item) for item in range(size)] for number, size in enumerate(sizes)], rates)
    counts = Counter(mixed[index] for index in range(len(mixed)))
    shares = np.zeros(len(sizes))
    for number, size in enumerate(sizes):
        own = [counts[number, item] for item in range(size)]
        assert min(own) >= 1 and max(own) - min(own) <= 1
        shares[number] = sum(own)
    scale = max(size / rate for size, rate in zip(sizes, rates))
    assert np.all(np.abs(shares - scale * np.array(rates)) <= 1.0)


def test_what_cannot_be_mixed_is_refused():
    for parts, rates in (([[1], []], [1.0, 1.0]), ([[1], [2]], [1.0, 0.0])):
        with pytest.raises(InputError, match="a mixture has an empty set, or a rate that is not above 0"):
            Mixture(parts, rates)
    with pytest.raises(InputError, match="temperature 0.0 and limit None"):
        mixing_rates([1, 2], temperature=0.0)
    with pytest.raises(IndexError):
        Mixture([[1, 2]], [1.0])[2]
