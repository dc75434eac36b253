"""Low-rank adaptation (Hu et al. 2021) of any family: what an adapter holds, and how it is put on parameters.

An adapter is a plain tree beside the model's: `{"down", "up"}` in place of each kernel that it adapts, and a whole tensor in
place of each parameter that is trained as it is (a new head). So it trains alone:

    loss(adapter) = ... model.apply(attach(model, params, adapter, alpha), tokens)
"""

import math
import string
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flaxllm import nn
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models import Model
from flaxllm.nn import Param, Weight
from flaxllm.nn.low_rank import LowRank
from flaxllm.nn.patterns import matching
from flaxllm.nn.weights import Kept

TARGETS = ("*/query/kernel", "*/value/kernel")  # Hu et al. 2021, section 7.1
RANK = "rank"

Factors = dict[str, Array]


def lora_specs(model: Model, rank: int, targets: Iterable[str] = TARGETS, whole: Iterable[str] = ()) -> dict:
    """The specifications of an adapter of the kernels (or token tables) whose paths match `targets`, and of copies of the
    parameters that match `whole`, to be trained as they are. Patterns are those of `nn.patterns`.

    `down` starts uniform in `+-1 / sqrt(inputs)`, as in PEFT, and `up` at 0. The adapter of a table that also makes the logits
    changes both uses of it.

    Raises:
      InputError: a rank below 1, a pattern that matches nothing, a target that is no kernel, or one that is also whole.
    """
    if rank < 1:
        raise InputError(f"the rank of an adapter is {rank}: expected 1 or more")
    specs = nn.flatten(model.param_specs())
    kernels = [path for path, param in specs.items() if is_kernel(param)]
    adapted, copied = matching(targets, specs, "the adapter's targets"), matching(whole, specs, "the adapter's whole")
    for path in sorted(adapted):
        if path not in kernels:
            raise InputError(f"the adapter's targets match {path}, which is no kernel: {did_you_mean(path, kernels)}")
        if path in copied:
            raise InputError(f"{path} is both among the adapter's targets and whole: choose one")
    factors = {f"{path}/{name}": param for path in sorted(adapted) for name, param in factor_specs(specs[path], rank).items()}
    return nn.unflatten(factors | {path: specs[path] for path in sorted(copied)})


def init_adapter(specs: dict, params: dict, key: nn.Key) -> dict:
    """The initial values of an adapter of these specifications: `params`' own for the whole tensors, as copies."""
    held = nn.flatten(params)
    fresh = nn.flatten(nn.init(specs, key))
    return nn.unflatten({path: jnp.copy(held[path]) if path in held else value for path, value in fresh.items()})


def attach(
    model: Model, params: dict, adapter: dict, alpha: float, *, rank_stabilized: bool = False, dropout: float = 0.0
) -> dict:
    """The parameters with the adapter beside them: each adapted kernel is a `nn.low_rank.LowRank`, which serves wherever the
    kernel does. Nothing is copied, and gradients pass to both.

    A product adds `alpha / rank` times the adapter's (`alpha / sqrt(rank)` where `rank_stabilized`: Kalajdzievski 2023).
    `dropout` is the rate on what the adapter reads. `params` are stacked or layer by layer, plain or quantized (what decodes is
    prepared afterwards); the adapter is stacked, as its specifications are.

    Raises:
      InputError: the adapter or the parameters are not the model's, these are prepared, or a rate of dropout that is none.
    """
    if not 0.0 <= dropout < 1.0:
        raise InputError(f"the adapter's dropout is {dropout}: expected a rate from 0 to below 1")

    def beside(path: str, weight: Any, part: Factors | Array) -> Weight:
        if not isinstance(part, dict):
            return part
        if not isinstance(weight, jax.Array | np.ndarray | Kept):
            raise InputError(f"{path} is joined to others for decoding: attach the adapter before the parameters are prepared")
        return LowRank(weight, part["down"], adapter_scale(part, alpha, rank_stabilized) * part["up"], path, dropout)

    return _map_adapted(beside, params, adapter_parts(model, adapter))


def merge(model: Model, params: dict, adapter: dict, alpha: float, *, rank_stabilized: bool = False) -> dict:
    """Plain parameters that compute what `attach` makes: `W + scale * down up`, in W's dtype (Hu et al. 2021, section 4.1).

    Raises:
      InputError: the adapter or the parameters are not the model's, or these are in a form that nothing can be added to.
    """
    specs = nn.flatten(model.param_specs())

    def added(path: str, weight: Any, part: Factors | Array) -> Array:
        if not isinstance(part, dict):
            return part
        if not isinstance(weight, jax.Array | np.ndarray):
            raise InputError(f"{path} is prepared, quantized or adapted already: merge into parameters as they were loaded")
        delta = adapter_scale(part, alpha, rank_stabilized) * _product(specs[path], weight, part)
        return (weight.astype(delta.dtype) + delta).astype(weight.dtype)

    return _map_adapted(added, params, adapter_parts(model, adapter))


