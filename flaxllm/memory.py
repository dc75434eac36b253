"""How the C library of this process manages memory."""

import os
import platform
import sys

_SETTING = "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Start this program anew, in the same process, with a glibc that asks the kernel for huge pages (Linux only).

    XLA on CPU allocates the temporary memory of a step anew each time, and the kernel clears every page of it: with pages of
    2 MiB in place of 4 KiB in a fraction of the time. glibc reads the setting at its start only. Where the environment
    names it already, nothing happens.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or _SETTING in given:
        return
    tunables = f"{given}:{_SETTING}=1".removeprefix(":")
    os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": tunables})
