"""Texts made of others by an encoder-decoder: translations and summaries."""

from collections.abc import Sequence
from typing import Any

from flaxllm.pipelines.generation import write_texts
from flaxllm.pipelines.loaded import Loaded, listed
from flaxllm.pipelines.writing import prompt_tokens

_DEFAULTS = {"max_new_tokens": 256, "num_beams": 4}  # those of transformers 4


def translation(at: Loaded, inputs: str | Sequence[str], *, prefix: str | None = None, **settings: Any) -> list:
    """The translation of each text, `{"translation_text": ...}`, in a list for a text alone, and in one each where
    `num_return_sequences` is more than 1.

    `prefix` is put before a text that does not begin with it: unless given, what the checkpoint has for the task, such as
    T5's "translate English to German: " for translation_en_to_de. `settings` are those of `flaxllm.generate` by Hugging
    Face's names, with `do_sample`, `seed`, `max_length` and `min_length` (one more than the number of new tokens).

    Raises:
      InputError: as `flaxllm.generate`.
    """
    return _write(at, inputs, "translation", prefix, settings)


def summarization(at: Loaded, inputs: str | Sequence[str], *, prefix: str | None = None, **settings: Any) -> list:
    """The summary of each text, `{"summary_text": ...}`; all else is as for `translation`."""
    return _write(at, inputs, "summary", prefix, settings)


def _write(at: Loaded, inputs: str | Sequence[str], name: str, prefix: str | None, settings: dict[str, Any]) -> list:
    if prefix is None:
        prefix = at.task_params.get("prefix") or at.config.get("prefix") or ""
    texts = [text if text.startswith(prefix) else prefix + text for text in listed(inputs)]
    sources = [prompt_tokens(at.model, at.tokenizer, text) for text in texts]
    written = write_texts(at, sources, _DEFAULTS, settings)
    results = [[{f"{name}_text": text} for text in of] for of in written]
    if isinstance(inputs, str):
        return results[0]
    return results if settings.get("num_return_sequences", 1) > 1 else [of[0] for of in results]
