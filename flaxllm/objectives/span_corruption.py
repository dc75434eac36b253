"""Span corruption (Raffel et al. 2020, sections 3.1.4 and 3.3.4): spans are taken out of a text, and the target is what they
were. Spans and lengths are those of the released code (`random_spans_noise_mask`, `random_spans_helper`).

    source:  Thank you <X> me to your party <Y> week </s>        target:  <X> for inviting <Y> last </s>
"""

from itertools import count

import numpy as np

from flaxllm.data import Documents, Pieces, Tokenizer
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.objectives.encoder_decoder import SourceAndTarget, ended, teacher_forced
from flaxllm.objectives.masking import check_rate
from flaxllm.objectives.objective import Objective
from flaxllm.objectives.texts import texts_of
from flaxllm.objectives.vocabulary import MAX_LOGIT_BYTES


def span_corruption(
    model: Model,
    tokenizer: Tokenizer | None,
    max_len: int,
    *,
    noise_density: float = 0.15,
    mean_span_len: float = 3.0,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> Objective:
    """Batches are those of `teacher_forced`. A full piece of text makes a source of `max_len` tokens.

    `noise_density` of the tokens are taken out, in spans of `mean_span_len` on average. Each span leaves a sentinel in its
    place: "<extra_id_0>", then "<extra_id_1>" and so on; where the tokenizer has none, the last id of the model's vocabulary,
    then the one before it, down to the tokenizer's own.

    Raises:
      InputError: a density, a mean or a length that leaves nothing; a model without an encoder, or that ends its texts with
        another token than the tokenizer; fewer sentinels than spans.
    """
    check_rate("noise_density", noise_density)
    if mean_span_len < 1.0:
        raise InputError(f"objective.mean_span_len is {mean_span_len}: expected 1 or more")
    text_len, target_len = lengths(max_len, noise_density, mean_span_len)
    num_spans = span_counts(text_len, noise_density, mean_span_len)[1]
    sentinels = None if tokenizer is None else sentinel_ids(tokenizer, model.config.vocab_size, num_spans)

    def items(documents: Documents) -> Pieces:
        return texts_of(documents, tokenizer, text_len)

    def pair(piece: np.ndarray, rng: np.random.Generator) -> SourceAndTarget:
        source, target = take_out(piece, noise_spans(len(piece), noise_density, mean_span_len, rng), sentinels)
        return ended(source, tokenizer), ended(target, tokenizer)

    return teacher_forced(
        model,
        tokenizer,
        max_len,
        target_len,
        items=items,
        pair=pair,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        max_logit_bytes=max_logit_bytes,
    )


def span_counts(length: int, density: float, mean_span_len: float) -> tuple[int, int]:
    """How many tokens are taken out of a text of `length`, and in how many spans."""
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / mean_span_len), 1), length - noise)


def lengths(max_len: int, density: float, mean_span_len: float) -> tuple[int, int]:
    """The length of the longest text whose source has `max_len` tokens at most, and that of its target.

    Raises:
      InputError: there is no such text.
    """

    def source_len(length: int) -> int:
        noise, spans = span_counts(length, density, mean_span_len)
        return length - noise + spans + 1

    if source_len(2) > max_len:
        raise InputError(f"data.max_len is {max_len}, and the shortest source of span corruption has {source_len(2)}: raise it")
    length = next(length for length in count(2) if source_len(length + 1) > max_len)
    return length, sum(span_counts(length, density, mean_span_len)) + 1


def noise_spans(length: int, density: float, mean_span_len: float, rng: np.random.Generator) -> np.ndarray:
    """The lengths of the spans of a text, int `[2 * spans]`: one that stays, one that is taken out, and so on in turn."""
    noise, spans = span_counts(length, density, mean_span_len)
    out, kept = (_random_lengths(total, spans, rng) for total in (noise, length - noise))
    return np.stack([kept, out], axis=1).ravel()


def _random_lengths(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`total` tokens in `parts` of one or more each, every way being as likely."""
    places = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff([0, *places, total])


def take_out(tokens: np.ndarray, spans: np.ndarray, sentinels: np.ndarray) -> SourceAndTarget:
    """Source and target, without their ends, of a text whose spans have these lengths."""
    parts = np.split(tokens, np.cumsum(spans)[:-1])
    source, target = [], []
    for kept, out, sentinel in zip(parts[::2], parts[1::2], sentinels):
        source += [*kept, sentinel]
        target += [sentinel, *out]
    return np.array(source, np.int32), np.array(target, np.int32)


def sentinel_ids(tokenizer: Tokenizer, vocab_size: int, needed: int) -> np.ndarray:
    """The ids of `needed` sentinels, the first span's first; `vocab_size` is the model's.

    Raises:
      InputError: there are fewer.
    """
    named = [tokenizer.backend.token_to_id(f"<extra_id_{number}>") for number in range(needed)]
    if named[0] is None:
        named = range(vocab_size - 1, vocab_size - 1 - needed, -1)
        if named[-1] < tokenizer.vocab_size:
            raise InputError(
                f"span corruption needs {needed} sentinels, which the tokenizer does not have: use T5's, or a model.vocab_size "
                f"of {tokenizer.vocab_size + needed} or more, whose last ids can be sentinels"
            )
    if None in named:
        raise InputError(
            f"span corruption needs {needed} sentinels, and the tokenizer has {named.index(None)}: lower data.max_len"
        )
    return np.array(named, np.int32)
