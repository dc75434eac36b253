"""What quantized weights save, and what they cost."""

from pathlib import Path

import numpy as np
from rich.console import Console

from flaxllm.console import lead_console, scaled, show_table, text_table
from flaxllm.data import Tokenizer, load_corpus, load_tokenizer, split
from flaxllm.models.quantize import num_bytes, quantize
from flaxllm.objectives.perplexity import perplexity
from flaxllm.pretrained import from_pretrained

NUM_TOKENS = 2048


def show_quantized(path: str | Path, kind: str, text: str | None = None, console: Console | None = None) -> None:
    """Print a checkpoint's memory, and its perplexity on the first 2,048 tokens of a text, before and after `quantize`.

    `text` is a source as the training config names it; unless given, the last tenth of "python-docs".

    Raises:
      InputError: the checkpoint, its tokenizer or the text cannot be read, the model predicts no next token, or its weights
        cannot be quantized so.
    """
    tokenizer = load_tokenizer(path)
    tokens = _tokens(tokenizer, text)
    model, params = from_pretrained(path)
    table = text_table("weights", "memory", f"perplexity on {len(tokens):,} tokens of {text or 'python-docs'}")
    dtype = str(params["embedding"]["tokens"].dtype)
    for name, tree in ((dtype, params), (kind, quantize(model, params, kind))):
        table.add_row(name, f"{scaled(num_bytes(tree), 1024)}B", f"{perplexity(model, tree, tokens):.3f}")
    show_table(console or lead_console(), table)


def _tokens(tokenizer: Tokenizer, text: str | None) -> np.ndarray:
    if text is not None:
        return load_corpus(text, tokenizer).tokens[: NUM_TOKENS + 1].astype(np.int32)
    held_out = split(load_corpus("python-docs", tokenizer)).eval
    documents = [held_out.tokens[start:stop] for start, stop in held_out.spans]
    return np.concatenate(documents)[: NUM_TOKENS + 1].astype(np.int32)
