"""`flaxllm.pipeline`: a task on a checkpoint, by Hugging Face's names for tasks, arguments and results."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxllm import nn
from flaxllm.data import Tokenizer, load_tokenizer
from flaxllm.data.hub import resolve
from flaxllm.data.json_file import brief, read_object
from flaxllm.decoding import prepare
from flaxllm.decoding.prepare import is_prepared
from flaxllm.decoding.reading import TEXT_HEADS
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models import Model, family
from flaxllm.pipelines.classification import text_classification, zero_shot_classification
from flaxllm.pipelines.feature_extraction import feature_extraction
from flaxllm.pipelines.fill_mask import fill_mask
from flaxllm.pipelines.generation import SETTINGS
from flaxllm.pipelines.loaded import Loaded
from flaxllm.pipelines.question_answering import question_answering
from flaxllm.pipelines.text_generation import text_generation
from flaxllm.pipelines.text_to_text import summarization, translation
from flaxllm.pipelines.token_classification import token_classification
from flaxllm.pretrained import from_pretrained
from flaxllm.pretrained.checkpoint import CONFIG, open_checkpoint
from flaxllm.pretrained.load import BASE, model_of

GENERATION_CONFIG = "generation_config.json"


class Task(NamedTuple):
    run: Callable  # of a Loaded, the inputs, and options by name
    heads: tuple[str, ...]  # one of which the model must have; none: the task is for models without one
    settings: Mapping[str, type] = {}  # the options that `run` takes beside those in its signature


_TO_TEXT = SETTINGS | {"max_length": int, "min_length": int}
TASKS = {
    "feature-extraction": Task(feature_extraction, ()),
    "fill-mask": Task(fill_mask, ("masked-lm", "pretraining")),
    "question-answering": Task(question_answering, ("question-answering",)),
    "summarization": Task(summarization, ("seq2seq-lm",), _TO_TEXT),
    "text-classification": Task(text_classification, ("sequence-classification",)),
    "text-generation": Task(text_generation, ("causal-lm",), SETTINGS),
    "token-classification": Task(token_classification, ("token-classification",)),
    "translation": Task(translation, ("seq2seq-lm",), _TO_TEXT),
    "zero-shot-classification": Task(zero_shot_classification, ("sequence-classification",)),
}
ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}
_TRANSLATION = re.compile(r"translation_\w+_to_\w+")


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A task on a model that is ready: call it with what the function of its task takes, whose docstring says what comes
    out. `options` hold unless a call gives others."""

    loaded: Loaded
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        task, name = find_task(self.loaded.task), self.loaded.task
        check_options(name, options)
        if inputs and not isinstance(inputs[0], Iterable):
            raise InputError(f"{name} got {brief(inputs[0])}: expected a text, or a list of texts")
        options = {**self.options, **options}
        try:
            inspect.signature(task.run).bind(self.loaded, *inputs, **options)
        except TypeError as error:
            raise InputError(f"{name}: {error}: give it a text or a list of texts, and options by their names") from error
        return task.run(self.loaded, *inputs, **options)


def pipeline(
    task: str,
    path: str | Path | None = None,
    *,
    model: Model | None = None,
    params: dict | None = None,
    tokenizer: Tokenizer | None = None,
    batch_size: int = 32,
    dtype: DTypeLike | None = None,
    **options: Any,
) -> Pipeline:
    """What does a task with the checkpoint at `path` (a Hugging Face folder, a hub id, a GGUF file), or with a `model`, its
    `params` and a `tokenizer`.

    A text gives what it gives in transformers, and a list of texts a list of that, in their order. Texts of about one length
    are computed together, `batch_size` at most, by one compiled program. A text that is longer than the model takes is
    refused, unless `truncation=True` is given, or a task's own way of reading it in windows. `dtype` is the checkpoint's own
    unless given. `options` are those of the task's calls (see `TASKS`), for all of them.

        pipeline("sentiment-analysis", path)("I love it.")    # [{"label": "POSITIVE", "score": 0.9998}]

    Raises:
      InputError: an unknown task or option, a model whose head is not what the task reads, or as `from_pretrained` and
        `load_tokenizer`.
    """
    heads = find_task(task).heads
    check_options(task, options)
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: expected 1 or more")
    if (path is None) == (model is None) or (model is None) != (params is None):
        raise InputError(f"pipeline({task!r}) needs a checkpoint's path, or else model=, params= and tokenizer=")
    if path is None and tokenizer is None:
        raise InputError(f"pipeline({task!r}) got a model without a tokenizer: give tokenizer= too")
    config, generation = {}, {}
    if path is None:
        _check_head(task, heads, model, "this")
    else:
        checkpoint = open_checkpoint(path)
        there = model_of(checkpoint)
        _check_head(task, heads, there, str(path))
        encodes = "encoder" in family(there.family).heads(there.config)  # T5's without a decoder
        model, params = from_pretrained(path, head=None if heads else "encoder" if encodes else BASE, dtype=dtype)
        config, generation = checkpoint.config, _generation_config(path)
        tokenizer = load_tokenizer(path) if tokenizer is None else tokenizer
    if model.head in TEXT_HEADS:
        params = prepare(model, params)
    elif not is_prepared(params):
        params = nn.unstack(params if path is not None else jax.tree.map(jnp.copy, params))  # it uses them up
    return Pipeline(Loaded(task, model, params, tokenizer, batch_size, config, generation), options)


def find_task(name: str) -> Task:
    """The task of a name, of an alias, or of one like "translation_en_to_de".

    Raises:
      InputError: there is none.
    """
    known = "translation" if _TRANSLATION.fullmatch(name) else ALIASES.get(name, name)
    if known not in TASKS:
        raise InputError(f"there is no task {name!r}: {did_you_mean(name, [*TASKS, *ALIASES, 'translation_en_to_de'])}")
    return TASKS[known]


def options_of(name: str) -> dict[str, Any]:
    """The options of a task's calls, each with its type."""
    task = find_task(name)
    parameters = list(inspect.signature(task.run).parameters.values())[2:]  # after the model and the inputs
    return {each.name: each.annotation for each in parameters if each.kind is not each.VAR_KEYWORD} | dict(task.settings)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise InputError where the task has no such option."""
    known = options_of(name)
    for option in options:
        if option not in known:
            raise InputError(f"{name} has no option {option!r}: {did_you_mean(option, known)}")


def _check_head(task: str, heads: tuple[str, ...], model: Model, what: str) -> None:
    if heads and model.head not in heads:
        others = [name for name, other in TASKS.items() if not other.heads or model.head in other.heads]
        raise InputError(
            f"{what} is a {model.family} model with the head {model.head or BASE!r}, which can do {', '.join(others)}: "
            f"for {task} name one with the head {' or '.join(map(repr, heads))}"
        )


def _generation_config(path: str | Path) -> dict[str, Any]:
    found = resolve(path, (CONFIG, GENERATION_CONFIG))
    file = (found if found.is_dir() else found.parent) / GENERATION_CONFIG
    return read_object(file) if file.exists() else {}
