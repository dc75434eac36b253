"""What the tasks that write text share: Hugging Face's names for how, what a checkpoint says of it, and the writing."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxllm.decoding import generate
from flaxllm.decoding.engine import bucket
from flaxllm.decoding.reading import has_encoder, most_positions
from flaxllm.decoding.sampling import TRUNCATING
from flaxllm.errors import InputError
from flaxllm.pipelines.loaded import Loaded

# What is common to all of them, and of which kind it is; all but the first are `flaxllm.generate`'s.
SETTINGS: dict[str, type] = {
    "do_sample": bool, "max_new_tokens": int, "num_return_sequences": int, "num_beams": int, "length_penalty": float,
    "early_stopping": bool, "temperature": float, "top_k": int, "top_p": float, "min_p": float, "typical_p": float,
    "repetition_penalty": float, "presence_penalty": float, "frequency_penalty": float, "no_repeat_ngram_size": int,
    "min_new_tokens": int, "logit_bias": dict, "stop": str, "seed": int,
}  # fmt: skip
_DRAWING = ("temperature", *TRUNCATING)
_SEARCHING = ("length_penalty", "early_stopping")
_LENGTHS = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}


def write_texts(
    at: Loaded, prompts: Sequence[Sequence[int] | np.ndarray], defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> list[list[str]]:
    """The texts that follow each prompt (the targets of sources), `num_return_sequences` of each.

    Settings are those that are `given`, or else those of the checkpoint for the task (task_specific_params in config.json)
    or for all (generation_config.json), or else the `defaults`. Unless max_new_tokens is given, no more are written than there
    is room for. What is drawn depends on `seed` and on the number of the prompt.

    Raises:
      InputError: as `flaxllm.generate`, or an option that is for drawing where the likeliest tokens are asked for.
    """
    settings = {**defaults, **_of_checkpoint(at), **_in_our_words(given, has_encoder(at.model))}
    count, new, room = settings.pop("num_return_sequences", 1), settings.pop("max_new_tokens"), most_positions(at.model)
    seeds = np.random.default_rng(settings.pop("seed", 0)).integers(2**32, size=(len(prompts), count))
    options = _options(settings, given)
    if banned := _banned(at):
        options["logit_bias"] = dict.fromkeys(banned, -np.inf) | options.get("logit_bias", {})
    groups = defaultdict(list)  # those of one length and number of new tokens go together
    for number, prompt in enumerate(prompts):
        fits = new if room is None or "max_new_tokens" in given else max(1, min(new, room - len(prompt)))
        groups[bucket(len(prompt)), fits].append(number)
    texts: list[list[str]] = [[] for _ in prompts]
    for (_, fits), numbers in groups.items():
        for begin in range(0, len(numbers), at.batch_size):
            part = numbers[begin : begin + at.batch_size]
            if "num_beams" not in options:
                options["seeds"] = seeds[part].ravel().tolist()
            tokens = [prompts[number] for number in part]
            written = generate(at.model, at.params, tokens, fits, n=count, tokenizer=at.tokenizer, **options).texts
            for place, number in enumerate(part):
                texts[number] = list(written[place * count : (place + 1) * count])
    return texts


def _of_checkpoint(at: Loaded) -> dict[str, Any]:
    """What a checkpoint says of how its model writes, as far as it is something that we know."""
    found: dict[str, Any] = {}
    for said in (at.generation, at.task_params):
        known = {name: value for name, value in said.items() if name in (*SETTINGS, *_LENGTHS) and isinstance(value, int | float)}
        found |= _in_our_words(known, has_encoder(at.model))
    return found


def _banned(at: Loaded) -> list[int]:
    """Tokens that are never to be written, such as Marian's padding."""
    words = at.generation.get("bad_words_ids") or at.config.get("bad_words_ids")
    return [word[0] for word in words if isinstance(word, list) and len(word) == 1] if isinstance(words, list) else []


def _in_our_words(settings: Mapping[str, Any], encodes: bool) -> dict[str, Any]:
    """Lengths as numbers of new tokens: of an encoder-decoder transformers counts the one that its targets begin with, and of
    other models the prompt, so that nothing is known before it is."""
    lengths = {_LENGTHS[name]: max(value - 1, 0) for name, value in settings.items() if encodes and name in _LENGTHS}
    return lengths | {name: value for name, value in settings.items() if name not in _LENGTHS}


def _options(settings: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `generate` for settings of which not all go together: what is given decides whether to draw."""
    drawing = [name for name in _DRAWING if name in given]
    if drawing and given.get("do_sample") is False:
        raise InputError(f"do_sample=False takes the likeliest tokens, and {drawing[0]} is for drawing: leave one of them out")
    beams = given.get("num_beams", 1)
    draws = given.get("do_sample", bool(drawing) or settings.get("do_sample", False) and beams == 1)
    if beams > 1 and draws:
        raise InputError(f"num_beams={beams} draws nothing: leave out {drawing[0] if drawing else 'do_sample'}, or the beams")
    searches = settings.get("num_beams", 1) > 1 and not draws
    unused = {*(() if draws else _DRAWING), *(() if searches else _SEARCHING)} - given.keys()
    unused |= {"do_sample"} if searches else {"do_sample", "num_beams"}
    options = {name: value for name, value in settings.items() if name not in unused}
    return options if draws or searches else options | {"temperature": 0}
