"""Next-token prediction on packed text (Radford et al. 2019): each token is predicted from those before it."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from flaxllm.data import Pieces, Tokenizer
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives.objective import Batch, Objective, Term
from flaxllm.objectives.vocabulary import MAX_LOGIT_BYTES, vocabulary_terms


def causal_lm(
    model: Model,
    tokenizer: Tokenizer | None,
    max_len: int,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> Objective:
    """Batches hold `tokens`, `targets`, `weights`, `segments` and `positions`, all `[batch, length]`, and `row`.

    `max_logit_bytes` bounds the logits that one device holds at a time: the loss is chunked where they would be more.
    """

    def terms(params: dict, batch: Batch, ctx: Context) -> dict[str, Term]:
        hidden = model.apply(
            params, batch["tokens"], positions=batch["positions"], segments=batch["segments"], ctx=ctx
        ).hidden
        return vocabulary_terms(
            model, params, hidden, batch["targets"], batch["weights"], ctx, z_loss, label_smoothing, max_logit_bytes
        )

    return Objective(
        terms=terms,
        weights=loss_weight,
        items=partial(Pieces, piece_len=max_len + 1),
        example=next_token_example,
        empty_row=empty_tokens(max_len),
        tells_all=True,
    )


def loss_weight(batch: Batch) -> dict[str, jnp.ndarray]:
    """The weight of a loss whose targets have one each."""
    return {"loss": batch["weights"].sum()}


def empty_tokens(length: int) -> dict[str, np.ndarray]:
    """An empty row of tokens that each have a target."""
    tokens, weights = np.zeros(length, np.int32), np.zeros(length, np.float32)
    return {"tokens": tokens, "targets": tokens, "weights": weights}


def next_token_example(tokens: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A piece of n + 1 tokens as n inputs and the n tokens that follow them."""
    return {
        "tokens": tokens[:-1],
        "targets": tokens[1:],
        "weights": np.ones(len(tokens) - 1, np.float32),
    }
