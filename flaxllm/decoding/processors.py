"""Pure functions from the logits of the next token to logits, each the definition of one setting of the field.

Definitions are those of transformers (`generation/logits_process.py`) unless said otherwise. Settings are arrays with a value
for each row. An impossible token has the logit -inf, and at least one token stays possible in each row. Nothing is sorted:
what is kept is all that reaches a threshold, so tokens tied with the least one kept are kept too.
"""

import math
from functools import reduce
from typing import no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

Logits = Float[Array, "batch vocab"]
Setting = Float[Array, "batch"]


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class History(struct.PyTreeNode):
    """The text so far: from index 0 the prompt, then what was written, and from `length` on whatever fills the row."""

    tokens: Int[Array, "batch width"]
    length: Int[Array, "batch"]
    prompt_length: Int[Array, "batch"]

    @property
    def written(self) -> Int[Array, "batch"]:
        return self.length - self.prompt_length

    def followed_by(self, token: Int[Array, "batch"]) -> "History":
        """With a token more in each row; in a full row only the length changes."""
        tokens = self.tokens.at[jnp.arange(len(token)), self.length].set(token, mode="drop")
        return self.replace(tokens=tokens, length=self.length + 1)


def logit_bias(logits: Logits, tokens: Int[Array, "batch k"], values: Float[Array, "batch k"]) -> Logits:
    """Add `values` to the logits of `tokens`; tokens beyond the vocabulary are left out."""
    return logits.at[jnp.arange(len(logits))[:, None], tokens].add(values, mode="drop")


def repetition_penalty(logits: Logits, penalty: Setting, history: History) -> Logits:
    """Divide the logits above 0 of the tokens of prompt and text, and multiply those below 0 (Keskar et al. 2019, sec. 4.1)."""
    seen = _counts(history.tokens, _positions(history) < history.length[:, None], logits.shape[1]) > 0
    return logits * jnp.where(seen, jnp.where(logits < 0, penalty[:, None], 1 / penalty[:, None]), 1)


def presence_penalty(logits: Logits, penalty: Setting, history: History) -> Logits:
    """Subtract the penalty from each token that was written (OpenAI's API reference); the prompt does not count, as in vLLM."""
    return logits - penalty[:, None] * (_written_counts(history, logits.shape[1]) > 0)


def frequency_penalty(logits: Logits, penalty: Setting, history: History) -> Logits:
    """Subtract the penalty once for each time that the token was written (the same)."""
    return logits - penalty[:, None] * _written_counts(history, logits.shape[1])


def no_repeat_ngram(logits: Logits, size: int, history: History) -> Logits:
    """Ban what would end an n-gram of this size that prompt and text have already."""
    windows = history.tokens.shape[1] - size + 1
    if windows < 1:
        return logits
    prefix = history.length[:, None] - size + 1 + jnp.arange(size - 1)
    prefix = jnp.take_along_axis(history.tokens, jnp.maximum(prefix, 0), axis=1)
    whole = jnp.arange(windows) + size - 1 < history.length[:, None]
    same = (history.tokens[:, i : i + windows] == prefix[:, i, None] for i in range(size - 1))
    return ban(logits, _counts(history.tokens[:, size - 1 :], reduce(jnp.logical_and, same, whole), logits.shape[1]) > 0)


def min_new_tokens(logits: Logits, least: Int[Array, "batch"], history: History, ends: tuple[int, ...]) -> Logits:
    """Ban the tokens that end a text until `least` tokens are written."""
    is_end = jnp.zeros(logits.shape[1], bool).at[jnp.array(ends, jnp.int32)].set(True, mode="drop")
    return ban(logits, is_end & (history.written < least)[:, None])


def ban(logits: Logits, banned: Bool[Array, "batch vocab"]) -> Logits:
    """Make tokens impossible; a row in which no other is possible stays as it is."""
    others = (~banned & (logits > -jnp.inf)).any(axis=1, keepdims=True)
    return jnp.where(banned & others, -jnp.inf, logits)


def temperature(logits: Logits, temperature: Setting) -> Logits:
    """Divide by the temperature; a row whose temperature is 0 stays as it is: it takes the best."""
    divisor = jnp.where(temperature == 0, 1.0, jnp.maximum(temperature, 1e-30))  # so that nothing overflows
    return logits / divisor[:, None]


