"""SentencePiece models (Kudo and Richardson 2018) as backends of the `tokenizers` library, with the same pieces for a text.

T5 and mT5 have unigram models, Llama 2 and its kin BPE with a piece for each byte, Marian a unigram model a language.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from flaxllm.data.library_errors import one_line
from flaxllm.errors import InputError

SPACE = "\u2581"  # what stands for a space in pieces

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of pieces, numbered as in the models' files
_UNIGRAM, _BPE = 1, 2


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """A model: its pieces by id, and what is done to a text before it is cut into them."""

    pieces: Sequence[Piece]
    is_unigram: bool
    unk: int
    tokens_by_role: Mapping[str, str] = dataclasses.field(default_factory=dict)
    charsmap: bytes = b""  # the compiled rules by which characters are replaced
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    split_by_whitespace: bool = True


def read_model(path: Path) -> SentencePiece:
    """The model in a file that SentencePiece wrote.

    Raises:
      InputError: it is no such file, is damaged or cut short, or has settings that the `tokenizers` library cannot follow.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    try:
        model = ModelProto.FromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise InputError(f"{path} is not a SentencePiece model that can be read: {one_line(error)}") from error
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if not model.pieces or not model.HasField("trainer_spec") or not model.HasField("normalizer_spec"):
        raise InputError(
            f"{path} is not a whole SentencePiece model: fetch it again, or, as Llama 3 has another kind of file of this name, "
            "the tokenizer.json beside it"
        )
    if trainer.model_type not in (_UNIGRAM, _BPE):
        raise InputError(f"{path} is a SentencePiece model of type {trainer.model_type}: expected 1 (unigram) or 2 (BPE)")
    if trainer.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
        raise InputError(f"{path} treats spaces as suffixes or as themselves: only models that put {SPACE} for them are read")
    texts = {piece.piece for piece in model.pieces if isinstance(piece.piece, str)}  # it is bytes where it is not UTF-8
    if len(texts) < len(model.pieces) or "" in texts:
        raise InputError(f"{path} has a piece that is empty, not UTF-8, or there twice: fetch it again")
    # The scores are float32; written as such they come back from a tokenizer.json the same to the last bit.
    pieces = [Piece(piece.piece, float(str(np.float32(piece.score))), piece.type) for piece in model.pieces]
    ids = {"bos": trainer.bos_id, "eos": trainer.eos_id, "unk": trainer.unk_id, "pad": trainer.pad_id}
    if not 0 <= trainer.unk_id < len(pieces) or max(ids.values()) >= len(pieces):
        raise InputError(f"{path} has special pieces {ids}, but {len(pieces)} pieces: fetch it again")
    return SentencePiece(
        pieces=pieces,
        is_unigram=trainer.model_type == _UNIGRAM,
        unk=trainer.unk_id,
        tokens_by_role={role: pieces[index].text for role, index in ids.items() if index >= 0},
        charsmap=normalizer.precompiled_charsmap,
        add_dummy_prefix=normalizer.add_dummy_prefix,
        remove_extra_whitespaces=normalizer.remove_extra_whitespaces,
        split_by_whitespace=trainer.split_by_whitespace,
    )


def sentencepiece_backend(model: SentencePiece) -> tokenizers.Tokenizer:
    """The backend that cuts a text into the model's pieces, and has their ids."""
    vocab = [(piece.text, piece.score) for piece in model.pieces]
    byte_fallback = any(piece.kind == BYTE for piece in model.pieces)
    if model.is_unigram:
        core = models.Unigram(vocab, model.unk, byte_fallback)
    else:
        core = models.BPE(
            {text: index for index, (text, _) in enumerate(vocab)},
            _merges(model.pieces),
            unk_token=vocab[model.unk][0],
            fuse_unk=True,
            byte_fallback=byte_fallback,
            ignore_merges=bool(_texts(model.pieces, USER_DEFINED)),
        )
    backend = tokenizers.Tokenizer(core)
    with_spaces(backend, model)
    if model.is_unigram or _texts(model.pieces, USER_DEFINED):  # these look whole words up in the vocabulary
        keep_as_text(backend, _texts(model.pieces, UNKNOWN, CONTROL, UNUSED, BYTE))
    special = [AddedToken(text, normalized=False, special=True) for text in _texts(model.pieces, UNKNOWN, CONTROL)]
    backend.add_special_tokens(special)
    return backend


def with_spaces(backend: tokenizers.Tokenizer, model: SentencePiece) -> None:
    """Makes a backend treat a text before and after the pieces as the model's settings say."""
    before = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    words = []
    if model.remove_extra_whitespaces and model.add_dummy_prefix and model.split_by_whitespace:
        # Each word by itself, so that none is cut twice and the place of a token has no space in it.
        words = [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Metaspace(SPACE, "always", split=True)]
    else:
        if model.remove_extra_whitespaces:
            before += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        before += [normalizers.Prepend(SPACE)] if model.add_dummy_prefix else []
        before += [normalizers.Replace(" ", SPACE)]
    user_defined = sorted(_texts(model.pieces, USER_DEFINED), key=len, reverse=True)
    if user_defined:
        words += [pre_tokenizers.Split(Regex("|".join(map(re.escape, user_defined))), "isolated")]
    backend.normalizer = normalizers.Sequence(before) if before else None
    backend.pre_tokenizer = pre_tokenizers.Sequence(words) if words else None
    after = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(after + ([decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else []))


def keep_as_text(backend: tokenizers.Tokenizer, tokens: Iterable[str]) -> None:
    """Keeps a model that looks whole words up in its vocabulary from finding these tokens in a text that spells them.

    Their text is cut behind its first character. (Control and byte pieces match no text in SentencePiece, but do in the
    `tokenizers` library: a document could end itself by "</s>".)
    """
    rests: dict[str, list[str]] = {}
    for token in sorted(set(tokens), key=lambda token: (-len(token), token)):
        if len(token) > 1:
            rests.setdefault(token[0], []).append(re.escape(token[1:]))
    if not rests:
        return
    pattern = "|".join(f"(?<={re.escape(first)})(?:{'|'.join(rest)})" for first, rest in rests.items())
    cut = pre_tokenizers.Split(Regex(pattern), "merged_with_next")
    words = backend.pre_tokenizer
    if words is None:
        backend.pre_tokenizer = cut
    elif json.dumps(pattern) not in words.__getstate__().decode():
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, cut])


def put_around(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Makes a backend put `bos` before and `eos` after each text, where they are not None."""
    one = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    special = [(token, backend.token_to_id(token)) for token in dict.fromkeys(filter(None, (bos, eos)))]
    pair = one + [piece.replace("$A", "$B") for piece in one]
    backend.post_processor = processors.TemplateProcessing(single=one, pair=pair, special_tokens=special)


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """The pairs that a piece may be merged from, the best piece first: SentencePiece merges the best there is each time."""
    ranks = {piece.text: (-piece.score, index) for index, piece in enumerate(pieces) if piece.kind == NORMAL}
    merges = []
    for text, rank in ranks.items():
        cuts = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        merges += [(rank, pair) for pair in cuts if pair[0] in ranks and pair[1] in ranks]
    return [pair for _, pair in sorted(merges)]


def _texts(pieces: Sequence[Piece], *kinds: int) -> list[str]:
    return [piece.text for piece in pieces if piece.kind in kinds]
