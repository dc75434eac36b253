"""Gradients of a number with respect to a model's inner values, and what each input token is worth by them."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from flaxllm.decoding.reading import has_encoder
from flaxllm.interpret.forward import Input, Target, Tokens, forward, given, returning
from flaxllm.interpret.metrics import Metric, as_data, measured
from flaxllm.models import Model
from flaxllm.nn import Context


def gradient_times_input(
    model: Model,
    params: dict,
    tokens: Tokens,
    metric: Metric,
    decoder_tokens: Target | None = None,
    *,
    ctx: Context = Context(),  # noqa: B008 (frozen)
    **inputs: Input | None,
) -> Float[Array, "batch length"]:
    """What each token's embedding adds to `metric` to first order: the gradient with respect to it, times it (Shrikumar et al.
    2016, section 2). Of an encoder-decoder the tokens are the source's. `metric` is a function of the model's output to one
    number, such as `logit_difference` makes; `inputs` are the others that the model's `apply` takes, such as `valid`.

    Raises:
      InputError: inputs that the model does not take, or a metric that gives no single number.
    """
    name = "encoder/embedding" if has_encoder(model) else "embedding"
    inputs = given(model, tokens, decoder_tokens, inputs)
    values, gradients = _with_gradients(model, params, inputs, as_data(metric), (name,), ctx)
    return jnp.einsum("btd,btd->bt", values[name], gradients[name])


def tap_gradients(
    model: Model,
    params: dict,
    tokens: Tokens,
    metric: Metric,
    names: Sequence[str],
    decoder_tokens: Target | None = None,
    *,
    ctx: Context = Context(),  # noqa: B008 (frozen)
    **inputs: Input | None,
) -> dict[str, Array]:
    """The gradient of `metric` with respect to each of these taps, of the tap's shape: all layers in one backward pass.

    `names` may be patterns. `metric` and `inputs` are as for `gradient_times_input`.

    Raises:
      InputError: a tap or inputs that the model does not have, or a metric that gives no single number.
    """
    inputs = given(model, tokens, decoder_tokens, inputs)
    names = (names,) if isinstance(names, str) else tuple(names)
    return _with_gradients(model, params, inputs, as_data(metric), names, ctx)[1]


@partial(jax.jit, static_argnames=("model", "names"))
def _with_gradients(
    model: Model, params: dict, inputs: dict[str, Input], metric: Partial, names: tuple[str, ...], ctx: Context
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The values of the taps and the gradients, which are those of zeros added to them."""
    ctx = returning(ctx, *names)

    def run(added: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        whole = ctx.taps.added | {name: zeros + ctx.taps.added.get(name, 0.0) for name, zeros in added.items()}
        output = forward(model, params, inputs, ctx.replace(taps=ctx.taps.replace(added=whole)))
        return measured(metric, output), output.taps

    shapes = jax.eval_shape(lambda: run({})[1])
    gradients, values = jax.grad(run, has_aux=True)({name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()})
    return values, gradients