def adapter_parts(model: Model, adapter: dict) -> dict[str, Factors | Array]:
    """What an adapter has for each of the model's parameters: `{"down", "up"}`, or a tensor in its place.

    Raises:
      InputError: it has something for none of them, a factor without the other, or of another shape.
    """
    specs, parts = nn.flatten(model.param_specs()), {}
    for path, array in nn.flatten(adapter).items():
        target, _, factor = path.rpartition("/")
        if path in specs:
            parts[path] = array
        elif target in specs and is_kernel(specs[target]):
            parts.setdefault(target, {})[factor] = array
        else:
            raise InputError(f"the adapter has {path}, which this model has not: {did_you_mean(target, specs)}")
    for path, part in parts.items():
        if not isinstance(part, dict):
            expected, shapes = specs[path].shape, part.shape
        elif part.keys() != {"down", "up"}:
            raise InputError(f"the adapter has {sorted(part)} for {path}: expected down and up")
        else:
            factors = factor_specs(specs[path], part["down"].shape[-1])
            expected, shapes = ({name: x[name].shape for name in ("down", "up")} for x in (factors, part))
        if shapes != expected:
            raise InputError(f"the adapter has shape {shapes} for {path}: expected {expected}, is it another model's?")
    return parts


def adapter_scale(factors: Factors, alpha: float, rank_stabilized: bool = False) -> float:
    """What the product of two factors is multiplied by."""
    rank = factors["down"].shape[-1]
    return alpha / (rank**0.5 if rank_stabilized else rank)


def is_kernel(param: Param) -> bool:
    """Whether a parameter can be adapted: a dense layer's kernel, or a table with a row for each token."""
    return param.is_matrix and (not param.is_lookup or param.inputs == ("vocab",))


def factor_specs(param: Param, rank: int) -> dict[str, Param]:
    """The two factors of a kernel, `[inputs..., rank]` and `[rank, outputs...]`; the rows of a token table are outputs."""
    layers = param.axes[: param.axes[:1] == (nn.LAYERS,)]
    inputs, outputs = (param.outputs, param.inputs) if param.is_lookup else (param.inputs, param.outputs)
    sizes = dict(zip(param.axes, param.shape)) | {RANK: rank}

    def factor(axes: tuple[str, ...], inputs: tuple[str, ...], init: nn.Initializer) -> Param:
        return Param(tuple(sizes[axis] for axis in axes), axes, init, inputs)

    down = factor((*layers, *inputs, RANK), inputs, _uniform)
    return {"down": down, "up": factor((*layers, RANK, *outputs), (RANK,), nn.param.zeros)}


def _uniform(key: nn.Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """That of torch's linear layers, which PEFT takes; `shape` is `[inputs..., rank]`."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _product(param: Param, weight: Array, part: Factors) -> Float[Array, "*kernel"]:
    """`down up`, with the axes that the weight has of its parameter's (not the layers' where they are apart), in float32."""
    letter = dict(zip((*param.axes, RANK), string.ascii_lowercase))

    def spell(param: Param, x: Array) -> str:
        return "".join(letter[axis] for axis in param.axes[-x.ndim :])

    factors, down, up = factor_specs(param, 1), part["down"], part["up"]
    equation = f"{spell(factors['down'], down)},{spell(factors['up'], up)}->{spell(param, weight)}"
    return jnp.einsum(equation, down, up, precision="highest", preferred_element_type=jnp.float32)


def _map_adapted(
    function: Callable[[str, Any, Factors | Array], Weight], params: dict, parts: dict[str, Factors | Array]
) -> dict:
    """The parameters with `function(path, weight, part)` in place of each that there is a part for."""
    seen = set()

    def mapped(tree: dict, parts: dict[str, Factors | Array], above: str) -> dict:
        out = {}
        for name, value in tree.items():
            path = f"{above}{name}"
            if isinstance(value, tuple):  # layers apart
                inside = {target: part for target, part in parts.items() if target.startswith(f"{path}/")}
                each = (jax.tree.map(lambda x: x[layer], inside) for layer in range(len(value)))
                out[name] = tuple(mapped(layer, its, f"{path}/") for layer, its in zip(value, each))
            elif isinstance(value, dict):
                out[name] = mapped(value, parts, f"{path}/")
            else:
                out[name] = function(path, value, parts[path]) if path in parts else value
                seen.add(path)
        return out

    adapted = mapped(params, parts, "")
    for path in sorted(parts.keys() - seen):
        raise InputError(f"the adapter has {path}, which the parameters have not: load them with the model's own head")
    return adapted
