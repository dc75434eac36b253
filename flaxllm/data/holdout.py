"""What a model is trained on, and what is held out to judge it by."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from flaxllm.data.corpus import Corpus
from flaxllm.errors import InputError, did_you_mean

HOLDOUTS = ("tail", "documents")


@dataclass(frozen=True)
class Documents:
    """Some of a corpus: document i is `tokens[start:stop]` for `start, stop = spans[i]`."""

    tokens: np.ndarray  # [tokens], all of the corpus
    spans: np.ndarray  # int64 [documents, 2]
    num_bytes: int  # the length of their text in UTF-8


@dataclass(frozen=True)
class Split:
    train: Documents
    eval: Documents
    fingerprint: str  # sha256 over tokens, offsets, tokenizer and how they were split, in hex


def split(corpus: Corpus, holdout: str = "tail", eval_fraction: float = 0.1, seed: int = 0) -> Split:
    """Holds out `eval_fraction` of the corpus.

    "tail" takes the end of it in the source's order, to the token, so that at most one document is cut in two; of one
    document of characters it takes what nanoGPT takes. "documents" takes whole documents by a hash of `seed` and
    their index, so that adding documents at the end moves none of the others.

    Raises:
      InputError: an unknown `holdout`, a fraction out of [0, 1), or a side without a token to predict.
    """
    _check(holdout, eval_fraction)
    if holdout == "tail":
        train, held_out = _split_tail(corpus, eval_fraction)
    else:
        train, held_out = _split_documents(corpus, eval_fraction, seed)
    for name, side, wanted in (("training", train, True), ("evaluation", held_out, eval_fraction > 0)):
        if wanted and not np.any(np.diff(side.spans) > 1):
            raise InputError(
                f"holding out {eval_fraction} of {len(corpus.num_bytes)} documents by {holdout!r} leaves {name} "
                "nothing to predict: change eval_fraction or holdout, or use more text"
            )
    how = [holdout, float(eval_fraction), seed if holdout == "documents" else None]
    facts = json.dumps([corpus.digest, corpus.tokenizer.fingerprint, *how])
    return Split(train, held_out, hashlib.sha256(facts.encode()).hexdigest())


def split_rows(count: int, holdout: str, eval_fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the records to train on and of those held out, both in order; `holdout` as for `split`.

    Raises:
      InputError: an unknown `holdout`, or a fraction out of [0, 1).
    """
    _check(holdout, eval_fraction)
    if holdout == "tail":
        held_out = np.arange(count) >= round(count * (1.0 - eval_fraction))
    else:
        held_out = _uniform(count, seed) < eval_fraction
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _check(holdout: str, eval_fraction: float) -> None:
    if not 0.0 <= eval_fraction < 1.0:
        raise InputError(f"eval_fraction is {eval_fraction}, it must lie in [0, 1)")
    if holdout not in HOLDOUTS:
        raise InputError(f"there is no holdout {holdout!r}: {did_you_mean(holdout, HOLDOUTS)}")


def _split_tail(corpus: Corpus, eval_fraction: float) -> tuple[Documents, Documents]:
    endings = 0 if corpus.tokenizer.end_of_text is None else 1
    # The fraction is one of text: a document's end-of-text token goes with its last character.
    text_offsets = corpus.offsets - endings * np.arange(len(corpus.offsets))
    kept = int(text_offsets[-1] * (1.0 - eval_fraction))
    index = int(np.searchsorted(text_offsets, kept, side="right")) - 1
    spans = _spans(corpus)
    if index == len(spans):
        return _select(corpus, slice(None)), _select(corpus, slice(0))
    start, stop = spans[index]
    cut = start + kept - text_offsets[index]
    if cut == start:
        return _select(corpus, slice(index)), _select(corpus, slice(index, None))
    cut_bytes = int(corpus.num_bytes[index])
    tail_bytes = min(corpus.tokenizer.num_bytes(corpus.tokens[cut : stop - endings]), cut_bytes)
    before, after = _select(corpus, slice(index)), _select(corpus, slice(index + 1, None))
    head = np.vstack([before.spans, [[start, cut]]])
    tail = np.vstack([[[cut, stop]], after.spans])
    return (
        Documents(corpus.tokens, head, before.num_bytes + cut_bytes - tail_bytes),
        Documents(corpus.tokens, tail, after.num_bytes + tail_bytes),
    )


def _split_documents(corpus: Corpus, eval_fraction: float, seed: int) -> tuple[Documents, Documents]:
    held_out = _uniform(len(corpus.num_bytes), seed) < eval_fraction
    return _select(corpus, ~held_out), _select(corpus, held_out)


def whole(corpus: Corpus) -> Documents:
    """All of a corpus."""
    return _select(corpus, slice(None))


def _select(corpus: Corpus, which: slice | np.ndarray) -> Documents:
    return Documents(corpus.tokens, _spans(corpus)[which], int(corpus.num_bytes[which].sum()))


def _spans(corpus: Corpus) -> np.ndarray:
    return np.stack([corpus.offsets[:-1], corpus.offsets[1:]], axis=1)


def _uniform(count: int, seed: int) -> np.ndarray:
    """A number in [0, 1) for each index, from the seed and the index alone (SplitMix64: Steele et al. 2014)."""
    start = np.uint64(int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little"))
    z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * 2.0**-53
