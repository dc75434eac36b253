"""What single tokens read like, for pictures."""

import re
from collections.abc import Sequence
from itertools import accumulate, groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from flaxllm.data.byte_bpe import byte_letters
from flaxllm.data.tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # of a SentencePiece vocabulary
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # likewise
_NO_TEXT = re.compile("[\udc80-\udcff]+")  # bytes that are no UTF-8, as Python's surrogateescape has them


class Piece(NamedTuple):
    """A token's `text`; where some of its bytes are no whole character, `whole` is what they read like together with those of
    its neighbours, and `joined` says that the token before is one of these."""

    text: str
    whole: str | None = None
    joined: bool = False


def token_texts(tokenizer: Tokenizer, tokens: Sequence[int] | np.ndarray) -> list[str]:
    """What each token reads like: its text with the space that belongs to it, and bytes that are no whole character in
    hexadecimal, such as "E7 8C". The pieces of WordPiece are as the vocabulary has them ("##ing"), and a token that the
    tokenizer lacks is its id in brackets."""
    return [_readable(spelt) for spelt in _spell(tokenizer, tokens)]


def token_pieces(tokenizer: Tokenizer, tokens: Sequence[int] | np.ndarray, successive: bool = True) -> list[Piece]:
    """The texts of tokens and, where these are successive, which of them share a character."""
    spelt = _spell(tokenizer, tokens)
    text = _decoded(b"".join(spelt))
    between = set(accumulate((len(_encoded(character)) for character in text), initial=0))
    joined = [successive and begin not in between for begin in accumulate(map(len, spelt[:-1]), initial=0)]
    groups = list(accumulate(not join for join in joined))
    wholes = {group: _readable(b"".join(s for _, s in members)) for group, members in groupby(zip(groups, spelt), itemgetter(0))}
    return [
        Piece(_readable(s), wholes[group], join) if _NO_TEXT.search(_decoded(s)) else Piece(_readable(s))
        for s, group, join in zip(spelt, groups, joined)
    ]


def _readable(spelt: bytes) -> str:
    return _NO_TEXT.sub(lambda found: _encoded(found[0]).hex(" ").upper(), _decoded(spelt))


def _decoded(spelt: bytes) -> str:
    return spelt.decode(errors="surrogateescape")


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _spell(tokenizer: Tokenizer, tokens: Sequence[int] | np.ndarray) -> list[bytes]:
    """The bytes that each token stands for."""
    backend = tokenizer.backend
    added = {index: token.content for index, token in backend.get_added_tokens_decoder().items()}
    decoding = "" if backend.decoder is None else backend.decoder.__getstate__().decode()
    letters = {letter: byte for byte, letter in enumerate(byte_letters())} if "ByteLevel" in decoding else {}
    pieces = {index: piece for piece, index in tokenizer.translation.vocab.items()} if tokenizer.translation else None

    def spell(token: int) -> bytes:
        piece = added.get(token, pieces.get(token) if pieces else backend.id_to_token(token))
        if piece is None:
            return f"[{token}]".encode()
        if token in added:
            return piece.encode()
        if letters.keys() >= set(piece):
            return bytes(letters[letter] for letter in piece)
        if found := _BYTE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return (piece.replace(_SPACE, " ") if _SPACE in decoding else piece).encode()

    return [spell(int(token)) for token in tokens]
