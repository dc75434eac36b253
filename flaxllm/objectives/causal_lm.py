"""Next-token prediction on packed text (Radford et al. 2019): each token is predicted from those before it."""

import jax.numpy as jnp
import numpy as np

from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives.cross_entropy import chunks_needed, cross_entropy
from flaxllm.objectives.objective import Batch, Objective, Term


def causal_lm(
    model: Model,
    max_len: int,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    max_logit_bytes: int = 2**30,
) -> Objective:
    """Batches hold `tokens`, `targets`, `weights`, `segments` and `positions`, all `[batch, length]`, and `row`.

    `max_logit_bytes` bounds the logits that one device holds at a time: the loss is chunked where they would be more.
    """

    def terms(params: dict, batch: Batch, ctx: Context) -> dict[str, Term]:
        hidden = model.apply(
            params, batch["tokens"], positions=batch["positions"], segments=batch["segments"], ctx=ctx
        ).hidden
        rows, length = batch["tokens"].shape
        vocab_size = model.config.vocab_size
        parts = 1 if ctx.rules is None else ctx.rules.split("batch") * ctx.rules.split("vocab", vocab_size)
        return cross_entropy(
            lambda h: model.unembed(params, h, ctx=ctx),
            hidden,
            batch["targets"],
            batch["weights"],
            z_loss,
            label_smoothing,
            chunks_needed(-(-rows // parts), length, vocab_size, max_logit_bytes),
        )

    def weights(batch: Batch) -> dict[str, jnp.ndarray]:
        return {"loss": batch["weights"].sum()}

    return Objective(terms, weights, next_token_example, piece_len=max_len + 1)


def next_token_example(tokens: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A piece of n + 1 tokens as n inputs and the n tokens that follow them."""
    return {
        "tokens": tokens[:-1],
        "targets": tokens[1:],
        "weights": np.ones(len(tokens) - 1, np.float32),
    }
