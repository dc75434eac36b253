"""Optax optimizers and schedules from config; what each tensor is (matrix, table, bias) comes from its specification.

Weight decay is decoupled and scaled by the learning rate for every optimizer (Loshchilov and Hutter 2019), and acts on
matrices and lookup tables only. What is frozen has no state and never changes.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

from flaxllm.errors import InputError, did_you_mean
from flaxllm.nn import LAYERS, Param, map_specs
from flaxllm.nn.patterns import matching

Schedule = Callable[[Array | int], Array]

TRAINED, FROZEN = "trained", "frozen"


def make_schedule(config: ConfigDict, num_steps: int) -> Schedule:
    """The learning rate by step: a linear warmup over `warmup_steps`, then the named decay.

    "cosine" and "linear" fall to `final_fraction` of the peak at `num_steps`; "rsqrt" falls as 1 / sqrt(step) (Vaswani et
    al. 2017, section 5.3); "constant" stays.

    Raises:
      InputError: an unknown schedule, or a warmup longer than the run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if not 0 <= warmup <= num_steps:
        raise InputError(f"optimizer.warmup_steps is {warmup}, which must lie between 0 and the run's {num_steps} steps")
    rest, final = max(1, num_steps - warmup), config.final_fraction
    decays = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=final),
        "linear": lambda: optax.linear_schedule(peak, peak * final, rest),
        "rsqrt": lambda: lambda step: peak * jnp.sqrt(max(1, warmup) / (jnp.maximum(step, 0) + max(1, warmup))),
        "constant": lambda: optax.constant_schedule(peak),
    }
    if config.schedule not in decays:
        raise InputError(f"unknown optimizer.schedule {config.schedule!r}: {did_you_mean(config.schedule, decays)}")
    if warmup == 0:
        return decays[config.schedule]()
    # The first step already moves: step 0 has 1 / warmup of the peak.
    rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([rise, decays[config.schedule]()], [warmup])


def make_optimizer(config: ConfigDict, schedule: Schedule, specs: dict) -> optax.GradientTransformation:
    """The named optimizer for parameters of these specifications, with gradients clipped to `clip_norm` (0: never).

    Parameters whose paths match one of the patterns of `freeze` stay as they are: they have no state, and the norm that is
    clipped is that of the others' gradients. `layer_decay` is as for `layer_factors`.

    Raises:
      InputError: an unknown optimizer, a pattern that matches nothing or leaves nothing, or a `layer_decay` that is none.
    """
    if config.name not in OPTIMIZERS:
        raise InputError(f"unknown optimizer.name {config.name!r}: {did_you_mean(config.name, OPTIMIZERS)}")
    labels = _labels(specs, config.freeze)
    trained, factors = (_trained(labels, tree) for tree in (specs, layer_factors(specs, config.layer_decay)))
    # One structure of the state with and without each, so that a run can change them when it resumes.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    by_layer = _times(factors) if config.layer_decay < 1.0 else optax.identity()
    optimizer = optax.chain(clip, OPTIMIZERS[config.name](config, schedule, trained), by_layer)
    if FROZEN not in jax.tree.leaves(labels):
        return optimizer
    return optax.partition({TRAINED: optimizer, FROZEN: optax.set_to_zero()}, labels)


def layer_factors(specs: dict, layer_decay: float) -> dict:
    """What each tensor's learning rate is multiplied by (Clark et al. 2020, appendix B; counted as in Bao et al. 2022's code).

    In layer l (from 0) of L it is `layer_decay ** (L - l)`, in embeddings `layer_decay ** (L + 1)`, and elsewhere 1: in a head, a
    pooler, a last norm, a bias that all layers share. For a stacked tensor it is an array along its layers. An encoder and a
    decoder are each counted from their own top, as every layer of the decoder reads the encoder's last; L is then the greater.

    Raises:
      InputError: `layer_decay` is not above 0 and at most 1.
    """
    if not 0.0 < layer_decay <= 1.0:
        raise InputError(f"optimizer.layer_decay is {layer_decay}: expected a number above 0 and at most 1 (for none)")
    places, structure = _places(specs)
    depths: dict[str, int] = {}
    for place in places:
        if place.stack is not None:
            last = place.param.shape[0] - 1 if place.layer is None else place.layer
            depths[place.stack] = max(depths.get(place.stack, 0), last + 1)

    def factor(place: _Place) -> float | np.ndarray:
        if place.path.startswith("embedding/"):
            return layer_decay ** (max(depths.values(), default=0) + 1)
        if place.stack is None:
            return 1.0
        depth = depths[place.stack]
        if place.layer is not None:
            return layer_decay ** (depth - place.layer)
        return (layer_decay ** np.arange(depth, 0, -1)).reshape(-1, *[1] * (len(place.param.shape) - 1))

    return jax.tree.unflatten(structure, map(factor, places))


class _Place(NamedTuple):
    """Where a tensor is. `path` has no layer's number in it; `stack` is what comes before the layers in it, None outside of
    them; `layer` is its number where layers are apart."""

    path: str
    param: Param
    stack: str | None
    layer: int | None


def _places(specs: dict) -> tuple[list[_Place], jax.tree_util.PyTreeDef]:
    leaves, structure = jax.tree_util.tree_flatten_with_path(specs, is_leaf=lambda x: isinstance(x, Param))
    places = []
    for keys, param in leaves:
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        layer = next((key.idx for key in keys if isinstance(key, jax.tree_util.SequenceKey)), None)
        stack = "/".join(names[: names.index(LAYERS)]) if LAYERS in names else None
        places.append(_Place("/".join(names), param, stack, layer))
    return places, structure


