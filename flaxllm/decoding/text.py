"""Text out of tokens as they come: no half characters, and nothing of a string at which the text is to stop."""

from collections.abc import Sequence

import numpy as np

from flaxllm.data.tokenizers import Tokenizer

_UNFINISHED = "\ufffd"  # what stands for bytes that are no whole character
_MOST_UNFINISHED = 8  # tokens after which bytes that are still no character are taken as they are


class TextStream:
    """One sequence's text, piece by piece.

    `push(token)` gives what can be said for certain to come next: a character whose bytes are spread over tokens comes with
    its last one, and the beginning of a stop string when it turns out not to be one. Of special tokens, and of those that
    only the model has, nothing is said. When a stop string is complete, `stopped` is True, and the text ends before it.
    `finish()` gives what was held back. `after` are the tokens before the text: a tokenizer that drops a space at the
    beginning of all keeps it after them.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), after: Sequence[int] | np.ndarray = ()):
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._special = {index for index, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
        self._tokens = [token for token in map(int, after[-_MOST_UNFINISHED:]) if self._has_text(token)]
        # tokens[begin:said] are said already, and decoded again for the sake of the next ones.
        self._begin, self._said = 0, len(self._tokens)
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        if self.stopped or not self._has_text(token):
            return ""
        self._tokens.append(token)
        piece = self._new_text()
        if piece.endswith(_UNFINISHED) and len(self._tokens) - self._said < _MOST_UNFINISHED:
            return ""
        self._begin, self._said = self._said, len(self._tokens)
        return self._say(piece)

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        if self.stopped:
            return ""
        said = self._say(self._new_text())
        self._said = len(self._tokens)
        if self.stopped:
            return said
        self.text, said, self._held = self.text + self._held, said + self._held, ""
        return said

    @property
    def position(self) -> int:
        """How many characters there are, those held back included: there the next token's text begins."""
        return len(self.text) + len(self._held)

    def _has_text(self, token: int) -> bool:
        return 0 <= token < self._tokenizer.vocab_size and token not in self._special

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._tokens[self._begin : self._said])
        return self._tokenizer.decode(self._tokens[self._begin :])[len(before) :]

    def _say(self, piece: str) -> str:
        held = self._held + piece
        found = [place for place in (held.find(string) for string in self._stop) if place >= 0]
        if found:
            self.stopped, said, self._held = True, held[: min(found)], ""
        else:
            keep = max((_overlap(held, string) for string in self._stop), default=0)
            said, self._held = held[: len(held) - keep], held[len(held) - keep :]
        self.text += said
        return said


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of `text` could be the beginning of `string`."""
    return next((size for size in range(min(len(text), len(string)), 0, -1) if text.endswith(string[:size])), 0)
