"""What stands behind a mask."""

import logging
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxllm.data.encoding import Encoded, check_texts
from flaxllm.data.json_file import brief
from flaxllm.decoding.buckets import Inputs, in_parts
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.pipelines.loaded import Loaded, encode, listed, run

_log = logging.getLogger("flaxllm")


def fill_mask(
    at: Loaded,
    inputs: str | Sequence[str],
    *,
    top_k: int = 5,
    targets: Sequence[str] | str | None = None,
    truncation: bool = False,
) -> list:
    """The `top_k` likeliest tokens in place of the mask in each text, `{"score": ..., "token": ..., "token_str": ...,
    "sequence": ...}` (the text with the token in it); of a text with several masks a list for each of them.

    `targets`: only these tokens come into question; of a word that is none it is the first token, which a warning tells. As in
    transformers, all special tokens that a text spells are read as such.

    Raises:
      InputError: a text has no mask, or the tokenizer knows none.
    """
    tokenizer = at.tokenizer
    if tokenizer.mask is None:
        raise InputError("this tokenizer has no mask token: fill-mask needs the one that its model was trained with")
    spelt = tokenizer.backend.id_to_token(tokenizer.mask)
    texts = listed(inputs)
    encoded = [encode(at, text, None, number, truncation, allow_special=True) for number, text in enumerate(texts)]
    places = [np.flatnonzero(each.tokens[0] == tokenizer.mask).tolist() for each in encoded]
    for number, (text, found) in enumerate(zip(texts, places)):
        if not found:
            raise InputError(f"text {number} is {brief(text)}: write {spelt} in the place of the missing word")
    if top_k < 1:
        raise InputError(f"top_k is {top_k}: expected 1 or more")
    among = np.arange(min(tokenizer.vocab_size, at.model.config.vocab_size)) if targets is None else _tokens_of(at, targets)
    most = max(map(len, places), default=0)
    program = partial(_likeliest, mask=tokenizer.mask, among=among, most=most, count=min(top_k, len(among)))
    results = []
    for each, found, ((scores, tokens),) in zip(encoded, places, run(at, program, encoded)):
        filled = [_filled(at, each, place, *best, len(found) == 1) for place, *best in zip(found, scores, tokens)]
        results.append(filled[0] if len(found) == 1 else filled)
    return results[0] if isinstance(inputs, str) else results


def _tokens_of(at: Loaded, targets: Sequence[str] | str) -> np.ndarray:
    targets = [targets] if isinstance(targets, str) else list(targets)
    check_texts(targets, "target")
    tokens = []
    for target in targets:
        token = at.tokenizer.backend.token_to_id(target)
        if token is None:
            pieces = at.tokenizer.encode(target)
            if not len(pieces):
                raise InputError(f"the target {target!r} has no token: leave it out")
            token = int(pieces[0])
            _log.warning("the target %r is no token of this model: taken is %r", target, at.tokenizer.backend.id_to_token(token))
        tokens.append(token)
    if not tokens:
        raise InputError("targets is empty: give a word at least, or leave it out")
    return np.array(list(dict.fromkeys(tokens)))


@partial(jax.jit, static_argnames=("model", "most", "count"))
def _likeliest(
    model: Model, params: dict, inputs: Inputs, mask: int | Array, among: Int[Array, "tokens"], most: int, count: int
) -> tuple[Float[Array, "row masks best"], Int[Array, "row masks best"]]:
    """The probabilities of the best tokens at each of a row's first masks, and which they are."""

    def likeliest(inputs: Inputs) -> tuple[Array, Array]:
        hidden = model.apply(params, **inputs).hidden
        places = jnp.argsort(inputs["tokens"] != mask, axis=1, stable=True)[:, :most]
        masked = jnp.take_along_axis(hidden, places[..., None], axis=1)
        probabilities = jax.nn.softmax(model.unembed(params, masked).astype(jnp.float32))
        scores, best = jax.lax.top_k(probabilities[..., among], count)
        return scores, among[best]

    return in_parts(likeliest, inputs)


def _filled(at: Loaded, encoded: Encoded, place: int, scores: np.ndarray, tokens: np.ndarray, is_only_one: bool) -> list[dict]:
    """The other masks stay in the text, and so do special tokens then."""
    filled = []
    for score, token in zip(scores.tolist(), tokens.tolist()):
        text = encoded.tokens[0].copy()
        text[place] = token
        sequence = at.tokenizer.decode(text, skip_special=is_only_one)
        filled.append({"score": score, "token": token, "token_str": at.tokenizer.decode([token]), "sequence": sequence})
    return filled
