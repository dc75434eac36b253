from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from flaxllm.data import Corpus, Tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Where a test's corpora are kept, so that none is the user's own."""
    monkeypatch.setenv("FLAXLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "corpus"


@pytest.fixture(scope="session")
def corpus_in_memory() -> Callable[[Sequence[str], Tokenizer], Corpus]:
    """Makes a corpus of texts by itself: each encoded whole, its tokens one after another."""

    def make(texts: Sequence[str], tokenizer: Tokenizer) -> Corpus:
        ending = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
        documents = [[*tokenizer.encode(text).tolist(), *ending] for text in texts]
        return Corpus(
            tokens=np.array([*chain.from_iterable(documents)], np.uint16),
            offsets=np.cumsum([0, *map(len, documents)]),
            num_bytes=np.array([len(text.encode()) for text in texts], np.int64),
            tokenizer=tokenizer,
            digest=repr(documents),
        )

    return make
