"""Tokens hidden for a model to tell (Devlin et al. 2019, section 3.1), chosen and hidden as the released code does it.

Of a row of n tokens, special ones counted, round(15% of n) are chosen, one at least: 80% of them become the mask token, 10%
a token drawn from the whole vocabulary, 10% stay. Special tokens are never chosen.
"""

import json
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxllm.data import Tokenizer
from flaxllm.data.byte_bpe import byte_letters
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives.objective import Batch, Term
from flaxllm.objectives.vocabulary import vocabulary_terms

_MASKED, _KEPT = 0.8, 0.1


class Masking(NamedTuple):
    """What decides which tokens are hidden: `rate` of them, and of each id whether it is special, and whether it begins what
    is hidden as one: a word, or else a token."""

    rate: float
    mask: int
    special: np.ndarray  # bool [vocab]
    begins: np.ndarray  # bool [vocab]


def make_masking(tokenizer: Tokenizer, rate: float, whole_words: bool) -> Masking:
    """Masking with a tokenizer's tokens.

    Raises:
      InputError: the tokenizer has no mask token, or does not tell where words begin.
    """
    if tokenizer.mask is None:
        raise InputError("the tokenizer has no mask token, which hides the others: use one that has it, such as BERT's")
    special = np.zeros(tokenizer.vocab_size, bool)
    special[[tokenizer.backend.token_to_id(token) for token in tokenizer.special_tokens]] = True
    begins = special | word_starts(tokenizer) if whole_words else np.ones_like(special)
    return Masking(rate, tokenizer.mask, special, begins)


def check_rate(name: str, rate: float) -> None:
    if not 0.0 < rate < 1.0:
        raise InputError(f"objective.{name} is {rate}: it must lie between 0 and 1")


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """For each id whether a word begins with it, bool `[vocab]`: WordPiece marks those inside a word ("##"), byte-level BPE
    and SentencePiece those after a space ("Ġ", "▁").

    Raises:
      InputError: the tokenizer marks neither.
    """
    spec = json.loads(tokenizer.backend.to_str())
    inside = spec["model"].get("continuing_subword_prefix")
    is_byte_level = (spec["decoder"] or {}).get("type") == "ByteLevel"
    spaces = tuple(byte_letters()[byte] for byte in b" \t\n\r") if is_byte_level else "▁"
    starts = np.zeros(tokenizer.vocab_size, bool)
    for token, index in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        starts[index] = not token.startswith(inside) if inside else token.startswith(spaces)
    if not starts.any():
        raise InputError("the tokenizer does not tell where words begin, by '##', 'Ġ' or '▁': set objective.whole_words to False")
    return starts


def with_special_tokens(tokenizer: Tokenizer, *texts: np.ndarray) -> list[np.ndarray]:
    """[CLS] and the first text, and [SEP] after each; without them where the tokenizer has none."""
    first, last = ([] if token is None else [token] for token in (tokenizer.cls, tokenizer.sep))
    parts = [np.concatenate([text, last]) for text in texts]
    return [np.concatenate([first, parts[0]]).astype(np.int32), *(part.astype(np.int32) for part in parts[1:])]


def text_room(tokenizer: Tokenizer, max_len: int, num_texts: int) -> int:
    """How many tokens texts may have between them where special ones come around."""
    return max_len - (tokenizer.cls is not None) - num_texts * (tokenizer.sep is not None)


def hide(tokens: np.ndarray, masking: Masking, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A row of tokens, int32 `[length]`, with some hidden, and of these `masked_tokens` (what stood there), `masked_places`
    in the row, and `masked_weights`."""
    places = _chosen(tokens, masking, rng)
    draw = rng.random(len(places))
    drawn = rng.integers(len(masking.special), size=len(places))
    hidden = tokens.copy()
    hidden[places] = np.where(draw < _MASKED, masking.mask, np.where(draw < _MASKED + _KEPT, tokens[places], drawn))
    return {
        "tokens": hidden,
        "masked_tokens": tokens[places],
        "masked_places": places.astype(np.int32),
        "masked_weights": np.ones(len(places), np.float32),
    }


def _chosen(tokens: np.ndarray, masking: Masking, rng: np.random.Generator) -> np.ndarray:
    """The places to be hidden: words in a random order, each that still fits."""
    room = _num_masked(len(tokens), masking.rate)
    places = np.flatnonzero(~masking.special[tokens])
    word = np.cumsum(masking.begins[tokens])[places]
    words, sizes = np.unique(word, return_counts=True)
    chosen = []
    for index in rng.permutation(len(words)):
        if room == 0:
            break
        if sizes[index] <= room:
            chosen.append(index)
            room -= sizes[index]
    return places[np.isin(word, words[chosen])]


def _num_masked(length: int, rate: float) -> int:
    return max(1, round(rate * length))


def empty_masked_row(length: int, rate: float) -> dict[str, np.ndarray]:
    """An empty row. It has places for what is hidden of one full example, and up to seven more, which packed ones may need."""
    tokens, places = np.zeros(length, np.int32), np.zeros(-(-_num_masked(length, rate) // 8) * 8, np.int32)
    return {"tokens": tokens, "masked_tokens": places, "masked_places": places, "masked_weights": places.astype(np.float32)}


def masked_terms(
    model: Model, params: dict, hidden: Float[Array, "batch length embed"], batch: Batch, ctx: Context, max_logit_bytes: int
) -> dict[str, Term]:
    """The loss and the accuracy of the hidden tokens; logits are made at their places only."""
    own = batch["segments"][:, None, :] == batch["masked_segments"][:, :, None]
    places = own.argmax(-1) + batch["masked_places"]
    at_places = jnp.take_along_axis(hidden, places[:, :, None], axis=1)
    terms = vocabulary_terms(
        model, params, at_places, batch["masked_tokens"], batch["masked_weights"], ctx, max_logit_bytes=max_logit_bytes
    )
    # Without any regularizer the cross-entropy is the loss; and it is no code length of the text.
    return {name: terms[name] for name in ("loss", "accuracy")}
