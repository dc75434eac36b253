import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from flaxllm.memory import restart_with_huge_pages
print("started", os.getpid(), flush=True)
restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], os.getpid())
"""


def lines(path, **environment) -> list[str]:
    path.write_text(PROGRAM)
    inherited = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, str(path), "--flag", "two words"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=inherited | environment)
    return done.stdout.splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_the_program_starts_anew_once_with_its_arguments_and_its_process(tmp_path):
    first, second, last = lines(tmp_path / "program.py", GLIBC_TUNABLES="glibc.malloc.arena_max=2")
    assert first == second
    pid = first.split()[1]
    assert last == f"glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1 ['--flag', 'two words'] {pid}"


def test_a_setting_of_ones_own_stays(tmp_path):
    started, last = lines(tmp_path / "program.py", GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert last.startswith("glibc.malloc.hugetlb=0 ")
