"""Compiled programs that outlive their process."""

import os
from pathlib import Path

import jax

MOST_BYTES = 2**30
LEAST_SECONDS = 0.2  # what compiles faster is not worth a file


def keep_compiled() -> None:
    """Keep what this process compiles in `$FLAXLLM_CACHE` (else `~/.cache/flaxllm`), where the next one that needs it finds it.

    The least recently used goes once there is a GiB. Where jax was told of a folder of its own (JAX_COMPILATION_CACHE_DIR),
    that is used as it is.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    root = Path(os.environ.get("FLAXLLM_CACHE") or "~/.cache/flaxllm").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
