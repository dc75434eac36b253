"""Text to batches: sources of documents, tokenizers, the tokenised corpus on disk, and the grain pipelines.

The pipelines load when they are first used: grain takes time, and those who only want a tokenizer need none.
"""

from flaxllm.data.corpus import Corpus, load_corpus
from flaxllm.data.holdout import Documents, Split, split, split_rows, whole
from flaxllm.data.mixture import Mixture, mixing_rates
from flaxllm.data.pieces import Pieces
from flaxllm.data.records import Records, read_records
from flaxllm.data.sources import EMBEDDED, read_documents, source_stamp
from flaxllm.data.tokenizer_files import NoTokenizer
from flaxllm.data.tokenizer_files import load as load_tokenizer
from flaxllm.data.tokenizer_makers import TRAINED, byte_level, char_level, make_tokenizer, train_bpe
from flaxllm.data.tokenizers import Tokenizer

_PIPELINES = ("Stream", "eval_batches", "train_stream", "with_segments")


def __getattr__(name: str):
    if name in _PIPELINES:
        from flaxllm.data import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
