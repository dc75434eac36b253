"""flaxllm: the transformer language models of the literature as pure JAX functions over plain parameter trees.

Names load when they are first used, so that `import flaxllm` costs nothing beyond Python's own start.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Context": "flaxllm.nn",
    "InputError": "flaxllm.errors",
    "Model": "flaxllm.models",
    "Replacement": "flaxllm.nn",
    "Taps": "flaxllm.nn",
    "default_config": "flaxllm.training",
    "from_pretrained": "flaxllm.pretrained",
    "generate": "flaxllm.decoding",
    "load_tokenizer": "flaxllm.data",
    "pipeline": "flaxllm.pipelines",
    "prepare": "flaxllm.decoding",
    "preset": "flaxllm.models",
    "save_pretrained": "flaxllm.pretrained",
    "train": "flaxllm.training",
}
_ROOMS = (
    "adapters", "data", "decoding", "errors", "interpret", "metrics", "models", "nn", "objectives", "parallel", "pipelines",
    "pretrained", "serving", "training",
)  # fmt: skip

__all__ = sorted([*_HOMES, *_ROOMS])


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"flaxllm.{name}")
    raise AttributeError(f"module 'flaxllm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
