"""The contract of an objective, and the arithmetic of its terms.

A term is a (sum, weight) pair. Sums and weights are added over micro-batches, devices and hosts before anything is
divided: a mean of means is another number wherever the weights are ragged.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxllm.nn import Context

Batch = dict[str, Array]


class Term(NamedTuple):
    """A sum and the weight that it is to be divided by, once both are complete."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]


class Objective(NamedTuple):
    """What is learned, as functions.

    `terms(params, batch, ctx)` gives the named terms of a batch, those that are minimised and those only watched.
    `weights(batch)` gives, without running the model, the weight of each term that is minimised: the loss is the sum
    over them of sum / weight, with the weights of the whole batch.
    `example(tokens, rng)` makes the arrays of one example from a piece of text (numpy, on the host).
    `piece_len` is how many tokens such a piece has at most.
    """

    terms: Callable[[Any, Batch, Context], dict[str, Term]]
    weights: Callable[[Batch], dict[str, Array]]
    example: Callable[[np.ndarray, np.random.Generator], dict[str, np.ndarray]]
    piece_len: int


def add_terms(left: dict[str, Term], right: dict[str, Term]) -> dict[str, Term]:
    return jax.tree.map(jnp.add, left, right)


def means(terms: dict[str, Term]) -> dict[str, Array]:
    """Each term's mean; 0 where there was nothing to weigh."""
    return {name: ratio(term.sum, term.weight) for name, term in terms.items()}


def ratio(total: Array, weight: Array) -> Array:
    return jnp.where(weight == 0, 0.0, total / jnp.where(weight == 0, 1.0, weight))
