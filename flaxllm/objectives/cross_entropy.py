"""Softmax cross-entropy over a vocabulary, with at most one chunk of logits in memory where that is asked for."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxllm.objectives.objective import Term

Unembed = Callable[[Array], Array]


def cross_entropy(
    unembed: Unembed,
    hidden: Float[Array, "batch length embed"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunks: int = 1,
) -> dict[str, Term]:
    """The weighted sum over tokens of `logsumexp(logits) - logits[target]`, in nats.

    `z_loss` adds `z_loss * logsumexp(logits)^2` (Chowdhery et al. 2022, section 5); `label_smoothing` gives that share
    of the target's probability to all classes evenly (Szegedy et al. 2016, section 7). Terms: "loss" (with both, what
    is minimised), "cross_entropy" (without them), "accuracy", each over the same weight.

    `chunks` (a divisor of length) cuts each row: then the gradient of a chunk is taken right after its logits, so that
    one chunk of logits is all there ever is, and no matrix product is done twice.
    """
    sums = partial(_sums, unembed=unembed, z_loss=z_loss, label_smoothing=label_smoothing)
    if chunks == 1:
        loss, watched = sums(hidden, targets, weights)
    else:
        cut = [_cut(x, chunks) for x in (hidden, targets, weights)]
        loss, watched = _sum_over_chunks(sums, *cut)
    total = weights.sum()
    return {"loss": Term(loss, total)} | {name: Term(value, total) for name, value in watched.items()}


def chunks_needed(batch: int, length: int, vocab_size: int, max_bytes: int) -> int:
    """The least divisor of `length` that keeps a chunk of float32 logits of `[batch, length, vocab]` within bounds."""
    need = max(1, -(-4 * batch * length * vocab_size // max_bytes))
    return next((n for n in range(need, length) if length % n == 0), length)


def _sums(
    hidden: Array, targets: Array, weights: Array, unembed: Unembed, z_loss: float, label_smoothing: float
) -> tuple[Array, dict[str, Array]]:
    logits = unembed(hidden)
    # A comparison in place of a gather: its gradient is a comparison too, and not a scatter into all the logits.
    is_target = targets[..., None] == jnp.arange(logits.shape[-1])
    log_partition = jax.nn.logsumexp(logits, axis=-1)
    target_logit = jnp.where(is_target, logits, 0.0).sum(-1)
    negative_log_likelihood = log_partition - target_logit
    loss = negative_log_likelihood
    if label_smoothing:
        loss = log_partition - (1.0 - label_smoothing) * target_logit - label_smoothing * logits.mean(-1)
    if z_loss:
        loss = loss + z_loss * jnp.square(log_partition)
    best = jax.lax.stop_gradient(logits).max(-1)
    watched = {
        "cross_entropy": (negative_log_likelihood * weights).sum(),
        "accuracy": ((target_logit >= best) * weights).sum(),
    }
    return (loss * weights).sum(), jax.lax.stop_gradient(watched)


def _cut(x: Array, chunks: int) -> Array:
    """`[batch, length, ...]` to `[chunks, batch, length / chunks, ...]`; each chunk takes its share of every stretch of
    the row, so that a length split over devices stays split."""
    batch, length = x.shape[:2]
    return jnp.moveaxis(x.reshape(batch, length // chunks, chunks, *x.shape[2:]), 2, 0)


def _sum_over_chunks(sums: Callable, hidden: Array, targets: Array, weights: Array) -> tuple[Array, dict]:
    """`sums` added over the leading axis. Its gradient is taken chunk by chunk in the forward pass: the loss is a sum,
    so each chunk's gradient is final but for one factor, known in the backward pass."""
    closed, captured = jax.closure_convert(sums, hidden[0], targets[0], weights[0])
    shapes = jax.eval_shape(closed, hidden[0], targets[0], weights[0], *captured)

    def scan(step: Callable, carry: tuple, hidden: Array) -> tuple:
        return jax.lax.scan(step, carry, (hidden, targets, weights))

    def zero_sums() -> tuple:
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    @jax.custom_vjp
    def total(hidden: Array, captured: list) -> tuple:
        def step(carry: tuple, chunk: tuple) -> tuple:
            return jax.tree.map(jnp.add, carry, closed(*chunk, *captured)), None

        return scan(step, zero_sums(), hidden)[0]

    def forward(hidden: Array, captured: list) -> tuple:
        def step(carry: tuple, chunk: tuple) -> tuple:
            added, captured_gradient = carry
            chunk_hidden, *rest = chunk
            loss, pull, watched = jax.vjp(lambda h, c: closed(h, *rest, *c), chunk_hidden, captured, has_aux=True)
            dhidden, dcaptured = pull(jnp.ones_like(loss))
            return jax.tree.map(jnp.add, (added, captured_gradient), ((loss, watched), dcaptured)), dhidden

        start = (zero_sums(), jax.tree.map(jnp.zeros_like, captured))
        (added, captured_gradient), hidden_gradient = scan(step, start, hidden)
        return added, (hidden_gradient, captured_gradient)

    def backward(gradients: tuple, cotangents: tuple) -> tuple:
        factor = cotangents[0]
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), gradients)

    total.defvjp(forward, backward)
    return total(hidden, captured)
