"""Evaluation over a whole held-out set, each example counted exactly once."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from flaxllm import data
from flaxllm.models import Model
from flaxllm.objectives import Judge, Objective, Term, add_terms
from flaxllm.parallel import Placement
from flaxllm.training.gathering import of_all_processes, whole
from flaxllm.training.samples import write_texts
from flaxllm.training.state import TrainState

Write = Callable[[Sequence[np.ndarray]], list[str]]
Measure = Callable[[Model, dict], dict[str, float]]


class EvalSet(NamedTuple):
    """What a run is judged by: `batches()` of its `items`, and the judge of the whole, if there is one. The loss is the sum of
    the means of the `minimised` terms. `text_bytes` is the length of a corpus in UTF-8."""

    items: Sequence[Any]
    batches: Callable[[], Iterator[dict]]
    minimised: Collection[str]
    judge: Judge | None
    text_bytes: int | None


def make_eval_set(
    items: Sequence[Any], objective: Objective, judge: Judge | None, text_bytes: int | None, max_items: int | None, layout: dict
) -> EvalSet:
    """The set of these items, or of the first `max_items` of them."""
    if max_items is not None and max_items < len(items):
        items, text_bytes = [items[index] for index in range(max_items)], None

    def batches() -> Iterator[dict]:
        if not len(items):
            return iter(())
        return data.eval_batches(items, objective.example, objective.empty_row, pack=objective.packs, **layout)

    empty_batch = {name: value[None] for name, value in data.with_segments(objective.empty_row).items()}
    return EvalSet(items, batches, jax.eval_shape(objective.weights, empty_batch).keys(), judge, text_bytes)


def evaluate_run(config: ConfigDict, run: Any, state: TrainState, measure: Measure | None = None) -> dict[str, float]:
    """The metrics of all of a run's sets, by the names they are written under: `eval/loss`, or `eval/<part>/loss`; and those
    of `measure`."""

    def params() -> dict:
        """Whole, as each process does something else with them."""
        return run.trained.merge(*(jax.tree.map(whole, run.placement.gather(tree)) for tree in (state.params, state.frozen)))

    def write(prompts: Sequence[np.ndarray]) -> list[str]:
        own = write_texts(run.model, params(), run.tokenizer, prompts[jax.process_index() :: jax.process_count()], config.eval)
        shares = of_all_processes(own)
        return [shares[number % len(shares)][number // len(shares)] for number in range(len(prompts))]

    metrics = {}
    for part, eval_set in run.eval_sets.items():
        found = evaluate(run.eval_step, state, eval_set, run.placement, write)
        metrics |= {"/".join(filter(None, ("eval", part, name))): value for name, value in found.items()}
    return metrics | {f"eval/{name}": value for name, value in (measure(run.model, params()) if measure else {}).items()}


def in_words(metrics: dict[str, float]) -> str:
    """Metrics for a person: the loss first, then what says something that it does not."""
    shown = {name.removeprefix("eval/"): value for name, value in metrics.items()}
    shown = {"loss": shown["loss"], **shown} if "loss" in shown else shown
    if shown.get("cross_entropy") == shown.get("loss"):
        shown.pop("cross_entropy", None)
    return "eval " + ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in shown.items())


def evaluate(
    eval_step: Callable, state: TrainState, eval_set: EvalSet, placement: Placement, write: Write | None = None
) -> dict[str, float]:
    """The mean of each term over the whole set, and what its judge says of it; nothing where it is empty.

    `write(prompts)` gives what the model writes after each, for a judge of texts.
    """
    terms, outputs = sum_terms(eval_step, state, eval_set.batches(), placement)
    metrics = {name: term.sum / term.weight if term.weight else 0.0 for name, term in terms.items()}
    if metrics:
        metrics["loss"] = sum(metrics[name] for name in eval_set.minimised)
    if "cross_entropy" in terms and eval_set.text_bytes is not None:
        metrics["perplexity"] = math.exp(min(metrics["cross_entropy"], 700.0))
        metrics["bits_per_byte"] = bits_per_byte(terms["cross_entropy"].sum, eval_set.text_bytes)
    if eval_set.judge is None or not terms:
        return metrics
    if eval_set.judge.prompt is None:
        said = {name: rows[: len(eval_set.items)] for name, rows in outputs.items()}
    else:
        said = write([eval_set.judge.prompt(item) for item in eval_set.items])
    return metrics | eval_set.judge.score(eval_set.items, said)


def sum_terms(
    eval_step: Callable, state: TrainState, batches: Iterable[dict], placement: Placement
) -> tuple[dict[str, Term], dict[str, np.ndarray]]:
    """Each term's sum and weight over all batches, as floats, to be divided once; and the outputs of all rows."""
    total, parts = None, []
    for batch in batches:
        terms, outputs = eval_step(state, placement.batch(batch))
        total = terms if total is None else add_terms(total, terms)
        parts.append(placement.rows(outputs))
    terms = {} if total is None else placement.read(total)
    outputs = jax.tree.map(lambda *rows: np.concatenate(rows), *parts) if parts else {}
    return {name: Term(float(term.sum), float(term.weight)) for name, term in terms.items()}, outputs


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """The code length of a text per byte of UTF-8: comparable between tokenizers, which the loss per token is not."""
    return nats / (math.log(2) * text_bytes)
