"""A model as one of EleutherAI's lm-evaluation-harness, where its name is "flaxllm" once this module is imported.

The harness's command line imports nobody's modules, so `python -m flaxllm.adapters.lm_eval` stands for its `lm_eval`:

    python -m flaxllm.adapters.lm_eval run --model flaxllm --model_args path=PATH --tasks lambada_openai
"""

import inspect
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from flaxllm import nn
from flaxllm.data import Tokenizer, load_tokenizer
from flaxllm.decoding import generate, prepare
from flaxllm.decoding.buckets import Inputs, Row, in_buckets, in_parts
from flaxllm.decoding.engine import bucket
from flaxllm.decoding.prompts import end_tokens
from flaxllm.decoding.reading import most_positions
from flaxllm.errors import InputError, did_you_mean, optional_library
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.pretrained import from_pretrained

optional_library("lm_eval", "flaxllm.adapters.lm_eval", "'flaxllm[lm-eval]'")

from lm_eval import utils  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402
from lm_eval.models.utils import normalize_gen_kwargs  # noqa: E402
from tqdm import tqdm  # noqa: E402

BATCH_SIZE = 32
_LOGIT_BYTES = 2**28
_BATCHES_AT_A_TIME = 32  # after which the harness is told what is known: a run that is cut off goes on from there

_log = logging.getLogger("flaxllm")

Pair = tuple[tuple[str, str] | None, list[int], list[int]]  # what a request says, its context, and its continuation


