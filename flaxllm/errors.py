"""What a person did wrong, said in one sentence.

Every check of what comes from outside (a config key, a file, a shape, a request) raises `InputError`; the command
line prints its sentence, and nothing else of it, and exits with code 2.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the message says what was wrong, where, what was expected and what to do."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The end of an error message that names the nearest of `options`, or else lists them all."""
    options = sorted(map(str, options))
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(options)}"
