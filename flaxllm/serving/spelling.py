"""How single tokens are written in answers: as the text they stand for after other text, or as bytes that are no text."""

import re

from flaxllm.data import Tokenizer
from flaxllm.data.byte_bpe import byte_letters

_UNFINISHED = "\ufffd"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Spelling:
    """The tokens of a tokenizer, each spelt once."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, bytes]] = {}
        self._letters = {letter: byte for byte, letter in enumerate(byte_letters())}
        try:
            self._before = tokenizer.encode("a")[-1:].tolist()  # after it a token keeps its space
        except ValueError:  # there is no such letter
            self._before = []

    def text(self, token: int) -> str:
        """The text, or in OpenAI's way `bytes:\\xe2\\x82` of what is no whole character."""
        return self._spelt(token)[0]

    def byte_values(self, token: int) -> list[int]:
        return list(self._spelt(token)[1])

    def _spelt(self, token: int) -> tuple[str, bytes]:
        if token not in self._known:
            self._known[token] = self._spell(token)
        return self._known[token]

    def _spell(self, token: int) -> tuple[str, bytes]:
        if token >= self._tokenizer.vocab_size:
            return "", b""  # a place that the model has for tokens to come
        before = self._tokenizer.decode(self._before)
        text = self._tokenizer.decode([*self._before, token])[len(before) :]
        raw = self._raw(token) if _UNFINISHED in text else None
        if raw is None:
            return text, text.encode()
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw

    def _raw(self, token: int) -> bytes | None:
        """The bytes of a token of a byte-level vocabulary or of a byte of a sentencepiece one; None for any other."""
        piece = self._tokenizer.backend.id_to_token(token) or ""
        if found := _BYTE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return bytes(self._letters[letter] for letter in piece) if piece and set(piece) <= set(self._letters) else None
