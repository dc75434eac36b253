"""Optax optimizers and schedules from config; what each tensor is (matrix, table, bias) comes from its specification.

Weight decay is decoupled and scaled by the learning rate for every optimizer (Loshchilov and Hutter 2019), and acts on
matrices and lookup tables only.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

from flaxllm.errors import InputError, did_you_mean
from flaxllm.nn import LAYERS, Param, map_specs

Schedule = Callable[[Array | int], Array]


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

    Raises:
      InputError: an unknown optimizer.
    """
    if config.name not in OPTIMIZERS:
        raise InputError(f"unknown optimizer.name {config.name!r}: {did_you_mean(config.name, OPTIMIZERS)}")
    optimizer = OPTIMIZERS[config.name](config, schedule, specs)
    # One structure of the state with and without clipping, so that a run can change it when it resumes.
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, optimizer)


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