def top_k(logits: Logits, k: Int[Array, "batch"]) -> Logits:
    """Keep the `k` best (Fan et al. 2018); 0 keeps all."""
    return _keep(logits, (k[:, None] == 0) | (logits >= least_kept(logits, jnp.ones_like(logits), k.astype(jnp.float32))))


def top_p(logits: Logits, p: Setting) -> Logits:
    """Keep the fewest best whose probabilities add up to `p`, one at least (Holtzman et al. 2020, eq. 2-3); 1 keeps all."""
    return _keep(logits, (p[:, None] >= 1) | (logits >= least_kept(logits, jax.nn.softmax(logits), p)))


def min_p(logits: Logits, p: Setting) -> Logits:
    """Keep those at least `p` times as probable as the best (Nguyen et al. 2024, sec. 3); 0 keeps all."""
    return _keep(logits, logits >= logits.max(axis=1, keepdims=True) + jnp.log(p)[:, None])


def typical_p(logits: Logits, p: Setting) -> Logits:
    """Keep the fewest whose surprise is nearest to its mean, the entropy, and whose probabilities add up to `p`.

    (Meister et al. 2023, eq. 10-11.) 1 keeps all.
    """
    surprise = -jax.nn.log_softmax(logits)
    probabilities = jnp.exp(-surprise)
    entropy = jnp.where(probabilities > 0, probabilities * surprise, 0).sum(axis=1, keepdims=True)
    nearness = -jnp.abs(surprise - entropy)
    return _keep(logits, (p[:, None] >= 1) | (nearness >= least_kept(nearness, probabilities, p)))


def least_kept(values: Logits, weights: Logits, total: Setting) -> Float[Array, "batch 1"]:
    """The largest value such that the weights of it and of all larger ones add up to `total`, else the smallest of all.

    Found bit by bit, without sorting, which takes eight times as long on a CPU. The sums run in one order whatever they leave
    out: float32 addition in a fixed order is monotone, so that the search is exact.
    """
    ordered = _as_ordered(jax.lax.bitcast_convert_type(values, jnp.int32))
    blocks, weights = in_blocks(ordered, -(2**31)), in_blocks(weights, 0)

    def set_bit(number: Array, least: Array) -> Array:
        higher = least + jnp.left_shift(jnp.int32(1), 31 - number)  # the first one wraps around: -2**31 to 0
        reached = jnp.where(blocks >= higher[:, None, None], weights, 0).sum(axis=1).sum(axis=1)
        return jnp.where(reached >= total, higher, least)

    least = jax.lax.fori_loop(0, 32, set_bit, jnp.full(len(values), -(2**31), jnp.int32))
    least = jnp.clip(least, ordered.min(axis=1), ordered.max(axis=1))
    return jax.lax.bitcast_convert_type(_as_ordered(least), jnp.float32)[:, None]


def in_blocks(rows: Array, fill: ArrayLike) -> Array:
    """Rows `[batch, vocab]` cut into `[batch, blocks, block]`, about as many as each is long; `fill` fills the last."""
    size = math.isqrt(rows.shape[1] - 1) + 1
    return jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % size)), constant_values=fill).reshape(len(rows), -1, size)


def _as_ordered(bits: Int[Array, "..."]) -> Int[Array, "..."]:
    """The bits of floats as integers of the same order; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _keep(logits: Logits, kept: Bool[Array, "batch vocab"]) -> Logits:
    return jnp.where(kept, logits, -jnp.inf)


def _positions(history: History) -> Int[Array, "width"]:
    return jnp.arange(history.tokens.shape[1])


def _written_counts(history: History, vocab: int) -> Int[Array, "batch vocab"]:
    written = _positions(history) >= history.prompt_length[:, None]
    return _counts(history.tokens, written & (_positions(history) < history.length[:, None]), vocab)


def _counts(tokens: Int[Array, "batch width"], counted: Bool[Array, "batch width"], vocab: int) -> Int[Array, "batch vocab"]:
    """How often each token occurs among those counted."""
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), vocab), jnp.int32).at[rows, jnp.where(counted, tokens, vocab)].add(1, mode="drop")