@register_model("flaxllm")
class HarnessModel(TemplateLM):
    """The checkpoint at `path`, or a `model` with its `params` and a `tokenizer`: a decoder that writes text.

    What it answers is what the harness's own model for transformers, "hf", answers for the same weights: special tokens that
    a text spells are read as such, texts begin with those that the tokenizer puts before them (unless `add_bos_token` is
    False), and an empty context is the beginning-of-text token, or the end-of-text token where there is none.
    A text may have `max_length` tokens, those that the model was made for unless given, and what is before them is cut off;
    `max_gen_toks` are written where a task does not say how many. `batch_size` rows are computed at once, at most ("auto":
    `max_batch_size` of them). What is drawn depends on `seed` and on the number of the request. `device`, which the harness
    names as torch does, changes nothing: jax has its own (JAX_PLATFORMS).

    Raises:
      InputError: an unknown argument, a value out of its range, a model that is no decoder with the head "causal-lm", or as
        `from_pretrained` and `load_tokenizer`.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        model: Model | None = None,
        params: dict | None = None,
        tokenizer: Tokenizer | None = None,
        batch_size: int | str = BATCH_SIZE,
        max_batch_size: int = BATCH_SIZE,
        device: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool = True,
        dtype: DTypeLike | None = None,
        seed: int = 0,
        ctx: Context = Context(),  # noqa: B008 (frozen)
        **unknown: Any,
    ):
        super().__init__()
        for name in unknown:
            raise InputError(f"the harness's model flaxllm has no argument {name!r}: {did_you_mean(name, _ARGUMENTS)}")
        if (path is None) == (model is None) or (model is None) != (params is None):
            raise InputError("the harness's model flaxllm needs a checkpoint's path, or else model=, params= and tokenizer=")
        if path is None and tokenizer is None:
            raise InputError("the harness's model flaxllm got a model without a tokenizer: give tokenizer= too")
        if path is not None:
            model, params = from_pretrained(path, dtype=dtype)
            tokenizer = load_tokenizer(path) if tokenizer is None else tokenizer
        if model.head != "causal-lm":
            raise InputError(
                f"this is a {model.family} model with the head {model.head or 'base'!r}, and the harness asks for text that goes "
                "on from a text: give it a decoder with the head 'causal-lm'"
            )
        self.model, self.params, self.tokenizer, self.ctx = model, prepare(model, params), tokenizer, ctx
        self.batch_size = _batch_size(batch_size, max_batch_size)
        most = most_positions(model)
        self.max_length = model.config.max_len if max_length is None else max_length
        if self.max_length < 1 or most is not None and self.max_length > most:
            expected = "1 or more" if most is None else f"1 to {most}"
            raise InputError(f"max_length is {max_length}: expected {expected} for this model")
        self.max_gen_toks, self.add_bos_token, self.seed = max_gen_toks, add_bos_token, seed

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        """What an empty context stands for.

        Raises:
          InputError: the tokenizer has no such token.
        """
        for token in (self.tokenizer.bos, self.tokenizer.eos):
            if token is not None:
                return token
        raise InputError("a context is empty, and this tokenizer has no token that begins or ends a text: choose another task")

    @property
    def tokenizer_name(self) -> str:
        """What tells the requests of one tokenizer from those of another, where the harness keeps them."""
        return self.tokenizer.fingerprint

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a chat; without `add_generation_prompt` it ends within its last message, which is to be gone on with.

        Raises:
          InputError: as `Tokenizer.chat`.
        """
        text = self.tokenizer.chat(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        said = last if last in text else last.strip()  # some templates strip what is said
        return text[: text.rindex(said) + len(said)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text, with those that the tokenizer puts before it, unless it spells the first of them itself."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos
            begun = bos is not None and string.startswith(self.tokenizer.decode([bos]))
            add_special_tokens = self.add_bos_token and not begun
        return self.tokenizer(string, add_special_tokens=add_special_tokens, allow_special=True).tokens[0].tolist()

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log probability of each whole text, in windows that share no prediction: each is as long as the model takes,
        and the last one sees as much of what is before it as has room."""
        pairs: list[Pair] = []
        owners = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            windows = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            pairs += [(None, *utils.make_disjoint_window(window)) for window in windows]
            owners += [number] * (len(pairs) - len(owners))
        sums = np.zeros(len(requests))
        np.add.at(sums, owners, [logprob for logprob, _ in self._loglikelihood_tokens(pairs, disable_tqdm)])
        return sums.tolist()

    def _loglikelihood_tokens(self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        """The log probability of each continuation after its context, and whether each of its tokens is the likeliest."""
        rows = [self._row(*request) for request in requests]
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number]["tokens"]))  # what needs most memory first
        step, answers = self.batch_size * _BATCHES_AT_A_TIME, {}
        score = partial(_score, self.model, self.params, ctx=self.ctx)
        with tqdm(total=len(rows), desc="log likelihoods", disable=disable_tqdm) as bar:
            for begin in range(0, len(rows), step):
                part = order[begin : begin + step]
                scores = in_buckets(score, [rows[number] for number in part], most_positions(self.model), self.batch_size)
                for number, (logprobs, best) in zip(part, scores):
                    asked, _, continuation = requests[number]
                    end = len(rows[number]["tokens"])
                    kept = slice(max(0, end - len(continuation)), end)
                    answers[number] = float(logprobs[kept].sum(dtype=np.float64)), bool(best[kept].all())
                    if asked is not None:
                        self.cache_hook.add_partial("loglikelihood", asked, answers[number])
                bar.update(len(part))
        return [answers[number] for number in range(len(rows))]

    def _row(self, asked: tuple[str, str] | None, context: list[int], continuation: list[int]) -> Row:
        if not continuation:
            raise InputError(f"the continuation of {asked} has no token of its own: end its context where a word ends")
        tokens = context + continuation
        lost = len(tokens) - self.max_length - 1  # the last one is predicted only
        if lost > 0:
            _log.warning("a text has %d tokens too many for this model: those at its beginning are cut off", lost)
        kept = np.array(tokens[max(0, lost) :], np.int32)
        return {"tokens": kept[:-1], "targets": kept[1:]}

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to one of the strings `until`, the end of text, or `max_gen_toks` tokens.

        What else a request may give are the options of `flaxllm.generate` by name; the likeliest tokens are taken unless
        `do_sample` or a temperature is given.

        Raises:
          InputError: as many tokens are to be written as a text may have, or as `flaxllm.generate`.
        """
        groups = defaultdict(list)  # of one length and one way of writing
        for number, request in enumerate(requests):
            context, settings = request.args
            settings = normalize_gen_kwargs(settings, self.max_gen_toks)
            settings.pop("do_sample")  # the temperature says it already
            room = self.max_length - settings["max_gen_toks"]
            if room < 1:
                raise InputError(
                    f"max_gen_toks is {settings['max_gen_toks']}, and a text may have {self.max_length} tokens here: lower it"
                )
            prompt = (self.tok_encode(context) or [self.prefix_token_id])[-room:]
            groups[json.dumps(settings, sort_keys=True), bucket(len(prompt))].append((number, prompt, settings))
        seeds = np.random.default_rng(self.seed).integers(2**32, size=len(requests)).tolist()
        answers = {}
        with tqdm(total=len(requests), desc="texts", disable=disable_tqdm) as bar:
            for members in groups.values():
                for begin in range(0, len(members), self.batch_size):
                    numbers, prompts, settings = zip(*members[begin : begin + self.batch_size])
                    texts = self._write(prompts, [seeds[number] for number in numbers], **settings[0])
                    for number, text in zip(numbers, texts):
                        answers[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(numbers))
        return [answers[number] for number in range(len(requests))]

    def _write(
        self,
        prompts: Sequence[list[int]],
        seeds: list[int],
        *,
        until: list[str],
        max_gen_toks: int,
        temperature: float = 0.0,
        **options: Any,
    ) -> tuple[str, ...]:
        special = {token: self.tokenizer.backend.token_to_id(token) for token in self.tokenizer.special_tokens}
        ends = {*end_tokens(self.model), self.tokenizer.eos, *(special.get(text) for text in until)} - {None}
        generated = generate(
            self.model, self.params, prompts, max_gen_toks, tokenizer=self.tokenizer, seeds=seeds, stop_tokens=sorted(ends),
            stop=[text for text in until if text], temperature=temperature, ctx=self.ctx, **options,
        )  # fmt: skip
        return generated.texts


_ARGUMENTS = inspect.signature(HarnessModel).parameters.keys() - {"unknown"}


def _batch_size(given: int | str, most: int) -> int:
    if str(given).partition(":")[0] == "auto":  # "auto:N": torch would measure it N times
        given = most
    if not str(given).isdecimal() or int(given) < 1:
        raise InputError(f"batch_size is {given!r}: expected a whole number of 1 or more, or 'auto'")
    return int(given)


@partial(jax.jit, static_argnames="model")
def _score(
    model: Model, params: dict, inputs: Inputs, ctx: Context
) -> tuple[Float[Array, "row token"], Bool[Array, "row token"]]:
    """The log probability of each target after the tokens up to its own place, and whether it is the likeliest there."""

    def score(part: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden, targets = part
        logits = model.unembed(params, hidden, ctx=ctx).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=1), logits.argmax(1) == targets

    def score_rows(part: Inputs) -> tuple[Array, Array]:
        hidden = model.apply(params, part["tokens"], ctx=ctx).hidden  # no token sees the padding, which is on its right
        flat = hidden.reshape(-1, hidden.shape[-1]), part["targets"].reshape(-1)
        scores = nn.map_parts(score, flat, max(1, _LOGIT_BYTES // (4 * model.config.vocab_size)))
        return jax.tree.map(lambda x: x.reshape(part["tokens"].shape), scores)

    return in_parts(score_rows, inputs)


def main() -> None:
    """The harness's command line with this model in it; what a person did wrong is one line, as in `flaxllm`."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
