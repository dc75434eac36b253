"""The tokenizer inside a GGUF file."""

import dataclasses
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from flaxllm.data.byte_bpe import WORDS, find_words
from flaxllm.data.gguf_metadata import read_metadata
from flaxllm.data.json_file import brief
from flaxllm.data.library_errors import blaming
from flaxllm.data.sentencepiece_files import (
    BYTE,
    CONTROL,
    USER_DEFINED,
    Piece,
    SentencePiece,
    put_around,
    sentencepiece_backend,
)
from flaxllm.data.tokenizer_config import as_templates
from flaxllm.data.tokenizers import Tokenizer
from flaxllm.errors import InputError, did_you_mean

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask"}


def load_gguf(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file: byte-level BPE ("gpt2") or SentencePiece BPE ("llama"); the tensors are not read.

    Raises:
      InputError: the file is damaged, has no tokenizer, or one of another kind, or its parts contradict each other.
    """
    metadata = _Keys(path, read_metadata(path))
    kind = metadata.get("ggml.model", str)
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise InputError(f"{path} has a tokenizer of the kind {kind!r}: {did_you_mean(kind, builders)}")
    tokens = metadata.strings("ggml.tokens")
    if len(set(tokens)) < len(tokens):
        raise InputError(f"{path} has a token twice (tokenizer.ggml.tokens): fetch it again")
    with blaming(f"{path} has a tokenizer that cannot be used"):
        backend = builders[kind](metadata, tokens)
    ids = {role: metadata.token_id(f"ggml.{name}_token_id", len(tokens)) for role, name in _ROLES.items()}
    special = [AddedToken(tokens[index], normalized=False, special=True) for index in ids.values() if index is not None]
    backend.add_special_tokens(special)
    adds_bos = kind == "llama" or WORDS[metadata.get("ggml.pre", str)].adds_bos
    adds = {"bos": metadata.get("ggml.add_bos_token", bool, adds_bos), "eos": metadata.get("ggml.add_eos_token", bool, False)}
    put_around(backend, *(tokens[ids[role]] if add and ids[role] is not None else None for role, add in adds.items()))
    return Tokenizer(backend, **ids, chat_template=metadata.chat_template(), max_len=metadata.context_length())


def _byte_level(metadata: "_Keys", tokens: list[str]) -> tokenizers.Tokenizer:
    pre = metadata.get("ggml.pre", str)
    if pre not in WORDS:
        raise InputError(f"{metadata.path} finds words as {pre!r} does (tokenizer.ggml.pre): {did_you_mean(pre, WORDS)}")
    merges = [tuple(merge.split(" ")) for merge in metadata.strings("ggml.merges")]
    if any(len(merge) != 2 for merge in merges):
        raise InputError(f"{metadata.path} has a merge that is not of two tokens (tokenizer.ggml.merges): fetch it again")
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=WORDS[pre].ignore_merges))
    find_words(backend, WORDS[pre])
    kinds = metadata.numbers("ggml.token_type", len(tokens))
    for kind in (CONTROL, USER_DEFINED):
        found = [token for token, its_kind in zip(tokens, kinds) if its_kind == kind]
        backend.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL) for token in found])
    return backend


def _sentencepiece(metadata: "_Keys", tokens: list[str]) -> tokenizers.Tokenizer:
    kinds, scores = (metadata.numbers(f"ggml.{name}", len(tokens)) for name in ("token_type", "scores"))
    pieces = [Piece(*piece) for piece in zip(tokens, scores, kinds)]
    if not any(piece.kind == BYTE for piece in pieces):
        raise InputError(f"{metadata.path} has no token that is a byte (tokenizer.ggml.token_type): expected 256 of them")
    unk = metadata.token_id("ggml.unknown_token_id", len(tokens))
    prefix = metadata.get("ggml.add_space_prefix", bool, True)
    return sentencepiece_backend(SentencePiece(pieces, is_unigram=False, unk=unk or 0, add_dummy_prefix=prefix))


@dataclasses.dataclass(frozen=True)
class _Keys:
    """The metadata of a file below "tokenizer.", each value checked when it is asked for."""

    path: Path
    metadata: dict[str, Any]

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """The value of a key; one that may be missing has a default."""
        value = self.metadata.get(f"tokenizer.{name}", default)
        if value is None:
            raise InputError(f"{self.path} has no tokenizer.{name}: expected a file with its tokenizer")
        if not isinstance(value, kind):
            raise InputError(f"{self.path} has tokenizer.{name} {brief(value)}: expected {kind.__name__}")
        return value

    def strings(self, name: str) -> list[str]:
        values = self.get(name, list)
        if not values or not all(isinstance(value, str) for value in values):
            raise InputError(f"{self.path} has tokenizer.{name} {brief(values)}: expected strings")
        return values

    def numbers(self, name: str, count: int) -> list[int | float]:
        values = self.get(name, list)
        if len(values) != count or not all(isinstance(value, int | float) for value in values):
            raise InputError(f"{self.path} has {len(values)} values in tokenizer.{name}: expected {count} numbers, one a token")
        return values

    def token_id(self, name: str, count: int) -> int | None:
        index = self.metadata.get(f"tokenizer.{name}")
        if index is not None and (type(index) is not int or not 0 <= index < count):
            raise InputError(f"{self.path} has tokenizer.{name} {brief(index)}: expected an id below {count}")
        return index

    def chat_template(self) -> str | dict[str, str] | None:
        names = self.get("chat_templates", list, [])
        named = [{"name": name, "template": self.get(f"chat_template.{name}", str)} for name in names]
        default = self.metadata.get("tokenizer.chat_template")
        return as_templates([{"name": "default", "template": default}, *named] if named else default, self.path)

    def context_length(self) -> int | None:
        length = self.metadata.get(f"{self.metadata.get('general.architecture')}.context_length")
        return length if type(length) is int and length > 0 else None
