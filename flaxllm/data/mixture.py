"""Several sets as one, each as often as it is to be seen."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxllm.errors import InputError


def mixing_rates(sizes: Sequence[int], limit: int | None = None, temperature: float = 1.0) -> list[float]:
    """Each set's share by its size, as if it had `limit` examples at most, to the power of 1 / temperature: higher ones make
    the shares more alike (Raffel et al. 2020, section 3.5.2).

    Raises:
      InputError: a temperature or a limit that is not positive.
    """
    if temperature <= 0 or limit is not None and limit <= 0:
        raise InputError(f"a mixture cannot have temperature {temperature} and limit {limit}: use numbers above 0")
    weights = [min(size, limit or size) ** (1.0 / temperature) for size in sizes]
    return [weight / sum(weights) for weight in weights]


class Mixture(Sequence[Any]):
    """Sequences one after another, each repeated until the parts stand in the ratio of `rates`.

    The one that is seen least often has each of its items once, the others as often as their rate asks: shuffled, it gives
    any stretch the right shares.
    """

    def __init__(self, parts: Sequence[Sequence[Any]], rates: Sequence[float]):
        if not all(map(len, parts)) or not all(rate > 0 for rate in rates):
            raise InputError("a mixture has an empty set, or a rate that is not above 0: leave such a set out")
        self._parts = list(parts)
        whole = max(len(part) / rate for part, rate in zip(parts, rates, strict=True)) * sum(rates)
        counts = [max(len(part), math.floor(whole * rate / sum(rates) + 0.5)) for part, rate in zip(parts, rates)]
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self._parts[number]
        return part[(index - (self._ends[number - 1] if number else 0)) % len(part)]
