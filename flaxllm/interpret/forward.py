"""One forward pass of a model of any family, with what its taps return."""

from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from flaxllm.decoding.reading import TEXT_HEADS, has_encoder
from flaxllm.errors import InputError
from flaxllm.models import Model, family
from flaxllm.models.bert import VOCABULARY_HEADS
from flaxllm.models.output import Output
from flaxllm.nn import Context, Taps

Tokens = Int[Array | np.ndarray, "batch length"]
Target = Int[Array | np.ndarray, "batch target"]
Input = Shaped[Array | np.ndarray, "batch _"]


def given(model: Model, tokens: Tokens, decoder_tokens: Target | None, others: dict[str, Input | None]) -> dict[str, Input]:
    """What the model reads, by the names that its `apply` has for it.

    Raises:
      InputError: a target, for a model without an encoder.
    """
    inputs = {"tokens": tokens, "decoder_tokens": decoder_tokens, **others}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    of_decoder = [name for name in inputs if name.startswith("decoder_")]
    if of_decoder and not has_encoder(model):
        raise InputError(f"a {model.family} model reads one text and no target: leave {' and '.join(of_decoder)} out")
    return inputs


@partial(jax.jit, static_argnames="model")
def forward(model: Model, params: dict, inputs: dict[str, Input], ctx: Context) -> Output:
    """The model's output. Compiled once for inputs and taps of a shape."""
    return model.apply(params, **inputs, ctx=ctx)


def returning(ctx: Context, *names: str) -> Context:
    """The context whose taps return these, and change what they changed."""
    return ctx.replace(taps=(ctx.taps or Taps()).replace(returned=names))


def writer(model: Model) -> str:
    """Where in the taps' names the stack begins whose hidden states become logits over a vocabulary: "decoder/" or "".

    Raises:
      InputError: the model has no head for a vocabulary.
    """
    if model.head not in (*TEXT_HEADS, *VOCABULARY_HEADS):
        raise InputError(
            f"this {model.family} model has the head {model.head or 'base'!r} and no logits over a vocabulary: load it with one "
            f"of {', '.join((*TEXT_HEADS, *VOCABULARY_HEADS))}, if its family has it"
        )
    return "decoder/" if has_encoder(model) else ""


def final_norm(model: Model, params: dict, x: Float[Array, "*batch embed"], ctx: Context) -> Float[Array, "*batch embed"]:
    """What the model does to a residual stream before it unembeds it: nothing, where every layer ends in a norm."""
    module = family(model.family)
    return module.final_norm(params.get("decoder", params), model.config, x, ctx) if hasattr(module, "final_norm") else x
