"""The configuration of a training run: every key, its default, and what it means."""

import dataclasses

from ml_collections import ConfigDict, config_dict

from flaxllm.errors import InputError
from flaxllm.models import Model, build
from flaxllm.models import preset as model_preset


def default_config(preset: str = "gpt2-124m", **model_changes: object) -> ConfigDict:
    """The config of a run that pretrains the named model, to be changed key by key in an experiment file.

    Raises:
      InputError: an unknown preset or model field.
    """
    model = model_preset(preset, **model_changes)
    config = ConfigDict()
    config.seed = 0
    config.model = ConfigDict({"family": model.family, **_with_placeholders(model.config)})
    config.objective = ConfigDict({
        "name": "causal-lm",
        "z_loss": 0.0,
        "label_smoothing": 0.0,
        "max_logit_bytes": 2**30,  # a device never holds more logits than this at a time
    })
    config.data = ConfigDict({
        "source": "python-docs",  # an embedded source's name, or a file, folder or glob
        "column": "text",  # the field of a JSONL record
        "tokenizer": "bytes",  # bytes, chars, bpe (trained from the source), or a tokenizer.json
        "vocab_size": config_dict.placeholder(int),  # for bpe; the model takes its own from the tokenizer
        "holdout": "tail",  # what is held out: the tail of the corpus, or whole documents
        "eval_fraction": 0.1,
        "max_len": 256,  # tokens in a row
        "batch_size": 32,  # rows in a step, over all devices
        "shards": 1,  # logical shards of the stream; as many processes can share the reading
    })
    config.optimizer = ConfigDict({
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
    })
    config.train = ConfigDict({
        "num_steps": 1000,
        "micro_batches": 1,  # a step's batch is worked off in this many parts
        "eval_every": 250,  # steps; 0 for never, here and below
        "sample_every": 250,
        "checkpoint_every": 250,
        "keep_checkpoints": 2,
    })
    config.sample = ConfigDict({"prompt": "\n", "num_tokens": 200, "temperature": 0.8})
    config.placement = "mesh"  # mesh (one device and up), or pmap
    config.mesh = "data:-1"  # sizes of data, fsdp, model, sequence; -1 takes the devices left
    config.compute_dtype = "float32"  # or bfloat16; parameters stay in float32
    config.precision = config_dict.placeholder(str)  # of matrix products: default, high, highest
    config.attention = "auto"
    config.remat = config_dict.placeholder(str)  # full, dots
    config.init_from = config_dict.placeholder(str)  # another run's workdir: start from its parameters
    return config.lock()


def make_model(config: ConfigDict, vocab_size: int) -> Model:
    """The configured model, with the tokenizer's vocabulary where the config leaves its size open."""
    fields = {name: value for name, value in config.model.items() if name != "family"}
    fields["vocab_size"] = config.model.vocab_size or vocab_size
    model = build(config.model.family, fields)
    if model.config.vocab_size < vocab_size:
        raise InputError(
            f"model.vocab_size is {model.config.vocab_size}, but the tokenizer has {vocab_size} tokens: "
            "raise it, or leave it None to take the tokenizer's"
        )
    return model


def check_config(config: ConfigDict) -> None:
    """Raise InputError for values that cannot be, before anything is built."""
    positive = [("data", "max_len"), ("data", "batch_size"), ("data", "shards"), ("train", "num_steps"),
                ("train", "micro_batches"), ("train", "keep_checkpoints")]
    for section, key in positive:
        if config[section][key] < 1:
            raise InputError(f"{section}.{key} is {config[section][key]}, it must be 1 or more")
    for key in ("eval_every", "sample_every", "checkpoint_every"):
        if config.train[key] < 0:
            raise InputError(f"train.{key} is {config.train[key]}, it must be 0 (never) or more")
    if config.data.batch_size % config.train.micro_batches:
        raise InputError(
            f"data.batch_size {config.data.batch_size} cannot be cut into train.micro_batches "
            f"{config.train.micro_batches}: use a divisor"
        )
    if config.data.max_len > config.model.max_len:
        raise InputError(f"data.max_len {config.data.max_len} is more than model.max_len {config.model.max_len}")
    if not 0.0 <= config.data.eval_fraction < 1.0:
        raise InputError(f"data.eval_fraction is {config.data.eval_fraction}, it must lie in [0, 1)")


def _with_placeholders(model_config: object) -> dict:
    """The fields, with those that may be None as typed placeholders, so that flags can set them."""
    fields = dataclasses.asdict(model_config) | {"vocab_size": None}
    return {name: config_dict.placeholder(int) if value is None else value for name, value in fields.items()}
