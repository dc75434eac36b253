"""Text to batches: sources of documents, tokenizers, the tokenised corpus on disk, and the grain pipelines."""

from flaxllm.data.corpus import Corpus, load_corpus
from flaxllm.data.holdout import Documents, Split, split
from flaxllm.data.pieces import Pieces
from flaxllm.data.pipeline import Stream, eval_batches, train_stream
from flaxllm.data.sources import EMBEDDED, read_documents, source_stamp
from flaxllm.data.tokenizer_files import NoTokenizer
from flaxllm.data.tokenizer_files import load as load_tokenizer
from flaxllm.data.tokenizer_makers import byte_level, char_level, make_tokenizer, train_bpe
from flaxllm.data.tokenizers import Tokenizer
