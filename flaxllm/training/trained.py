"""What of a model is trained: all of its parameters, or an adapter to them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from flaxllm.models import Model
from flaxllm.models.lora import TARGETS, attach, init_adapter, lora_specs, merge
from flaxllm.nn import Key, count, flatten, unflatten
from flaxllm.nn.patterns import matching
from flaxllm.training.state import train_all
from flaxllm.training.step import all_trained

FROZEN = "frozen"  # the field of a train state that holds what is not trained


class Trained(NamedTuple):
    """`specs` are those of what is trained, `state_specs` those of all that a state holds, and `size` how many numbers change.
    `split(params, key)` gives what is trained of a model's parameters and what stays as it is; `assemble(trained, frozen)` the
    parameters that the model takes, and `merge(trained, frozen)` plain ones, to be kept."""

    specs: dict
    state_specs: dict
    size: int
    split: Callable[[dict, Key], tuple[dict, Any]]
    assemble: Callable[[dict, Any], dict]
    merge: Callable[[dict, Any], dict]


def what_is_trained(config: ConfigDict, model: Model) -> Trained:
    """What the config says: an adapter if `lora.rank` is above 0.

    Raises:
      InputError: an adapter that does not fit the model.
    """
    lora = config.lora
    specs = model.param_specs() if not lora.rank else lora_specs(model, lora.rank, lora.targets or TARGETS, lora.whole)
    flat = flatten(specs)
    held = matching(config.optimizer.freeze, flat, "optimizer.freeze")
    size = count({path: param for path, param in flat.items() if path not in held})
    if not lora.rank:
        return Trained(specs, specs, size, train_all, partial(_held, held) if held else all_trained, all_trained)
    return Trained(
        specs=specs,
        state_specs=specs | {FROZEN: model.param_specs()},
        size=size,
        split=lambda params, key: (init_adapter(specs, params, key), params),
        assemble=partial(_attached, model, lora.alpha, lora.dropout),
        merge=lambda trained, frozen: merge(model, frozen, trained, lora.alpha),
    )


def _held(paths: set[str], trained: dict, frozen: None) -> dict:
    """The parameters, those at `paths` without a gradient: nothing is computed for it, and no norm counts it."""
    return unflatten({path: jax.lax.stop_gradient(x) if path in paths else x for path, x in flatten(trained).items()})


def _attached(model: Model, alpha: float, dropout: float, trained: dict, frozen: dict) -> dict:
    return attach(model, frozen, trained, alpha, dropout=dropout)
