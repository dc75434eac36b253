"""The logit lens: what a model would say if it stopped at each depth."""

from functools import partial
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxllm.errors import InputError
from flaxllm.interpret.forward import Input, Target, Tokens, final_norm, forward, given, returning, writer
from flaxllm.models import Model
from flaxllm.models.bert import VOCABULARY_HEADS
from flaxllm.nn import Context


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class Lens(NamedTuple):
    """The likeliest `tokens` after each depth, the likeliest first, and their `probabilities`; the `entropy`, in nats, of the
    whole distribution. Depth 0 is the embedding, and the last is the model's own output. `actual` is the token that each
    position predicts: the next one, or with a masked language model its own; -1 where none is known."""

    tokens: Int[Array, "depths batch length k"]
    probabilities: Float[Array, "depths batch length k"]
    entropy: Float[Array, "depths batch length"]
    actual: Int[Array, "batch length"]


def logit_lens(
    model: Model,
    params: dict,
    tokens: Tokens,
    decoder_tokens: Target | None = None,
    *,
    k: int = 5,
    ctx: Context = Context(),  # noqa: B008 (frozen)
    **inputs: Input | None,
) -> Lens:
    """The `k` likeliest tokens after the embedding and after each layer, each read by the model's own final norm and
    unembedding (nostalgebraist 2020, "interpreting GPT: the logit lens"). Of an encoder-decoder they are the decoder's. `inputs`
    are the others that the model's `apply` takes, such as `valid`.

    Raises:
      InputError: a model without logits over a vocabulary, a `k` beyond that, or inputs that the model does not take.
    """
    stack = writer(model)
    if not 1 <= k <= model.config.vocab_size:
        raise InputError(f"the logit lens got k={k}: expected 1 to {model.config.vocab_size}, the size of the vocabulary")
    names = (f"{stack}embedding", f"{stack}layers/out")
    inputs = given(model, tokens, decoder_tokens, inputs)
    taps = forward(model, params, inputs, returning(ctx, *names)).taps
    embedded, after = (taps[name] for name in names)
    prefix = "decoder_" if stack else ""
    actual = jnp.asarray(inputs[f"{prefix}tokens"])
    if model.head not in VOCABULARY_HEADS:
        actual = _next(actual, inputs.get(f"{prefix}valid"))
    return Lens(*_say(model, params, embedded, after, k, ctx.replace(taps=None)), actual)


@partial(jax.jit, static_argnames=("model", "k"))
def _say(
    model: Model, params: dict, embedded: Float[Array, "batch length embed"], after: Array, k: int, ctx: Context
) -> tuple[Int[Array, "depths batch length k"], Float[Array, "depths batch length k"], Float[Array, "depths batch length"]]:
    """One depth at a time, since the logits of all are as large as the vocabulary times the depth."""

    def say(x: Array) -> tuple[Array, Array, Array]:
        logits = model.unembed(params, final_norm(model, params, x, ctx), ctx=ctx)
        logprobs = jax.nn.log_softmax(logits)
        best, best_tokens = jax.lax.top_k(logprobs, k)
        return best_tokens, jnp.exp(best), -(jnp.exp(logprobs) * logprobs).sum(-1)

    return jax.lax.map(say, jnp.concatenate([embedded[None], after]))


def _next(tokens: Array, valid: Input | None) -> Int[Array, "batch length"]:
    known = jnp.ones(tokens.shape, bool) if valid is None else jnp.asarray(valid)
    known = known[:, :-1] & known[:, 1:]
    return jnp.pad(jnp.where(known, tokens[:, 1:], -1), ((0, 0), (0, 1)), constant_values=-1)
