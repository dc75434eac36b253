"""From a config to the pieces of a run: data, model, objective, placement and compiled steps."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flaxllm import data, nn
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives import OBJECTIVES, Objective
from flaxllm.parallel import Placement, make_mesh, mesh_placement, pmap_placement
from flaxllm.training.config import make_model
from flaxllm.training.optimizer import Schedule, make_optimizer, make_schedule
from flaxllm.training.state import TrainState, make_state
from flaxllm.training.step import eval_step, train_step

PRECISIONS = ("default", "high", "highest")


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
    tokenizer, split = make_data(config)
    model = make_model(config, tokenizer.vocab_size)
    objective = make_objective(config, model)
    specs = model.param_specs()
    placement = make_placement(config, specs)
    ctx = make_context(config, placement)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule, specs)
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
        eval_batches=lambda: data.eval_batches(eval_pieces, objective.example, **layout) if len(eval_pieces) else iter(()),
    )


def make_data(config: ConfigDict) -> tuple[data.Tokenizer, data.Split]:
    """The tokenizer, trained if it must be, and the tokenized text, cut into what is trained on and what is held out."""
    settings = config.data
    documents = data.read_documents(settings.source, settings.column)
    tokenizer = data.make_tokenizer(settings.tokenizer, documents, settings.vocab_size)
    corpus = data.load_corpus(settings.source, tokenizer, settings.column)
    return tokenizer, data.split(corpus, settings.holdout, settings.eval_fraction)


def make_objective(config: ConfigDict, model: Model) -> Objective:
    settings = {key: value for key, value in config.objective.items() if key != "name"}
    if config.objective.name not in OBJECTIVES:
        raise InputError(
            f"unknown objective.name {config.objective.name!r}: {did_you_mean(config.objective.name, OBJECTIVES)}"
        )
    return OBJECTIVES[config.objective.name](model, config.data.max_len, **settings)


def make_placement(config: ConfigDict, specs: dict) -> Placement:
    placements = {"mesh": lambda: mesh_placement(make_mesh(config.mesh), specs), "pmap": pmap_placement}
    if config.placement not in placements:
        raise InputError(f"unknown placement {config.placement!r}: {did_you_mean(config.placement, placements)}")
    return placements[config.placement]()


def make_context(config: ConfigDict, placement: Placement) -> Context:
    dtypes = {"float32": None, "bfloat16": jnp.bfloat16}
    if config.compute_dtype not in dtypes:
        raise InputError(f"unknown compute_dtype {config.compute_dtype!r}: {did_you_mean(config.compute_dtype, dtypes)}")
    if config.precision not in (None, *PRECISIONS):
        raise InputError(f"unknown precision {config.precision!r}: {did_you_mean(config.precision, PRECISIONS)}")
    for name, known in (("attention", ("auto", *nn.IMPLEMENTATIONS)), ("remat", nn.REMAT_POLICIES)):
        if config[name] is not None and config[name] not in known:
            raise InputError(f"unknown {name} {config[name]!r}: {did_you_mean(config[name], known)}")
    precision = None if config.precision is None else jax.lax.Precision(config.precision)
    return Context(
        compute_dtype=dtypes[config.compute_dtype],
        precision=precision,
        attention=config.attention,
        remat=config.remat,
        rules=placement.rules,
    )
