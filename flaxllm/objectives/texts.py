"""Documents as the texts that examples are made of: cut to a length, without the tokens that end them."""

from dataclasses import replace

import numpy as np

from flaxllm.data import Documents, Pieces, Tokenizer
from flaxllm.errors import InputError


def texts_of(documents: Documents, tokenizer: Tokenizer, length: int) -> Pieces:
    """Pieces of 2 to `length` tokens, int32, each of one document. They share no token, and have no end-of-text token."""
    return Pieces(cut(documents, tokenizer, length), length)


def cut(documents: Documents, tokenizer: Tokenizer, length: int) -> Documents:
    """The documents, each cut into parts of `length` tokens and a last one that is shorter, without the token that ends it.
    Parts of one token are left out.

    Raises:
      InputError: `length` is less than 2.
    """
    if length < 2:
        raise InputError(f"data.max_len leaves room for {length} tokens of text, and an example needs 2: raise it")
    starts, stops = documents.spans.T
    ends = (stops > starts) & (documents.tokens[np.maximum(stops - 1, 0)] == tokenizer.end_of_text)
    stops = stops - ends
    counts = -((starts - stops) // length)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of each part in its document
    starts = np.repeat(starts, counts) + number * length
    spans = np.stack([starts, np.minimum(starts + length, np.repeat(stops, counts))], axis=1)
    return replace(documents, spans=spans[np.diff(spans)[:, 0] > 1])
