"""Direct preference optimization: a model learns which of two answers is better (Rafailov et al. 2023)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxllm import data
from flaxllm.data import Tokenizer
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives.answers import Answered, read_answer
from flaxllm.objectives.causal_lm import empty_tokens, loss_weight
from flaxllm.objectives.labelled import check_head
from flaxllm.objectives.objective import Batch, Objective, Term, Watch

SIDES = ("chosen", "rejected")


class Pair(NamedTuple):
    """Two answers, and their log-probabilities under the model that was started from, once `add_references` has run it."""

    chosen: Answered
    rejected: Answered
    references: tuple[float, float] | None = None


def dpo(model: Model, tokenizer: Tokenizer | None, max_len: int, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Objective:
    """Of the answers `chosen` and `rejected` to a `prompt` (text, or lists of messages) the first is to gain more likelihood
    over what it had at the start than the second (eq. 7):

        margin = beta (log p(chosen) - log p_start(chosen) - log p(rejected) + log p_start(rejected))
        loss = -(1 - label_smoothing) log sigmoid(margin) - label_smoothing log sigmoid(-margin)

    where log p adds up the tokens of an answer, its end included. `label_smoothing` is the share of pairs that are thought to
    be the wrong way round (Mitchell 2023). Terms: "loss", "accuracy" (of margins above 0) and "margin". There is no dropout,
    as in the paper's code.

    Batches hold `tokens`, `targets`, `weights`, `segments` and `positions` `[batch, length]` of both, as `chosen_tokens` and so
    on; `chosen_reference` and `rejected_reference`, the log p_start, and `weights`, all `[batch]`.

    Raises:
      InputError: settings out of range, or a model without a causal head; from `items`, a record without its fields, or that the
        template cannot write, or of one of whose answers `max_len` leaves nothing; from `example`, an item without references.
    """
    if beta <= 0.0 or not 0.0 <= label_smoothing < 0.5:
        raise InputError(f"beta={beta}, label_smoothing={label_smoothing}: expected one above 0, and one from 0 to below 0.5")
    check_head(model, "causal-lm", "dpo")

    def terms(params: dict, batch: Batch, ctx: Context) -> dict[str, Term]:
        gains = {side: answer_logprobs(model, params, batch, side, ctx) - batch[f"{side}_reference"] for side in SIDES}
        margin = beta * (gains["chosen"] - gains["rejected"])
        loss = jax.nn.softplus(-margin) + label_smoothing * margin
        weights = batch["weights"]
        found = {"loss": loss, "accuracy": margin > 0, "margin": margin}
        return {name: Term((values * weights).sum(), weights.sum()) for name, values in found.items()}

    def items(records: Sequence[Mapping[str, Any]]) -> list[Pair]:
        return [
            Pair(*(read_answer(tokenizer, record, number, side).cut(max_len, number) for side in SIDES))
            for number, record in enumerate(records)
        ]

    return Objective(
        terms=terms,
        weights=loss_weight,
        items=items,
        example=_example,
        empty_row=_empty_row(max_len),
        packs=False,
        fields=("prompt", *SIDES),
        prepare=lambda params, pairs, watch: add_references(model, params, pairs, max_len, watch=watch),
    )


def answer_logprobs(model: Model, params: dict, batch: Batch, side: str, ctx: Context) -> Float[Array, " batch"]:
    """The log-probability of each row's answer given what comes before it, without dropout."""
    tokens, targets, weights, positions, segments = (
        batch[f"{side}_{name}"] for name in ("tokens", "targets", "weights", "positions", "segments")
    )
    ctx = ctx.replace(dropout_key=None)
    hidden = model.apply(params, tokens, positions=positions, segments=segments, ctx=ctx).hidden
    logits = model.unembed(params, hidden, ctx=ctx)
    target_logits = jnp.where(targets[..., None] == jnp.arange(logits.shape[-1]), logits, 0.0).sum(-1)
    return ((target_logits - jax.nn.logsumexp(logits, axis=-1)) * weights).sum(-1)


def add_references(
    model: Model,
    params: dict,
    pairs: Sequence[Pair],
    max_len: int,
    batch_size: int = 8,
    watch: Watch = lambda batches, count: batches,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> list[Pair]:
    """The pairs with the log-probabilities that these parameters give their answers: those that training starts from."""
    log_probabilities = jax.jit(lambda params, batch: [answer_logprobs(model, params, batch, side, ctx) for side in SIDES])
    batches = data.eval_batches(
        [pair._replace(references=(0.0, 0.0)) for pair in pairs],
        _example,
        _empty_row(max_len),
        batch_size=batch_size,
        seed=0,
        rows=(0, batch_size),
        pack=False,
    )
    watched = watch(batches, math.ceil(len(pairs) / batch_size))
    found = np.concatenate([np.stack(log_probabilities(params, batch), axis=1) for batch in watched])
    return [pair._replace(references=(float(chosen), float(rejected))) for pair, (chosen, rejected) in zip(pairs, found)]


def _example(pair: Pair, rng: np.random.Generator) -> dict[str, np.ndarray]:
    if pair.references is None:
        raise InputError("a pair of answers has no log-probabilities of the model that training starts from: call add_references")
    arrays = {"weights": np.ones((), np.float32)}
    for side, reference in zip(SIDES, pair.references):
        arrays |= getattr(pair, side).example(f"{side}_") | {f"{side}_reference": np.array(reference, np.float32)}
    return arrays


def _empty_row(max_len: int) -> dict[str, np.ndarray]:
    rows = {f"{side}_{name}": zeros for side in SIDES for name, zeros in empty_tokens(max_len).items()}
    return rows | {name: np.zeros((), np.float32) for name in ("weights", *(f"{side}_reference" for side in SIDES))}
