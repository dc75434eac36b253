"""Text written after a prompt by the model of a checkpoint, as `flaxllm generate` shows it."""

import sys
import time
from io import TextIOBase
from pathlib import Path

import jax

from flaxllm.data.tokenizers import Tokenizer
from flaxllm.errors import InputError
from flaxllm.models import Model

PRINTED = "\n\t"  # what steers a terminal and may


def write(
    path: str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    chat: bool = False,
    seed: int = 0,
    dtype: str | None = None,
    out: TextIOBase | None = None,
    notes: TextIOBase | None = None,
    **options: object,
) -> str:
    """Write what the model of a checkpoint says after a prompt to `out` as it comes, and how fast that went to `notes`.

    An encoder-decoder writes the target of the prompt. `chat`: the prompt is a user's message, put as the tokenizer's chat
    template asks. `options` are those of `flaxllm.generate`. Returns the text.

    Raises:
      InputError: as `from_pretrained`, `load_tokenizer` and `generate`.
    """
    from flaxllm.data import load_tokenizer
    from flaxllm.decoding import generate, prepare
    from flaxllm.decoding.reading import check_writes
    from flaxllm.pretrained import from_pretrained

    out, notes = out or sys.stdout, notes or sys.stderr
    tokenizer = load_tokenizer(path)
    model, params = from_pretrained(path, dtype=dtype)
    check_writes(model)
    tokens = prompt_tokens(model, tokenizer, prompt, chat)
    params = prepare(model, params)
    begin, times = time.perf_counter(), []

    def say(sequence: int, piece: str) -> None:
        out.write("".join(c if c.isprintable() or c in PRINTED else "\N{REPLACEMENT CHARACTER}" for c in piece))
        out.flush()

    searches = options.get("num_beams", 1) != 1  # then nothing is known before the end, and nothing is drawn
    told = dict(key=jax.random.PRNGKey(seed), on_text=say, on_token=lambda sequence, token: times.append(time.perf_counter()))
    generated = generate(
        model, params, [tokens], max_new_tokens, tokenizer=tokenizer, **({} if searches else told), **options
    )
    if searches:
        say(0, generated.texts[0])
        times = [time.perf_counter()] * int(generated.lengths[0])
    out.write("\n")
    notes.write(_speed(begin, times))
    return generated.texts[0]


def prompt_tokens(model: Model, tokenizer: Tokenizer, prompt: str, chat: bool = False) -> list[int]:
    """The tokens that a model reads of a prompt, with the special ones that its tokenizer puts around a text.

    Raises:
      InputError: the prompt is empty, and the model has no token to begin with; or there is no chat template.
    """
    if chat:
        return tokenizer.encode_chat([{"role": "user", "content": prompt}]).tokens.tolist()
    tokens = tokenizer(prompt).tokens[0].tolist()
    if tokens:
        return tokens
    ends = model.config.eos_token
    first = model.config.bos_token if model.config.bos_token is not None else ends[0] if isinstance(ends, tuple) else ends
    if first is None:
        raise InputError("the prompt is empty, and this model has no token to begin a text with: give it a word at least")
    return [first]


def _speed(begin: float, times: list[float]) -> str:
    """One line: the time to the first token, compilation included, and the rate of those that followed."""
    if len(times) < 3 or times[-1] == times[1]:
        return f"{len(times)} tokens in {times[-1] - begin:.1f} s\n"
    # The second one still waits for its step to be compiled.
    rate = (len(times) - 2) / (times[-1] - times[1])
    return f"{len(times)} tokens, the first after {times[0] - begin:.1f} s, then {rate:.1f} tokens/s\n"
