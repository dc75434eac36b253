"""What a person did wrong, said in one sentence.

Every check of what comes from outside (a config key, a file, a shape, a request) raises `InputError`; the command
line prints its sentence, and nothing else of it, and exits with code 2.
"""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class InputError(ValueError):
    """Bad input: the message says what was wrong, where, what was expected and what to do."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The end of an error message that names the nearest of `options`, or else lists them all."""
    options = sorted(map(str, options))
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(options)}"


def optional_library(name: str, who: str, install: str) -> ModuleType:
    """A module that the plain install may lack.

    Raises:
      InputError: it is not there: `who` needs it, and `install` is what pip is to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = (error.name or name).partition(".")[0]
        raise InputError(f"{who} needs {missing}, which is not installed: pip install {install}") from error
