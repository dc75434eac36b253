"""Taps while a model reads with a cache: what comes back, and what is written when something is changed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding.tiny import MODELS, VOCAB, parameters, prepared
from flaxllm.decoding import generate
from flaxllm.decoding.reading import empty_cache, extend, has_encoder, with_source
from flaxllm.errors import InputError
from flaxllm.nn import Context, Replacement, Taps

ROWS, LENGTH, SLOTS, SOURCE, NEW = 2, 10, 16, 7, 8
NAMES = ("layers/out", "layers/mlp/out", "layers/attention/weights")
_extend = jax.jit(extend, static_argnames=("model", "first"))
_with_source = jax.jit(with_source, static_argnames="model")
RNG = np.random.default_rng(0)
TOKENS, TEXT = RNG.integers(0, VOCAB, (ROWS, LENGTH)), RNG.integers(1, VOCAB, (ROWS, SOURCE))


def stack(name: str) -> str:
    return "decoder/" if has_encoder(MODELS[name]) else ""


@partial(jax.jit, static_argnames="name")
def taught(name: str, tokens: jax.Array, ctx: Context):
    """A forward pass without a cache; of an encoder-decoder these tokens are the target's."""
    return MODELS[name].apply(parameters(name), *([TEXT] if has_encoder(MODELS[name]) else []), tokens, ctx=ctx)


@pytest.mark.parametrize("name", ["gpt", "t5-gated"])
def test_pieces_return_the_taps_of_the_whole(name):
    model, params = MODELS[name], prepared(name)
    names = tuple(stack(name) + tap for tap in NAMES)
    ctx = Context(taps=Taps(returned=names))
    whole = taught(name, TOKENS, ctx).taps
    cache = empty_cache(model, ROWS, SLOTS)
    cache = _with_source(model, params, cache, jnp.asarray(TEXT)) if has_encoder(model) else cache
    for start, stop in ((0, 7), (7, LENGTH)):
        read = _extend(model, params, cache, jnp.asarray(TOKENS[:, start:stop]), first=start == 0, ctx=ctx)
        cache = read.cache
        assert read.taps.keys() == set(names)
        for tap in names[:2]:
            np.testing.assert_allclose(read.taps[tap], whole[tap][:, :, start:stop], atol=1e-5 * np.abs(whole[tap]).max())
        new, slots = stop - start, 0 if start == 0 else SLOTS
        weights = read.taps[names[2]]
        assert weights.shape[-2:] == (new, slots + new)
        seen = jnp.concatenate([weights[..., :start], weights[..., slots:]], -1)  # the slots that hold a token, then the new
        np.testing.assert_allclose(seen, whole[names[2]][..., start:stop, :stop], atol=1e-5)
        assert not weights[..., start:slots].any()


def changes(name: str) -> dict[str, Taps]:
    """A step in each layer of a stack, and a head of the decoder that mixes nothing but threes."""
    config = MODELS[name].config
    depths = {stack(name): getattr(config, "decoder_depth", config.num_layers)}
    depths |= {"encoder/": config.num_layers} if has_encoder(MODELS[name]) else {}
    steps = {
        f"{part}layers/out": jnp.asarray(RNG.normal(0.0, 3.0, (depth, 1, 1, config.d_model)), jnp.float32)
        for part, depth in depths.items()
    }
    written, *read = steps
    head = jnp.broadcast_to(jnp.arange(config.num_heads)[:, None] == 1, (len(steps[written]), 1, 1, config.num_heads, 1))
    mixed = {f"{stack(name)}layers/attention/mixed": Replacement(jnp.full_like(head, 3.0, jnp.float32), head)}
    found = {"what writes": Taps(replaced=mixed, added={written: steps[written]})}
    return found | {tap: Taps(added={tap: steps[tap]}) for tap in read}


@pytest.mark.parametrize("name", ["gpt", "t5-gated"])
def test_what_is_written_is_what_the_changed_model_says(name):
    model, params = MODELS[name], parameters(name)
    prompts = TEXT if has_encoder(model) else TOKENS
    start = np.full((ROWS, 1), model.config.decoder_start_token) if has_encoder(model) else TOKENS
    plain = generate(model, params, prompts, NEW, temperature=0).tokens
    for change, taps in changes(name).items():
        ctx = Context(taps=taps)
        tokens = np.pad(start, ((0, 0), (0, NEW)))  # what is not yet written is seen by none
        for place in range(start.shape[1], tokens.shape[1]):
            tokens[:, place] = model.unembed(params, taught(name, tokens, ctx).hidden[:, place - 1]).argmax(-1)
        written = generate(model, params, prompts, NEW, temperature=0, ctx=ctx).tokens
        np.testing.assert_array_equal(written, tokens[:, -NEW:], err_msg=change)
        assert (np.asarray(written) != plain).any(), change


def test_taps_to_be_returned_or_that_are_not_there_are_refused():
    model, params = MODELS["gpt"], parameters("gpt")
    for taps, message in (
        (Taps(returned=("layers/out",)), "generate returns no taps, and was asked for 'layers/out'"),
        (Taps(added={"layers/ouch": jnp.zeros((2, 1, 1, 16))}), "no tap is called 'layers/ouch' in this model: did you mean"),
        (Taps(added={"layers/out": jnp.zeros((3, 1, 1, 16))}), "expected data with a leading axis of 2"),
    ):
        with pytest.raises(InputError, match=message):
            generate(model, params, TOKENS, NEW, temperature=0, ctx=Context(taps=taps))
