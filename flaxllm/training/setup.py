"""From a config to the pieces of a run: data, model, objective, placement and compiled steps."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from flaxllm import data, metrics, nn
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models import Model
from flaxllm.nn import Context, Rules
from flaxllm.objectives import Objective, objective_kind
from flaxllm.parallel import Placement, make_mesh, mesh_placement, pmap_placement
from flaxllm.training.config import make_model
from flaxllm.training.evaluation import EvalSet, make_eval_set
from flaxllm.training.optimizer import Schedule, make_optimizer, make_schedule
from flaxllm.training.progress import watched
from flaxllm.training.reading import Part, Reading, Source, make_items, make_tokenizer, read_data, report_left_out
from flaxllm.training.starting import params_at
from flaxllm.training.state import TrainState, keys, make_state
from flaxllm.training.step import eval_step, train_step
from flaxllm.training.trained import Trained, what_is_trained

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
    trained: Trained
    objective: Objective
    schedule: Schedule
    optimizer: optax.GradientTransformation

    def make_state(self, seed: int) -> TrainState:
        return make_state(self.model.init, self.optimizer, seed, self.trained.split)


class Run(NamedTuple):
    """All that the loop needs, made once. `make_state()` is the state at step 0, not yet placed."""

    tokenizer: data.Tokenizer
    fingerprint: str
    model: Model
    ctx: Context
    placement: Placement
    schedule: Schedule
    trained: Trained
    make_state: Callable[[], TrainState]
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict]]
    eval_step: Callable[[TrainState, Any], tuple[dict, dict]]
    stream: data.Stream
    eval_sets: dict[str, EvalSet]


def make_run(config: ConfigDict, report: Callable[[str], None] = lambda line: None) -> Run:
    """Build everything a config describes; what was left out of the data is reported.

    Raises:
      InputError: whatever in the config cannot be.
    """
    check_choices(config)
    reading = read_data(config)
    report_left_out(reading.skipped, report)
    recipe = make_recipe(config, reading.tokenizer.vocab_size, reading.tokenizer)
    placement = make_placement(config, recipe.trained.state_specs)
    ctx = make_context(config, placement.rules)
    objective = recipe.objective
    steps = {"ctx": ctx, "reduce": placement.reduce, "assemble": recipe.trained.assemble}
    train = partial(
        train_step, objective=objective, optimizer=recipe.optimizer, micro_batches=config.train.micro_batches, **steps
    )
    rows = placement.local_rows(config.data.batch_size)
    layout = {"batch_size": config.data.batch_size, "rows": rows, "seed": config.seed}

    for name, part in reading.parts.items():
        _check_columns(config.objective.name, objective, name, part)
    start = None
    if objective.prepare:  # a copy of its own: this is before there is a state
        start = recipe.model.init(keys(config.seed)[0])
        if config.init_from:
            start = params_at(config.init_from, recipe.model, reading.tokenizer, placement, report)

    watch = partial(watched, what="batches seen by the model that training starts from", report=report)

    def items_of(part: Part, source: Source) -> Sequence[Any]:
        items = make_items(objective, source, part.settings.malformed, report)
        return objective.prepare(start, items, watch) if objective.prepare else items

    def eval_set(part: Part) -> EvalSet:
        metric = part.settings.get("metric")
        judged = make_objective(config, recipe.model, reading.tokenizer, metric=metric) if metric else objective
        items = items_of(part, part.eval) if _holds_any(part.eval) else []
        if len(items) and judged.judge and judged.judge.library:
            metrics.library(judged.judge.library)  # or say so now, and not at the first evaluation
        text_bytes = part.eval.num_bytes if objective.tells_all else None
        return make_eval_set(items, objective, judged.judge, text_bytes, config.eval.max_items, layout)

    parts = [items_of(part, part.train) for part in reading.parts.values()]
    items = parts[0] if len(parts) == 1 else data.Mixture(parts, _rates(config, reading, [len(part) for part in parts]))
    return Run(
        tokenizer=reading.tokenizer,
        fingerprint=reading.fingerprint,
        model=recipe.model,
        ctx=ctx,
        placement=placement,
        schedule=recipe.schedule,
        trained=recipe.trained,
        make_state=lambda: recipe.make_state(config.seed),
        train_step=placement.compile(train, returns_state=True),
        eval_step=placement.compile(partial(eval_step, objective=objective, **steps), returns_state=False),
        stream=data.train_stream(
            items, objective.example, objective.empty_row, shards=config.data.shards, pack=objective.packs,
            pad_to_multiple_of=config.data.pad_to_multiple_of, **layout,
        ),  # fmt: skip
        eval_sets={name: eval_set(part) for name, part in reading.parts.items()},
    )


def _check_columns(named: str, objective: Objective, name: str, part: Part) -> None:
    """Raise InputError where `columns` has a field that the objective does not read."""
    for field in part.settings.columns:
        if field not in objective.fields:
            where = f"data.mixture.{name}.columns" if name else "data.columns"
            known = did_you_mean(field, objective.fields) if objective.fields else "it reads text, by data.column"
            raise InputError(f"{where} has a field {field!r}, which {named} does not read: {known}")


def _holds_any(source: Source) -> bool:
    return len(source) > 0 if isinstance(source, list) else len(source.spans) > 0


def _rates(config: ConfigDict, reading: Reading, sizes: list[int]) -> list[float]:
    """Each part's share of what is trained on: its own rate where it has one (then all must), else by its size."""
    own = [part.settings.get("rate") for part in reading.parts.values()]
    if any(rate is not None for rate in own):
        if None in own:
            raise InputError("some parts of data.mixture have a rate and some have none: give all of them one, or none")
        return own
    return data.mixing_rates(sizes, config.data.mixture_limit, config.data.mixture_temperature)


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


def make_recipe(config: ConfigDict, vocab_size: int, tokenizer: data.Tokenizer | None = None) -> Recipe:
    """The part of a run that its config and the number of tokens decide; examples need the tokenizer too.

    Raises:
      InputError: whatever in the config cannot be.
    """
    model = make_model(config, vocab_size, tokenizer)
    trained = what_is_trained(config, model)
    objective = make_objective(config, model, tokenizer)
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule, trained.specs)
    return Recipe(model, trained, objective, schedule, optimizer)


def vocabulary_size(config: ConfigDict) -> int:
    """How many tokens the tokenizer will have; the text is read only where the config does not tell."""
    settings = config.data
    known = settings.vocab_size if settings.tokenizer in data.TRAINED else config.model.vocab_size
    return known or make_tokenizer(config).vocab_size


def make_objective(config: ConfigDict, model: Model, tokenizer: data.Tokenizer | None, **changes: Any) -> Objective:
    settings = {key: value for key, value in config.objective.items() if key != "name"} | changes
    return objective_kind(config.objective.name).make(model, tokenizer, config.data.max_len, **settings)


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
