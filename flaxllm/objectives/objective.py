"""The contract of an objective, and the arithmetic of its terms.

A term is a (sum, weight) pair. Sums and weights are added over micro-batches, devices and hosts before anything is
divided: a mean of means is another number wherever the weights are ragged.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxllm.nn import Context

Batch = dict[str, Array]
Item = Any
Watch = Callable[[Iterable[Any], int], Iterable[Any]]


class Term(NamedTuple):
    """A sum and the weight that it is to be divided by, once both are complete."""

    sum: Float[Array, ""]
    weight: Float[Array, ""]


class Judge(NamedTuple):
    """How what a model says is scored over a whole set, where that is no sum over its examples.

    `outputs(params, batch, ctx)` gives arrays with a row for each row of the batch, and `score(items, outputs)` the numbers:
    it gets all items and, row by row, what was said of each. Without `outputs` the model writes: `prompt(item)` gives the
    tokens to go on from, or to transform, and `score(items, texts)` gets what was written. `library` is the module that
    `score` needs beside the plain install.
    """

    score: Callable[[Sequence[Item], Any], dict[str, float]]
    outputs: Callable[[Any, Batch, Context], dict[str, Array]] | None = None
    prompt: Callable[[Item], np.ndarray] | None = None
    library: str | None = None


class Objective(NamedTuple):
    """What is learned, as functions.

    `terms(params, batch, ctx)` gives the named terms of a batch, those that are minimised and those only watched.
    `weights(batch)` gives, without running the model, the weight of each term that is minimised: the loss is the sum
    over them of sum / weight, with the weights of the whole batch.
    `items(source)` gives what examples are made of: from a corpus's `Documents`, or, where `fields` names the fields that
    are read of a record, from a list of records. `example(item, rng)` makes the arrays of one example (numpy, on the host).
    `empty_row` has zeros of the shapes and dtypes of a row of a batch; `packs` says that several examples may share one.
    `prepare(params, items, watch)` gives items that know what the parameters that training starts from make of them, where an
    objective asks for it; that takes long, and what it goes through goes through `watch(batches, count)` for a person to see.
    `judge` scores a whole set. `tells_all` says that each token of a text but its first is predicted once, so that the loss is
    the text's code length.
    """

    terms: Callable[[Any, Batch, Context], dict[str, Term]]
    weights: Callable[[Batch], dict[str, Array]]
    items: Callable[[Any], Sequence[Item]]
    example: Callable[[Item, np.random.Generator], dict[str, np.ndarray]]
    empty_row: Mapping[str, np.ndarray]
    packs: bool = True
    fields: tuple[str, ...] = ()
    prepare: Callable[[Any, Sequence[Item], Watch], Sequence[Item]] | None = None
    judge: Judge | None = None
    tells_all: bool = False


def add_terms(left: dict[str, Term], right: dict[str, Term]) -> dict[str, Term]:
    return jax.tree.map(jnp.add, left, right)


def means(terms: dict[str, Term]) -> dict[str, Array]:
    """Each term's mean; 0 where there was nothing to weigh."""
    return {name: ratio(term.sum, term.weight) for name, term in terms.items()}


def ratio(total: Array, weight: Array) -> Array:
    return jnp.where(weight == 0, 0.0, total / jnp.where(weight == 0, 1.0, weight))
