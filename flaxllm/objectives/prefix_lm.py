"""Prefix language modelling (Raffel et al. 2020, section 3.3.1): a text is cut in two, and its end told from its beginning.

This is the form for encoder-decoders, whose encoder sees all of the prefix. For a decoder alone the prefix would have to be
seen from both sides, and no family here can.
"""

import numpy as np

from flaxllm.data import Documents, Pieces, Tokenizer
from flaxllm.models import Model
from flaxllm.objectives.encoder_decoder import SourceAndTarget, ended, teacher_forced
from flaxllm.objectives.objective import Objective
from flaxllm.objectives.texts import texts_of
from flaxllm.objectives.vocabulary import MAX_LOGIT_BYTES


def prefix_lm(
    model: Model,
    tokenizer: Tokenizer | None,
    max_len: int,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    max_logit_bytes: int = MAX_LOGIT_BYTES,
) -> Objective:
    """Batches are those of `teacher_forced`; sources and targets have `max_len` tokens at most, each with its end.

    A piece of n tokens gives a source of 1 to n - 1 of them, each number being as likely (`random_prefix_noise_mask` in the
    released code), and a target of the rest.

    Raises:
      InputError: a model without an encoder, or that ends its texts with another token than the tokenizer.
    """

    def items(documents: Documents) -> Pieces:
        return texts_of(documents, tokenizer, max_len)

    def pair(piece: np.ndarray, rng: np.random.Generator) -> SourceAndTarget:
        place = int(rng.integers(1, len(piece)))
        return ended(piece[:place], tokenizer), ended(piece[place:], tokenizer)

    return teacher_forced(
        model,
        tokenizer,
        max_len,
        max_len,
        items=items,
        pair=pair,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        max_logit_bytes=max_logit_bytes,
    )
