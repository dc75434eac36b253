"""What one process compiles, the next one need not."""

import os
import subprocess
import sys

PROGRAM = """
import jax
from flaxllm import compiled
compiled.LEAST_SECONDS = 0
compiled.keep_compiled()
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8)))
print(sum(event.endswith("/cache_misses") for event in found))
"""


def _misses(**environment: str) -> int:
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | environment, capture_output=True, text=True, timeout=120, check=True
    )
    return int(done.stdout)


def test_a_program_is_found_again(tmp_path):
    assert _misses(FLAXLLM_CACHE=str(tmp_path)) > 0
    assert any((tmp_path / "compiled").iterdir())
    assert _misses(FLAXLLM_CACHE=str(tmp_path)) == 0


def test_a_folder_that_jax_was_told_of_is_used(tmp_path):
    _misses(FLAXLLM_CACHE=str(tmp_path / "ours"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert not (tmp_path / "ours").exists()
