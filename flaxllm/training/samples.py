"""Text that a model in training writes, for a person to look at."""

import jax
from ml_collections import ConfigDict

from flaxllm.data.tokenizers import Tokenizer
from flaxllm.decoding import generate, prepare
from flaxllm.models import Model
from flaxllm.nn import Context, Key


def write_sample(model: Model, params: dict, tokenizer: Tokenizer, sample: ConfigDict, key: Key, ctx: Context) -> str:
    """The prompt and `num_tokens` tokens that the model writes after it, end-of-text tokens included.

    Where the text outgrows the model's `max_len`, it goes on from the later half of that.
    """
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