def _labels(specs: dict, freeze: Iterable[str]) -> dict:
    """Whether each tensor is trained or frozen."""
    places, structure = _places(specs)
    frozen = matching(freeze, {place.path for place in places}, "optimizer.freeze")
    if all(place.path in frozen for place in places):
        raise InputError("optimizer.freeze matches every parameter: leave something to train")
    return jax.tree.unflatten(structure, [FROZEN if place.path in frozen else TRAINED for place in places])


def _times(factors: dict) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda f, x: (f * x).astype(x.dtype), factors, updates))


def _trained(labels: dict, tree: dict) -> dict:
    return jax.tree.map(lambda label, x: x if label == TRAINED else optax.MaskedNode(), labels, tree)


def decay_mask(specs: dict) -> dict:
    """True for the tensors that weight decay acts on."""
    return map_specs(lambda param: param.is_matrix, specs)


def _adamw(config: ConfigDict, schedule: Schedule, specs: dict) -> optax.GradientTransformation:
    return optax.adamw(
        schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask(specs)
    )


def _lion(config: ConfigDict, schedule: Schedule, specs: dict) -> optax.GradientTransformation:
    return optax.lion(schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=decay_mask(specs))


def _muon(config: ConfigDict, schedule: Schedule, specs: dict) -> optax.GradientTransformation:
    """Muon on the hidden matrices, AdamW on the rest; updates are scaled to AdamW's size, so that its learning rates
    and decay serve (Liu et al. 2025, section 2.2)."""

    def dimensions(param: Param) -> MuonDimensionNumbers | None:
        if not param.is_matrix or param.is_lookup:
            return None
        return MuonDimensionNumbers(
            tuple(param.axes.index(a) for a in param.inputs), tuple(param.axes.index(a) for a in param.outputs)
        )

    orthogonal = muon(
        schedule,
        beta=config.momentum,
        eps=config.eps,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=map_specs(dimensions, specs),
        consistent_rms=0.2,
    )
    return optax.chain(orthogonal, _decay(config, schedule, specs))


def _adafactor(config: ConfigDict, schedule: Schedule, specs: dict) -> optax.GradientTransformation:
    """Shazeer and Stern 2018, with its second moment factored over the matrix of each tensor, layer by layer."""
    factored = per_matrix(optax.adafactor(schedule, multiply_by_parameter_scale=False), specs)
    return optax.chain(factored, _decay(config, schedule, specs))


def _decay(config: ConfigDict, schedule: Schedule, specs: dict) -> optax.GradientTransformation:
    """Weight decay for the optimizers of optax that have none, or none that leaves biases alone."""
    return optax.add_decayed_weights(lambda step: -config.weight_decay * schedule(step), decay_mask(specs))


def per_matrix(optimizer: optax.GradientTransformation, specs: dict) -> optax.GradientTransformation:
    """Show `optimizer` each matrix as `[inputs, outputs]`, and each layer of a stacked tensor on its own.

    For optimizers that look at a tensor as a whole (factored moments, norms of an update): the numbers are those of
    the same parameters as separate two-dimensional tensors.
    """

    def as_matrix(param: Param, x: Array) -> Array:
        stacked = param.axes[:1] == (LAYERS,)
        if not param.is_matrix:
            return x
        order = [param.axes.index(a) for a in (*param.axes[:stacked], *param.inputs, *param.outputs)]
        return jnp.transpose(x, order).reshape(*x.shape[:stacked], param.fan_in, -1)

    def from_matrix(param: Param, x: Array) -> Array:
        if not param.is_matrix:
            return x
        order = (*param.axes[: param.axes[:1] == (LAYERS,)], *param.inputs, *param.outputs)
        x = x.reshape([param.axis_size(a) for a in order])
        return jnp.transpose(x, [order.index(a) for a in param.axes])

    def apart(tree: dict) -> tuple[dict, dict]:
        """The leaves by position, those of stacked tensors and the others."""
        matrices = jax.tree.leaves(map_specs_with(as_matrix, specs, tree))
        stacked = {str(i): x for i, x in enumerate(matrices) if is_stacked[i]}
        return stacked, {str(i): x for i, x in enumerate(matrices) if not is_stacked[i]}

    def together(stacked: dict, single: dict) -> dict:
        leaves = [(stacked | single)[str(i)] for i in range(len(is_stacked))]
        return map_specs_with(from_matrix, specs, jax.tree.unflatten(structure, leaves))

    flat_specs, structure = jax.tree.flatten(specs, is_leaf=lambda x: isinstance(x, Param))
    is_stacked = [param.axes[:1] == (LAYERS,) for param in flat_specs]

    by_layer = jax.vmap if any(is_stacked) else lambda function: function

    def init(params: dict) -> tuple:
        stacked, single = apart(params)
        return by_layer(optimizer.init)(stacked), optimizer.init(single)

    def update(gradients: dict, state: tuple, params: dict) -> tuple[dict, tuple]:
        (stacked, single), (stacked_params, single_params) = apart(gradients), apart(params)
        stacked_updates, stacked_state = by_layer(optimizer.update)(stacked, state[0], stacked_params)
        single_updates, single_state = optimizer.update(single, state[1], single_params)
        return together(stacked_updates, single_updates), (stacked_state, single_state)

    return optax.GradientTransformation(init, update)


def map_specs_with(function: Callable[[Param, Array], Array], specs: dict, tree: dict) -> dict:
    return jax.tree.map(function, specs, tree, is_leaf=lambda x: isinstance(x, Param))


OPTIMIZERS = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "muon": _muon}
