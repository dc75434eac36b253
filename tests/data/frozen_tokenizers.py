"""The tokenizers of the fixtures, and what transformers gives with them (see make_tokenizer_fixtures.py)."""

import json
from pathlib import Path

import pytest

from flaxllm.data import Tokenizer, load_tokenizer
from flaxllm.errors import InputError

FOLDER = Path(__file__).parent / "fixtures" / "tokenizers"
GGUF = ("gpt-2", "smollm", "llama-bpe", "qwen2")


def read(name: str) -> dict:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


TEXTS = read("texts.json")
REAL = read("real.json")
MESSAGES = read("qwen2/chats.json")["messages"]


def frozen(name: str) -> dict:
    return read(f"{plain(name)}/frozen.json")


def load(name: str) -> Tokenizer:
    return load_tokenizer(FOLDER / (f"{name}.gguf" if name in GGUF else name.removesuffix("_pair")))


def plain(name: str) -> str:
    return name.removesuffix("_saved").removesuffix("_pair")


def rows_of(encoded, name: str) -> list[list]:
    """The rows of an array without what fills them up."""
    return [row[valid].tolist() for row, valid in zip(getattr(encoded, name), encoded.valid)]


def refused(path: Path | str) -> str:
    """What is said where there is no tokenizer to be had."""
    with pytest.raises(InputError) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)
