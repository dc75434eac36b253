"""Parameters chosen by patterns of their paths, such as `"layers/*/kernel"`."""

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from flaxllm.errors import InputError, did_you_mean


def matching(patterns: Iterable[str], paths: Collection[str], whose: str) -> set[str]:
    """The paths that at least one of the patterns matches; a `*` stands for anything, slashes too (`fnmatch`).

    Raises:
      InputError: a pattern matches none of them. `whose` says in the message where it was given.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {path for path in paths if fnmatchcase(path, pattern)}
        if not found:
            raise InputError(f"{whose} has {pattern!r}, which matches no parameter: {did_you_mean(pattern, paths)}")
        chosen |= found
    return chosen
