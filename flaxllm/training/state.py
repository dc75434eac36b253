"""The state of a training run: all that one step reads and writes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from flaxllm.nn import Key


class TrainState(struct.PyTreeNode):
    """`step` is how many steps were taken; `key` stays as it is, and the randomness of a step is `fold_in(key, step)`.

    `params` are what is trained, `frozen` what the model needs beside them, if only a part is. The leaves are arrays, or
    what stands for them: shapes, shardings.
    """

    step: Any
    params: Any
    opt_state: Any
    key: Any
    frozen: Any = None


def train_all(params: dict, key: Key) -> tuple[dict, None]:
    """The `split` of a model of which all is trained."""
    return params, None


def make_state(
    init: Callable[[Key], dict],
    optimizer: optax.GradientTransformation,
    seed: int,
    split: Callable[[dict, Key], tuple[dict, Any]] = train_all,
) -> TrainState:
    """The state before the first step; `split(params, key)` tells what is trained of the initial parameters, and what is not."""
    init_key, step_key = keys(seed)
    params, frozen = split(init(init_key), init_key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), step_key, frozen)


def keys(seed: int) -> tuple[Key, Key]:
    """The key of the initial parameters, and that of the steps."""
    init_key, step_key = jax.random.split(jax.random.PRNGKey(seed))
    return init_key, step_key
