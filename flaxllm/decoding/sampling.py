"""From logits to the next token: settings that each row has for itself, the processors that they ask for, and the draw."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, UInt32

from flaxllm.decoding import processors
from flaxllm.decoding.processors import History, Logits
from flaxllm.errors import InputError

UNUSED = 2**31 - 1  # in place of a token: beyond any vocabulary


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class Sampling(struct.PyTreeNode):
    """How each row's tokens are chosen; made by `sampling`. Values are data, so other values compile nothing.

    `used` names the processors that some row needs: no other is in the compiled program.
    """

    key: UInt32[Array, "batch 2"]
    temperature: Float[Array, "batch"]
    top_k: Int[Array, "batch"]
    top_p: Float[Array, "batch"]
    min_p: Float[Array, "batch"]
    typical_p: Float[Array, "batch"]
    repetition_penalty: Float[Array, "batch"]
    presence_penalty: Float[Array, "batch"]
    frequency_penalty: Float[Array, "batch"]
    min_new_tokens: Int[Array, "batch"]
    bias_tokens: Int[Array, "batch k"]
    bias_values: Float[Array, "batch k"]
    no_repeat_ngram_size: int = struct.field(pytree_node=False, default=0)
    used: tuple[str, ...] = struct.field(pytree_node=False, default=())


Processor = Callable[[Logits, Sampling, History, tuple[int, ...]], Logits]

# By the names of their settings, in the order in which they are applied (that of transformers).
PROCESSORS: dict[str, Processor] = {
    "logit_bias": lambda logits, s, history, ends: processors.logit_bias(logits, s.bias_tokens, s.bias_values),
    "repetition_penalty": lambda logits, s, history, ends: processors.repetition_penalty(logits, s.repetition_penalty, history),
    "presence_penalty": lambda logits, s, history, ends: processors.presence_penalty(logits, s.presence_penalty, history),
    "frequency_penalty": lambda logits, s, history, ends: processors.frequency_penalty(logits, s.frequency_penalty, history),
    "no_repeat_ngram_size": lambda logits, s, history, ends: processors.no_repeat_ngram(logits, s.no_repeat_ngram_size, history),
    "min_new_tokens": lambda logits, s, history, ends: processors.min_new_tokens(logits, s.min_new_tokens, history, ends),
    "temperature": lambda logits, s, history, ends: processors.temperature(logits, s.temperature),
    "top_k": lambda logits, s, history, ends: processors.top_k(logits, s.top_k),
    "top_p": lambda logits, s, history, ends: processors.top_p(logits, s.top_p),
    "min_p": lambda logits, s, history, ends: processors.min_p(logits, s.min_p),
    "typical_p": lambda logits, s, history, ends: processors.typical_p(logits, s.typical_p),
}
TRUNCATING = ("top_k", "top_p", "min_p", "typical_p")  # a row that takes the best has no use for them

# What leaves the logits as they are, and what is accepted.
_NUMBERS: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray], str]] = {
    "temperature": (1.0, lambda x: (x >= 0) & (x < np.inf), "a number of 0 (always the best token) or more"),
    "top_p": (1.0, lambda x: (x >= 0) & (x <= 1), "a number from 0 to 1 (all tokens)"),
    "min_p": (0.0, lambda x: (x >= 0) & (x <= 1), "a number from 0 (all tokens) to 1"),
    "typical_p": (1.0, lambda x: (x > 0) & (x <= 1), "a number above 0 and up to 1 (all tokens)"),
    "repetition_penalty": (1.0, lambda x: (x > 0) & (x < np.inf), "a number above 0 (1 for no penalty)"),
    "presence_penalty": (0.0, lambda x: abs(x) <= 2, "a number from -2 to 2 (0 for no penalty)"),
    "frequency_penalty": (0.0, lambda x: abs(x) <= 2, "a number from -2 to 2 (0 for no penalty)"),
}
_COUNTS = {
    "top_k": "a whole number of 0 (all tokens) or more",
    "min_new_tokens": "a whole number of 0 or more",
    "no_repeat_ngram_size": "a whole number of 0 (any may repeat) or more",
}

Bias = Mapping[int, float]


@no_type_check  # it checks what it is given itself
def sampling(
    batch: int,
    *,
    temperature: ArrayLike | Sequence[float] = 1.0,
    top_k: ArrayLike | Sequence[int] = 0,
    top_p: ArrayLike | Sequence[float] = 1.0,
    min_p: ArrayLike | Sequence[float] = 0.0,
    typical_p: ArrayLike | Sequence[float] = 1.0,
    repetition_penalty: ArrayLike | Sequence[float] = 1.0,
    presence_penalty: ArrayLike | Sequence[float] = 0.0,
    frequency_penalty: ArrayLike | Sequence[float] = 0.0,
    no_repeat_ngram_size: int = 0,
    min_new_tokens: ArrayLike | Sequence[int] = 0,
    logit_bias: Bias | Sequence[Bias | None] | None = None,
    seeds: ArrayLike | Sequence[int] | None = None,
    vocab_size: int | None = None,
) -> Sampling:
    """The settings of a batch, each one value for all rows or one for each; the defaults leave the logits as they are.

    `temperature`: 0 takes the best token. `logit_bias`: what is added to the logits of tokens; -inf bans one. `seeds`: whole
    numbers of up to 64 bits; what a row draws depends on its seed and on how many tokens it has written, so that rows with one
    seed and one prompt write one text. `vocab_size`, if given, is what the tokens of `logit_bias` are checked against.

    Raises:
      InputError: a value out of range, not as many values as rows, or drawing without seeds.
    """
    given = locals()
    values = {name: _numbers(name, given[name], batch) for name in _NUMBERS}
    values |= {name: _counts(name, given[name], batch) for name in ("top_k", "min_new_tokens")}
    size = int(_counts("no_repeat_ngram_size", no_repeat_ngram_size, 1)[0])
    if seeds is None and values["temperature"].any():
        raise InputError("sampling at a temperature above 0 needs seeds: give one whole number for each row, or temperature=0")
    tokens, biases = _biases(logit_bias, batch, vocab_size)
    neutral = {name: number for name, (number, _, _) in _NUMBERS.items()}
    used = {name for name, value in values.items() if (value != neutral.get(name, 0)).any()}
    used.add("temperature")  # always there, so that another one compiles nothing
    used |= {"logit_bias"} if tokens.size else set()
    used |= {"no_repeat_ngram_size"} if size else set()
    return Sampling(
        key=jnp.asarray(_keys(0 if seeds is None else seeds, batch)),
        **{name: jnp.asarray(value) for name, value in values.items()},
        bias_tokens=jnp.asarray(tokens),
        bias_values=jnp.asarray(biases),
        no_repeat_ngram_size=size,
        used=tuple(name for name in PROCESSORS if name in used),
    )


def process(logits: Float[Array, "batch vocab"], sampling: Sampling, history: History, ends: tuple[int, ...] = ()) -> Logits:
    """What the settings make of a model's logits, in float32; -inf where a token is impossible.

    `ends` are the tokens that end a text. The softmax of the result is what `choose` draws from.
    """
    logits, greedy = logits.astype(jnp.float32), (sampling.temperature == 0)[:, None]
    for name, processor in PROCESSORS.items():
        if name in sampling.used:
            processed = processor(logits, sampling, history, ends)
            logits = jnp.where(greedy, logits, processed) if name in TRUNCATING else processed
    return logits


def choose(logits: Logits, sampling: Sampling, history: History) -> Int[Array, "batch"]:
    """The next token of each row, drawn from the softmax of processed logits; the best one where the temperature is 0.

    A block of the vocabulary is drawn by its share, and a token within it by its own, each as the best after Gumbel noise.
    That is the same distribution for a hundredth of the random numbers, which would take longer than all processors.
    """
    blocks = processors.in_blocks(logits, -jnp.inf)
    greedy = (sampling.temperature == 0)[:, None]
    keys = jax.random.wrap_key_data(sampling.key, impl="threefry2x32")  # the one whose draws do not change under vmap
    keys = jax.vmap(lambda key, written: jax.random.split(jax.random.fold_in(key, written)))(keys, history.written)
    shares = jnp.where(greedy, blocks.max(axis=2), jax.nn.logsumexp(blocks, axis=2))
    block = _best(shares, keys[:, 0], greedy)
    token = _best(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], keys[:, 1], greedy)
    return block * blocks.shape[2] + token


def _best(scores: Float[Array, "batch n"], keys: Array, greedy: Array) -> Int[Array, "batch"]:
    noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:], jnp.float32, mode="high"))(keys)
    return jnp.argmax(jnp.where(greedy, scores, scores + noise), axis=1)


def _rows(name: str, value: object, batch: int, kinds: str, expected: str) -> np.ndarray:
    """One value for each row, of a dtype of one of `kinds`."""
    try:
        value = np.asarray(value)
    except (TypeError, ValueError):
        value = np.asarray(None)
    if value.dtype.kind not in kinds:
        raise InputError(f"{name} is no number: expected {expected}, or one for each row")
    if value.shape not in ((), (batch,)):
        raise InputError(f"{name} has the shape {value.shape}: expected {expected}, or one for each of the {batch} rows")
    return np.broadcast_to(value, (batch,))


def _refuse(name: str, value: np.ndarray, accepted: np.ndarray, expected: str) -> None:
    if not accepted.all():
        raise InputError(f"{name}={value[~accepted][0]}: expected {expected}")


def _numbers(name: str, value: object, batch: int) -> np.ndarray:
    _, accepts, expected = _NUMBERS[name]
    value = _rows(name, value, batch, "iuf", expected)
    _refuse(name, value, accepts(value), expected)
    return value.astype(np.float32)


def _counts(name: str, value: object, batch: int) -> np.ndarray:
    value = _rows(name, value, batch, "iu", _COUNTS[name])
    _refuse(name, value, value >= 0, _COUNTS[name])
    return np.minimum(value, UNUSED).astype(np.int32)


def _keys(seeds: object, batch: int) -> np.ndarray:
    """Each seed as the two halves of a threefry key, the upper one first."""
    expected = "a whole number of up to 64 bits"
    seeds = _rows("seeds", seeds, batch, "iuO", expected)
    try:
        seeds = [operator.index(seed) for seed in seeds]
    except TypeError:
        raise InputError(f"seeds is no number: expected {expected}, or one for each row") from None
    wrong = [seed for seed in seeds if not -(2**63) <= seed < 2**64]
    if wrong:
        raise InputError(f"seeds={wrong[0]}: expected {expected}, or one for each row")
    return np.array([[seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF] for seed in seeds], np.uint32).reshape(batch, 2)


def _biases(given: object, batch: int, vocab_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and values, padded to a power of two: so a few more of them compile nothing."""
    rows = given if isinstance(given, Sequence) else [given] * batch
    if len(rows) != batch or not all(row is None or isinstance(row, Mapping) for row in rows):
        raise InputError(f"logit_bias: expected a mapping from tokens to numbers, or one for each of the {batch} rows")
    most = max((len(row or {}) for row in rows), default=0)
    width = 1 << (most - 1).bit_length() if most else 0
    tokens, values = np.full((batch, width), UNUSED, np.int32), np.zeros((batch, width), np.float32)
    last = (vocab_size or UNUSED) - 1
    for i, row in enumerate(rows):
        for j, (token, value) in enumerate((row or {}).items()):
            if not (isinstance(token, int | np.integer) and 0 <= token <= last):
                raise InputError(f"logit_bias has the token {token!r}: expected whole numbers from 0 to {last}")
            if not (isinstance(value, int | float | np.number) and value < np.inf):
                raise InputError(f"logit_bias of token {token} is {value!r}: expected a number (-inf to ban the token)")
            tokens[i, j], values[i, j] = token, value
    return tokens, values
