"""All tests run on eight simulated CPU devices, with every annotated shape of the package checked at each call."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version

# Most of the time goes into compiling: little is optimized, loops are emitted in the older way, which takes a third less where
# there still is one, and the processes of this session compile each program once between them.
flags = ["--xla_force_host_platform_device_count=8"]
if version("jaxlib").startswith("0.10."):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="flaxllm-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from collections.abc import Iterator  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("flaxllm", "shape_checks.check")
hypothesis.settings.register_profile("flaxllm", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("flaxllm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first: at the end no process waits for another."""
    long = {"training", "test_notebooks.py", "test_readme.py"}
    items.sort(key=lambda item: long.isdisjoint(item.path.parts))


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Compiled programs go with their module: each takes about ten memory mappings, of which Linux gives a process 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimized() -> Iterator[None]:
    """Programs are compiled as users have them: for what is promised of these."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")
