"""Models to the form in which others read them: config.json, safetensors, and the tokenizer's files."""

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxllm import nn
from flaxllm.data import NoTokenizer, Tokenizer, load_tokenizer
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.models.heads import LABELS
from flaxllm.nn import Param
from flaxllm.pretrained.checkpoint import MAX_SHARD_BYTES, write_checkpoint
from flaxllm.pretrained.families import FAMILIES, architecture_of
from flaxllm.pretrained.load import from_pretrained
from flaxllm.pretrained.match import Place, expand
from flaxllm.pretrained.names import as_theirs, fused_axis, rule_shape

_log = logging.getLogger("flaxllm")


def save_pretrained(
    directory: str | Path,
    model: Model,
    params: dict,
    tokenizer: Tokenizer | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a folder that transformers opens, and that `from_pretrained` gives back as it was.

    Raises:
      InputError: no Hugging Face architecture can say what this model is, or `params` are not those of the model.
    """
    specs = nn.flatten(model.param_specs())
    arrays = _checked(params, specs)
    config = config_of(model, arrays)  # first: it refuses what no checkpoint can say
    names = FAMILIES[model.family].names(model.config, model.head)
    tensors = {
        name.removeprefix(names.prefix) if model.head is None else name: (
            rule_shape(place.rule, specs),
            arrays[place.rule.paths[0]].dtype,
            partial(_tensor, place, specs, arrays),
        )
        for name, place in expand(names.rules, specs).items()
    }
    write_checkpoint(directory, config, tensors, max_shard_bytes)
    if tokenizer is not None:
        tokenizer.save(directory)


def convert(source: str | Path, directory: str | Path, dtype: str | None = None, head: str | None = None) -> None:
    """Read a checkpoint and write it, with its tokenizer where it has one, as `save_pretrained` does.

    Raises:
      InputError: the source or the folder is not what it must be.
    """
    model, params = from_pretrained(source, head=head, dtype=dtype)
    try:
        tokenizer = load_tokenizer(source)
    except NoTokenizer:
        tokenizer = None
        _log.warning("%s has no tokenizer, and so %s is without one: put its files there", source, directory)
    save_pretrained(directory, model, params, tokenizer)


def config_of(model: Model, arrays: Mapping[str, jax.Array | np.ndarray]) -> dict[str, Any]:
    """The content of config.json."""
    # transformers takes the size of a span head from the labels, which are another head's.
    labels = {"labels": LABELS} if model.head == "question-answering" else {}
    config = FAMILIES[model.family].write_config(dataclasses.replace(model.config, **labels), model.head)
    architecture = architecture_of(config["model_type"], model.family, model.head)
    dtype = jnp.result_type(*{array.dtype for array in arrays.values()})
    return {"architectures": [architecture], "dtype": dtype.name, **config}


def _checked(params: dict, specs: Mapping[str, Param]) -> dict[str, jax.Array | np.ndarray]:
    arrays = nn.flatten(params)
    wrong = sorted(set(arrays) ^ set(specs))
    if wrong:
        which = "are not in this model" if wrong[0] in arrays else "are missing"
        raise InputError(f"the parameters {wrong[:3]} {which}: give the tree that belongs to it, with its layers stacked")
    for path, param in specs.items():
        if arrays[path].shape != param.shape:
            raise InputError(f"the parameter {path} has shape {arrays[path].shape}: expected {param.shape}")
    return arrays


def _tensor(place: Place, specs: Mapping[str, Param], arrays: Mapping[str, jax.Array | np.ndarray]) -> np.ndarray:
    """One tensor as the checkpoint has it."""
    rule, layer = place
    parts = [
        as_theirs(np.asarray(arrays[path] if layer is None else arrays[path][layer]), specs[path], rule.inputs_first)
        for path in rule.paths
    ]
    return np.ascontiguousarray(np.concatenate(parts, axis=fused_axis(rule, specs))).reshape(rule_shape(rule, specs))
