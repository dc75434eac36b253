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

    The leaves are arrays, or what stands for them: shapes, shardings.
    """

    step: Any
    params: Any
    opt_state: Any
    key: Any


def make_state(init: Callable[[Key], dict], optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    init_key, step_key = jax.random.split(jax.random.PRNGKey(seed))
    params = init(init_key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), step_key)
