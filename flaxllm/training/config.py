"""The configuration of a training run: every key, its default, and what it means."""

import dataclasses
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict

from flaxllm.data import Tokenizer
from flaxllm.errors import InputError
from flaxllm.models import Model, build
from flaxllm.models import preset as model_preset
from flaxllm.objectives import default_settings, objective_kind

# Every key with its default, or with the type of a value that may be None; `dict` is a section whose keys are the run's own.
_DEFAULTS = {
    "seed": 0,
    "data": {
        "source": "python-docs",  # an embedded source's name, or a file, folder or glob
        "eval_source": str,  # what is held out, where it is a source of its own
        "format": str,  # of records, where the file's name does not tell: csv, tsv, jsonl, ...
        "columns": dict,  # of records: the columns of the file by the names of the objective's fields
        "malformed": "stop",  # or "skip": what a record that cannot be read does
        "column": "text",  # the field of a JSONL document
        "tokenizer": "bytes",  # or chars, bpe, wordpiece, unigram (made of the source), a tokenizer.json, a folder, a hub id
        "vocab_size": int,  # of a tokenizer that is made; the model takes its own from the tokenizer
        "holdout": "tail",  # what is held out: the tail of the corpus, or whole documents
        "eval_fraction": 0.1,
        "max_len": 256,  # tokens in a row
        "pad_to_multiple_of": int,  # train on rows as long as their batch's longest example, up to a multiple of this
        "batch_size": 32,  # rows in a step, over all devices
        "shards": 1,  # logical shards of the stream; as many processes can share the reading
        "mixture": dict,  # several sources by name, each a ConfigDict with its source and what else is its own
        "mixture_limit": int,  # no source counts for more examples in its share of the mixture
        "mixture_temperature": 1.0,  # shares are sizes to the power of 1 over it
    },
    "optimizer": {
        "name": "adamw",  # adamw, adafactor, lion, muon
        "learning_rate": 3e-4,
        "schedule": "cosine",  # cosine, linear, rsqrt, constant
        "warmup_steps": 100,
        "final_fraction": 0.1,  # of the peak learning rate, at the last step
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "momentum": 0.95,  # muon's
        "weight_decay": 0.1,
        "clip_norm": 1.0,  # of the whole gradient; 0 for none
        "layer_decay": 1.0,  # the learning rate of a layer by that of the one above it
        "freeze": (),  # patterns of the paths of parameters that never change
    },
    "lora": {
        "rank": 0,  # of an adapter beside the parameters; 0 trains these themselves
        "alpha": 16.0,
        "dropout": 0.0,  # on what the adapter reads
        "targets": (),  # patterns of the paths of kernels; queries and values if there are none
        "whole": (),  # patterns of the paths of parameters that are trained as they are, such as "head/*"
    },
    "train": {
        "num_steps": 1000,
        "micro_batches": 1,  # a step's batch is worked off in this many parts
        "eval_every": 250,  # steps; 0 for never, here and below
        "sample_every": 250,
        "checkpoint_every": 250,
        "keep_checkpoints": 2,
        "best": str,  # a metric, such as eval/f1: the parameters that are best by it are kept
        "average": 1,  # the parameters at the end are the mean of those of so many last checkpoints
        "export": True,  # write them to the workdir's folder `model`, as a Hugging Face checkpoint
    },
    "eval": {
        "max_items": int,  # the first so many only
        "max_new_tokens": 64,  # of what a model writes to be judged; the beams that it searches with; texts at a time
        "num_beams": 1,
        "batch_size": 32,
    },
    "sample": {"prompt": "\n", "num_tokens": 200, "temperature": 0.8},
    "placement": "mesh",  # mesh (one device and up), or pmap
    "mesh": "data:-1",  # sizes of data, fsdp, model, sequence; -1 takes the devices left
    "compute_dtype": "float32",  # or bfloat16; parameters stay in float32
    "precision": str,  # of matrix products: default, high, highest
    "attention": "auto",
    "remat": str,  # full, dots
    "init_from": str,  # start from the parameters of a run's workdir, or of a checkpoint
}


def default_config(
    preset: str = "gpt2-124m", objective: str = "causal-lm", checkpoint: str | None = None, **model_changes: object
) -> ConfigDict:
    """The config of a run that trains the named model, to be changed key by key in an experiment file.

    With a `checkpoint` (a Hugging Face folder, a hub id or a GGUF file) the run starts from its parameters, with its
    architecture and its tokenizer, and `preset` is not used.

    Raises:
      InputError: an unknown preset, objective or model field, or a checkpoint that cannot be read.
    """
    model = model_preset(preset, **model_changes) if checkpoint is None else _model_of(checkpoint, model_changes)
    config = _section(_DEFAULTS)
    config.model = _section({"family": model.family} | _with_types(model.config))
    config.objective = _section({"name": objective} | default_settings(objective))
    if checkpoint is not None:
        config.init_from = config.data.tokenizer = str(checkpoint)
        config.model.vocab_size = model.config.vocab_size
    config.lock()
    for section in (config.data.columns, config.data.mixture):
        section.unlock()
    return config


