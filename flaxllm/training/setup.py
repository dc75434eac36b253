"""From a config to the pieces of a run: data, model, objective, placement and compiled steps."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from flaxllm import data, nn
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models import Model
from flaxllm.nn import Context, Rules
from flaxllm.objectives import OBJECTIVES, Objective
from flaxllm.parallel import Placement, make_mesh, mesh_placement, pmap_placement
from flaxllm.training.config import make_model
from flaxllm.training.optimizer import Schedule, make_optimizer, make_schedule
from flaxllm.training.state import TrainState, make_state
from flaxllm.training.step import eval_step, train_step

CHOICES = {
    "placement": ("mesh", "pmap"),
    "compute_dtype": ("float32", "bfloat16"),
    "precision": ("default", "high", "highest"),
    "attention": ("auto", *nn.IMPLEMENTATIONS),
    "remat": tuple(nn.REMAT_POLICIES),
}


class Recipe(NamedTuple):
    """What is trained, on what loss and how: a run without its data and its devices."""

    model: Model
    specs: dict
    objective: Objective
    schedule: Schedule
    optimizer: optax.GradientTransformation


class Run(NamedTuple):
    """All that the loop needs, made once. `make_state()` is the state at step 0, not yet placed."""

    tokenizer: data.Tokenizer
    split: data.Split
    model: Model
    ctx: Context
    placement: Placement
    schedule: Schedule
    make_state: Callable[[], TrainState]
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict]]
    eval_step: Callable[[Any, Any], dict]
    stream: data.Stream
    eval_batches: Callable[[], Iterator[dict]]


def make_run(config: ConfigDict) -> Run:
    """Build everything a config describes.

    Raises:
      InputError: whatever in the config cannot be.
    """
    check_choices(config)
    tokenizer, split = make_data(config)
    model, specs, objective, schedule, optimizer = make_recipe(config, tokenizer.vocab_size)
    placement = make_placement(config, specs)
    ctx = make_context(config, placement.rules)
    parts = {"objective": objective, "ctx": ctx, "reduce": placement.reduce}
    train = partial(train_step, optimizer=optimizer, micro_batches=config.train.micro_batches, **parts)
    rows = placement.local_rows(config.data.batch_size)
    layout = {"batch_size": config.data.batch_size, "max_len": config.data.max_len, "rows": rows, "seed": config.seed}
    train_pieces, eval_pieces = (data.Pieces(side, objective.piece_len) for side in (split.train, split.eval))
    return Run(
        tokenizer=tokenizer,
        split=split,
        model=model,
        ctx=ctx,
        placement=placement,
        schedule=schedule,
        make_state=lambda: make_state(model.init, optimizer, config.seed),
        train_step=placement.compile(train, returns_state=True),
        eval_step=placement.compile(partial(eval_step, **parts), returns_state=False),
        stream=data.train_stream(train_pieces, objective.example, shards=config.data.shards, **layout),
        eval_batches=lambda: (
            data.eval_batches(eval_pieces, objective.example, **layout) if len(eval_pieces) else iter(())
        ),
    )


def check_choices(config: ConfigDict) -> None:
    """Raise InputError for what cannot be chosen, here or at all, before any text is read."""
    for key, known in CHOICES.items():
        if config[key] is not None and config[key] not in known:
            raise InputError(f"unknown {key} {config[key]!r}: {did_you_mean(config[key], known)}")
    rows, parts = config.data.batch_size // jax.device_count(), config.train.micro_batches
    if config.placement == "pmap" and rows % parts:
        raise InputError(
            f"train.micro_batches {parts} cannot cut the {rows} rows that pmap gives each device: use a divisor of "
            f"{rows}, or the placement 'mesh'"
        )


def make_recipe(config: ConfigDict, vocab_size: int) -> Recipe:
    """The part of a run that its config and the number of tokens decide.

    Raises:
      InputError: whatever in the config cannot be.
    """
    model = make_model(config, vocab_size)
    specs = model.param_specs()
    objective = make_objective(config, model)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    return Recipe(model, specs, objective, schedule, make_optimizer(config.optimizer, schedule, specs))


def make_data(config: ConfigDict) -> tuple[data.Tokenizer, data.Split]:
    """The tokenizer, trained if it must be, and its tokens of the text: what is trained on and what is held out."""
    settings = config.data
    documents = data.read_documents(settings.source, settings.column)
    tokenizer = data.make_tokenizer(settings.tokenizer, documents, settings.vocab_size)
    corpus = data.load_corpus(settings.source, tokenizer, settings.column)
    return tokenizer, data.split(corpus, settings.holdout, settings.eval_fraction)


def vocabulary_size(config: ConfigDict) -> int:
    """How many tokens the tokenizer will have; the text is read only where the config does not tell."""
    settings = config.data
    known = settings.vocab_size if settings.tokenizer == "bpe" else config.model.vocab_size
    if known:
        return known
    documents = data.read_documents(settings.source, settings.column)
    return data.make_tokenizer(settings.tokenizer, documents, settings.vocab_size).vocab_size


def make_objective(config: ConfigDict, model: Model) -> Objective:
    settings = {key: value for key, value in config.objective.items() if key != "name"}
    if config.objective.name not in OBJECTIVES:
        raise InputError(
            f"unknown objective.name {config.objective.name!r}: {did_you_mean(config.objective.name, OBJECTIVES)}"
        )
    return OBJECTIVES[config.objective.name](model, config.data.max_len, **settings)


def make_placement(config: ConfigDict, specs: dict) -> Placement:
    return pmap_placement() if config.placement == "pmap" else mesh_placement(make_mesh(config.mesh), specs)


def make_context(config: ConfigDict, rules: Rules | None) -> Context:
    precision = None if config.precision is None else jax.lax.Precision(config.precision)
    return Context(
        compute_dtype=jnp.bfloat16 if config.compute_dtype == "bfloat16" else None,
        precision=precision,
        attention=config.attention,
        remat=config.remat,
        rules=rules,
    )
