"""A model as a `flax.linen.Module`; and, through `flax.nnx.bridge.ToNNX`, as an NNX module."""

from collections.abc import Callable
from typing import Any

from flax import linen
from jaxtyping import Array, Float, Int

from flaxllm import nn
from flaxllm.models import Model
from flaxllm.models.output import Output
from flaxllm.nn import Context


class LinenModel(linen.Module):
    """Made by `as_linen`. Its "params" collection is the model's parameter tree, as it is.

    A "dropout" key among the `rngs` of a call turns dropout on; `start(key, name)` gives the first values of the part of
    the tree called `name`.
    """

    model: Model
    start: Callable[[nn.Key, str], Any]

    def setup(self):
        for name in self.model.param_specs():
            self.param(name, self._start, name)

    def __call__(
        self, tokens: Int[Array, "batch length"], *inputs: Array, ctx: Context = Context(), **named: Any
    ) -> Output:
        """What `model.apply` gives for the same arguments."""
        if self.has_rng("dropout"):
            ctx = ctx.replace(dropout_key=self.make_rng("dropout"))
        return self.model.apply(self._params(), tokens, *inputs, ctx=ctx, **named)

    def unembed(self, hidden: Float[Array, "*batch embed"], **named: Any) -> Float[Array, "*batch vocab"]:
        """Logits over the vocabulary, for `module.apply(variables, hidden, method="unembed")`."""
        return self.model.unembed(self._params(), hidden, **named)

    def _start(self, key: nn.Key, name: str) -> Any:
        # The module's own key, and not that which Linen derives from it for each parameter: so that the values are those
        # of `model.init`. There is none where a parameter is only checked.
        own = self.scope.rngs.get("params")
        return self.start(key if own is None else own.as_jax_rng(), name)

    def _params(self) -> dict:
        return {name: self.get_variable("params", name) for name in self.model.param_specs()}


def as_linen(model: Model, params: dict | None = None) -> LinenModel:
    """The model with Linen's `init` and `apply`. `init` gives `params` where they are given (those of a checkpoint), and
    else the values that `model.init` has for the same key."""
    specs = model.param_specs()

    def start(key: nn.Key, name: str) -> Any:
        return nn.init({name: specs[name]}, key)[name] if params is None else params[name]

    return LinenModel(model, start)