def _section(defaults: dict[str, Any]) -> ConfigDict:
    def value_of(default: Any) -> Any:
        if isinstance(default, dict):
            return _section(default)
        if default is dict:
            return ConfigDict()
        return config_dict.placeholder(default) if isinstance(default, type) else default

    return ConfigDict({name: value_of(default) for name, default in defaults.items()})


def make_model(config: ConfigDict, vocab_size: int, tokenizer: Tokenizer | None = None) -> Model:
    """The configured model with the objective's head. Where it does not start from a checkpoint it takes the special tokens
    of the tokenizer, and its vocabulary where the config leaves its size open."""
    fields = {name: value for name, value in config.model.items() if name != "family"}
    fields["vocab_size"] = config.model.vocab_size or vocab_size
    if tokenizer is not None and not config.init_from:
        fields |= {name: token for name, token in _special_tokens(tokenizer).items() if name in fields}
    model = build(config.model.family, fields, objective_kind(config.objective.name).head)
    if model.config.vocab_size < vocab_size:
        raise InputError(
            f"model.vocab_size is {model.config.vocab_size}, but the tokenizer has {vocab_size} tokens: "
            "raise it, or leave it None to take the tokenizer's"
        )
    return model


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int | None]:
    """By the model's names for them. A decoder starts from the padding token, as T5's does, or else from the end of a text."""
    start = tokenizer.end_of_text if tokenizer.pad is None else tokenizer.pad
    tokens = {"bos_token": tokenizer.bos, "eos_token": tokenizer.end_of_text, "pad_token": tokenizer.pad}
    return tokens if start is None else tokens | {"decoder_start_token": start}


def check_config(config: ConfigDict) -> None:
    """Raise InputError for values that cannot be, before anything is built."""
    positive = [("data", "max_len"), ("data", "batch_size"), ("data", "shards"), ("train", "num_steps"),
                ("train", "micro_batches"), ("train", "keep_checkpoints"), ("train", "average"),
                ("eval", "max_new_tokens"), ("eval", "num_beams"), ("eval", "batch_size")]
    for section, key in positive:
        if config[section][key] < 1:
            raise InputError(f"{section}.{key} is {config[section][key]}, it must be 1 or more")
    if config.data.pad_to_multiple_of is not None and config.data.pad_to_multiple_of < 1:
        raise InputError(
            f"data.pad_to_multiple_of is {config.data.pad_to_multiple_of}, it must be 1 or more, or None for rows of max_len"
        )
    for key in ("eval_every", "sample_every", "checkpoint_every"):
        if config.train[key] < 0:
            raise InputError(f"train.{key} is {config.train[key]}, it must be 0 (never) or more")
    if config.lora.rank < 0:
        raise InputError(f"lora.rank is {config.lora.rank}, it must be 0 (no adapter) or more")
    if config.train.average > config.train.keep_checkpoints:
        raise InputError(
            f"train.average is {config.train.average}, and train.keep_checkpoints {config.train.keep_checkpoints}: keep as many"
        )
    if config.train.best and config.train.average > 1:
        raise InputError("train.best and train.average both choose the parameters at the end: leave one of them out")
    if config.data.batch_size % config.train.micro_batches:
        raise InputError(
            f"data.batch_size {config.data.batch_size} cannot be cut into train.micro_batches "
            f"{config.train.micro_batches}: use a divisor"
        )
    if config.data.max_len > config.model.max_len:
        raise InputError(f"data.max_len {config.data.max_len} is more than model.max_len {config.model.max_len}")
    if not 0.0 <= config.data.eval_fraction < 1.0:
        raise InputError(f"data.eval_fraction is {config.data.eval_fraction}, it must lie in [0, 1)")


def _model_of(checkpoint: str, changes: dict[str, object]) -> Model:
    """The architecture of a checkpoint, with some of its fields changed."""
    from flaxllm.pretrained.checkpoint import open_checkpoint
    from flaxllm.pretrained.load import model_of

    model = model_of(open_checkpoint(checkpoint))
    return build(model.family, vars(model.config) | changes, head=None)


def _with_types(model_config: object) -> dict[str, Any]:
    """The fields, with the type of those that may be None and are, so that flags can set them."""
    hints = typing.get_type_hints(type(model_config))
    fields = dataclasses.asdict(model_config) | {"vocab_size": None}
    return {name: next(iter(typing.get_args(hints[name])), int) if value is None else value for name, value in fields.items()}
