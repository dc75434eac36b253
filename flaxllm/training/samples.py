"""Text that a model in training writes, for a person to look at, or to be judged."""

from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from flaxllm.data.tokenizers import Tokenizer
from flaxllm.decoding import generate, prepare
from flaxllm.decoding.reading import TEXT_HEADS, has_encoder
from flaxllm.models import Model
from flaxllm.nn import Context, Key


def writes(model: Model) -> bool:
    """Whether the model can write a sample."""
    return model.head in TEXT_HEADS


def write_sample(model: Model, params: dict, tokenizer: Tokenizer, sample: ConfigDict, key: Key, ctx: Context) -> str:
    """The prompt and `num_tokens` tokens that the model writes after it, end-of-text tokens included.

    Where the text outgrows the model's `max_len`, it goes on from the later half of that. An encoder-decoder transforms the
    prompt.
    """
    if has_encoder(model):
        source = tokenizer(sample.prompt).tokens
        return generate(
            model, params, source, sample.num_tokens, temperature=sample.temperature, key=key, tokenizer=tokenizer,
            ctx=ctx.replace(rules=None),
        ).texts[0]  # fmt: skip
    text, limit = tokenizer.encode(sample.prompt).tolist(), model.config.max_len
    goal = len(text) + sample.num_tokens
    params = prepare(model, params)
    while len(text) < goal:
        key, own_key = jax.random.split(key)
        seen = text if len(text) < limit else text[-(limit // 2) :]
        count = min(goal - len(text), limit - len(seen))
        out = generate(
            model, params, [seen], count, temperature=sample.temperature, key=own_key, stop_tokens=(), ctx=ctx.replace(rules=None)
        )
        text += out.rows()[0]
    return tokenizer.decode(text)


def write_texts(
    model: Model, params: dict, tokenizer: Tokenizer, prompts: Sequence[np.ndarray], settings: ConfigDict
) -> list[str]:
    """What the model finds likeliest after each prompt (or as its translation), by `settings`' `num_beams` and
    `max_new_tokens`. Prompts of about one length are taken together, `batch_size` at a time."""
    params, texts = prepare(model, params), {}
    options = {"num_beams": settings.num_beams} if settings.num_beams > 1 else {"temperature": 0}
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start in range(0, len(order), settings.batch_size):
        numbers = order[start : start + settings.batch_size]
        numbers += numbers[:1] * (settings.batch_size - len(numbers))  # so that the last ones need no program of their own
        rows = [np.asarray(prompts[number]).tolist() for number in numbers]
        out = generate(model, params, rows, settings.max_new_tokens, tokenizer=tokenizer, **options)
        texts |= dict(zip(numbers, out.texts))
    return [texts[number] for number in range(len(prompts))]
