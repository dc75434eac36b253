"""Numbers made of a model's output: what a patch moves, and what a saliency is the gradient of."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from flaxllm.errors import InputError
from flaxllm.interpret.forward import writer
from flaxllm.models import Model
from flaxllm.models.output import Output
from flaxllm.nn import Context

Metric = Callable[[Output], Array]
OnePerRow = int | np.integer | Int[Array | np.ndarray, ""] | Int[Array | np.ndarray, "batch"]


def logit_difference(
    model: Model, params: dict, right: OnePerRow, wrong: OnePerRow | None = None, position: OnePerRow = -1
) -> Metric:
    """A metric: the logit of the token `right` less that of `wrong` (the logit alone if that is None) at a position, the
    mean over the batch. Each is one number, or one for each row. A position below 0 counts from the row's end, padding
    included; one beyond the row gives NaN.

    It is data: with other tokens or another position of the same shapes, a function of it is not compiled anew.

    Raises:
      InputError: a model without logits over a vocabulary, or a token beyond that.
    """
    writer(model)
    right, wrong = (None if ids is None else known_tokens(model, ids) for ids in (right, wrong))
    return Partial(_mean_difference, model, params, right, wrong, jnp.asarray(position))


def _mean_difference(
    model: Model, params: dict, right: Array, wrong: Array | None, position: Array, output: Output
) -> Float[Array, ""]:
    return difference(model, params, at(output.hidden, position), right, wrong).mean()


def difference(
    model: Model, params: dict, hidden: Float[Array, "batch embed"], right: Array, wrong: Array | None,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Float[Array, "batch"]:  # fmt: skip
    """The logit of `right` less that of `wrong`, given hidden states after the final norm."""
    logits = model.unembed(params, hidden, ctx=ctx)
    rows = jnp.arange(logits.shape[0])
    return logits[rows, right] if wrong is None else logits[rows, right] - logits[rows, wrong]


def at(x: Float[Array, "batch length *rest"], position: Array) -> Float[Array, "batch *rest"]:
    """What stands at a position of each row; NaN beyond the row."""
    return x.at[jnp.arange(x.shape[0]), position].get(mode="fill", fill_value=jnp.nan)


def known_tokens(model: Model, ids: OnePerRow) -> Int[Array, ""] | Int[Array, "batch"]:
    """The tokens as an array.

    Raises:
      InputError: one of them is not in the vocabulary.
    """
    size, ids = model.config.vocab_size, np.asarray(ids)
    if not ((ids >= 0) & (ids < size)).all():
        raise InputError(f"the token {ids.tolist()} is not in this model's vocabulary: expected a number of 0 to {size - 1}")
    return jnp.asarray(ids)


def as_data(metric: Metric) -> Partial:
    """The metric as a pytree, which `jit` takes: what a plain function closes over is part of the program."""
    return metric if isinstance(metric, Partial) else Partial(metric)


def measured(metric: Metric, output: Output) -> Float[Array, ""]:
    """What the metric gives.

    Raises:
      InputError: it is no single number.
    """
    value = metric(output)
    if jnp.shape(value) != ():
        raise InputError(f"the metric gives an array of shape {jnp.shape(value)}: expected one number for the whole batch")
    return value
