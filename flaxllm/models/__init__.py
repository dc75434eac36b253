"""The model families, one file each: pure functions over a frozen config; and `Model`, which names one of them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from flaxllm import nn
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models import bert, gpt, llama, t5, transformer
from flaxllm.models.heads import classify, head_shape
from flaxllm.models.output import Output

FAMILIES: dict[str, ModuleType] = {"bert": bert, "gpt": gpt, "llama": llama, "t5": t5, "transformer": transformer}


def family(name: str) -> ModuleType:
    """The module of a model family.

    Raises:
      InputError: there is no such family.
    """
    if name not in FAMILIES:
        raise InputError(f"unknown model family {name!r}: {did_you_mean(name, FAMILIES)}")
    return FAMILIES[name]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Model:
    """A family's name, its config and the head: enough to find the functions, and nothing else.

    It is static to `jit` and `grad`, hashes, compares and pickles. Its methods forward to the family's functions.
    """

    family: str
    config: Any
    head: str | None = None

    def param_specs(self) -> dict:
        return family(self.family).param_specs(self.config, self.head)

    def init(self, key: nn.Key, dtype: DTypeLike = jnp.float32) -> dict:
        return nn.init(self.param_specs(), key, dtype)

    def apply(
        self,
        params: dict,
        tokens: Int[Array | np.ndarray, "batch length"],
        *inputs: Array | np.ndarray,
        valid: Bool[Array | np.ndarray, "batch length"] | None = None,
        ctx: nn.Context = nn.Context(),
        **named: Array | np.ndarray | None,
    ) -> Output:
        """The family's `apply`, and the logits of the head where it has few classes. Inputs may be numpy's."""
        module = family(self.family)
        tokens, inputs, valid, named = jax.tree.map(jnp.asarray, (tokens, inputs, valid, named))
        output = module.apply(params, self.config, tokens, *inputs, valid=valid, ctx=ctx, **named)
        shape = head_shape(module.heads(self.config), self.head)
        if shape is None:
            return output
        return output.replace(logits=classify(params["head"], shape, output, valid, self.config.dropout, ctx))

    def unembed(
        self, params: dict, hidden: Float[Array, "*batch embed"], **named: Any
    ) -> Float[Array, "*batch vocab"]:
        return family(self.family).unembed(params, self.config, hidden, **named)

    def matmul_flops(self, tokens: int, length: int) -> int:
        """Floating-point operations of the matrix products of one forward pass over `tokens` in rows of `length`."""
        return family(self.family).matmul_flops(self.config, tokens, length)


def preset(name: str, **changes: Any) -> Model:
    """A published model by name, such as `"gpt2-124m"`, with any config field changed.

    Raises:
      InputError: no family has such a preset, or a changed field does not exist.
    """
    for family_name, module in FAMILIES.items():
        if name in module.PRESETS:
            return build(family_name, {**vars(module.PRESETS[name]), **changes})
    names = [n for module in FAMILIES.values() for n in module.PRESETS]
    raise InputError(f"unknown model preset {name!r}: {did_you_mean(name, names)}")


def build(family_name: str, fields: Mapping[str, Any], head: str | None = "default") -> Model:
    """The model of a family with these config fields; what is left out keeps its default. The head is the family's own
    unless named; None is the model without one.

    Raises:
      InputError: an unknown family, an unknown field, or values that do not fit together.
    """
    module = family(family_name)
    known = [f.name for f in dataclasses.fields(module.Config)]
    for name in fields:
        if name not in known:
            raise InputError(f"unknown key {name!r} in the {family_name} config: {did_you_mean(name, known)}")
    hashable = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    head = module.DEFAULT_HEAD if head == "default" else head
    model = Model(family_name, module.Config(**hashable), head)
    head_shape(module.heads(model.config), head)
    return model
