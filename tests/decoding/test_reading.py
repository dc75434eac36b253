"""Reading with a cache gives what reading everything at once gives, however the tokens are cut."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding.tiny import MODELS, VOCAB, model_and_params, parameters
from flaxllm import nn
from flaxllm.decoding.reading import check_writes, empty_cache, extend, has_encoder, with_source
from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.nn import blockwise, cached_attention
from flaxllm.nn.mask import shows_anything

ROWS, LENGTH, SLOTS, SOURCE = 3, 30, 48, 9
CHUNKS, ONE_BY_ONE = (17, 1, 12), (2, *[1] * 28)
CUTS = [(name, CHUNKS) for name in MODELS] + [(name, ONE_BY_ONE) for name in ("gpt-banded", "t5")]

_extend = jax.jit(extend, static_argnames=("model", "first"))


def _tokens() -> jax.Array:
    return jax.random.randint(jax.random.PRNGKey(1), (ROWS, LENGTH), 0, VOCAB)


def _source() -> tuple[jax.Array, jax.Array]:
    source = jax.random.randint(jax.random.PRNGKey(2), (ROWS, SOURCE), 1, VOCAB)
    return source, jnp.arange(SOURCE) < jnp.array([[9], [5], [7]])


def _taught(name: str) -> jax.Array:
    """The hidden states of all tokens in one call without a cache."""
    model = MODELS[name]
    if has_encoder(model):
        source, valid = _source()
        return model.apply(parameters(name), source, _tokens(), valid=valid).hidden
    return model.apply(parameters(name), _tokens()).hidden


def _new_cache(name: str, slack: int = 0) -> nn.Cache:
    model, params = model_and_params(name)
    cache = empty_cache(model, ROWS, SLOTS, slack=slack)
    return with_source(model, params, cache, *_source()) if has_encoder(model) else cache


def _logits(name: str, hidden: jax.Array) -> np.ndarray:
    return np.asarray(MODELS[name].unembed(parameters(name), hidden))


@pytest.mark.parametrize(("name", "cut"), CUTS)
def test_pieces_give_the_logits_of_the_whole(name, cut):
    model, params = model_and_params(name)
    cache, start, hidden = _new_cache(name), 0, []
    for count in cut:
        piece, cache, _ = _extend(model, params, cache, _tokens()[:, start : start + count], first=start == 0)
        hidden.append(piece)
        start += count
    expected = _logits(name, _taught(name))
    got = _logits(name, jnp.concatenate(hidden, 1))
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    assert cache.length.tolist() == [LENGTH] * ROWS


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_rows_of_different_lengths_do_not_disturb_each_other(name):
    model, params = model_and_params(name)
    tokens, taught = _tokens(), _taught(name)
    cache, read = _new_cache(name), jnp.zeros(ROWS, int)
    for counts in ([8, 3, 5], [1, 1, 1], [2, 4, 0], [11, 18, 16], [1, 0, 1]):
        width, counts = max(counts) + (max(counts) > 1), jnp.array(counts)  # the last column is nobody's
        places = jnp.minimum(read[:, None] + jnp.arange(width), LENGTH - 1)
        piece = jnp.take_along_axis(tokens, places, axis=1)
        first = int(read.max()) == 0
        hidden, cache, _ = _extend(model, params, cache, piece, counts, first=first)
        expected = jnp.take_along_axis(taught, places[..., None], axis=1)
        is_read = (jnp.arange(width) < counts[:, None])[..., None]
        np.testing.assert_allclose(jnp.where(is_read, hidden, 0), jnp.where(is_read, expected, 0), atol=3e-5)
        read = read + counts
        assert cache.length.tolist() == read.tolist()


@pytest.mark.parametrize("name", ["llama", "llama-windowed", "t5"])
def test_many_tokens_pass_over_empty_slots(name, monkeypatch):
    """The second of three pieces is read block by block, with a cache that is mostly empty, by rows of different lengths."""
    monkeypatch.setattr(cached_attention, "FEW_QUERIES", 4)
    monkeypatch.setattr(blockwise, "CPU_BLOCK", 8)
    shown = []
    monkeypatch.setattr(blockwise, "shows_anything", lambda mask: shown.append(mask) or shows_anything(mask))
    model, params = model_and_params(name)
    tokens, expected = _tokens(), _logits(name, _taught(name))

    @jax.jit
    def read(params: dict, cache: nn.Cache) -> jax.Array:
        _, cache, _ = extend(model, params, cache, tokens[:, :8], jnp.array([8, 3, 5]), first=True)
        places = cache.length[:, None] + jnp.arange(12)
        _, cache, _ = extend(model, params, cache, jnp.take_along_axis(tokens, places, 1), jnp.array([12, 10, 7]))
        return extend(model, params, cache, jnp.take_along_axis(tokens, cache.length[:, None], 1))[0]

    got = _logits(name, read(params, _new_cache(name)))
    np.testing.assert_allclose(got[:, 0], expected[jnp.arange(ROWS), jnp.array([20, 13, 12])], atol=1e-5 * np.abs(expected).max())
    assert shown


@pytest.mark.parametrize("name", ["gpt", "gpt-banded", "t5"])
def test_tokens_can_be_taken_back(name):
    model, params = model_and_params(name)
    tokens, taught = _tokens(), _taught(name)
    _, cache, _ = _extend(model, params, _new_cache(name, slack=4), tokens[:, :20], first=True)
    _, cache, _ = _extend(model, params, cache, jnp.full((ROWS, 4), 7))
    cache = cache.replace(length=cache.length - 4)
    hidden, _, _ = _extend(model, params, cache, tokens[:, 20:25])
    np.testing.assert_allclose(hidden, taught[:, 20:25], atol=3e-5)


@pytest.mark.parametrize("name", ["t5", "transformer"])
def test_rows_in_succession_share_a_source(name):
    model, params = model_and_params(name)
    shared = _new_cache(name)
    wide = empty_cache(model, 2 * ROWS, SLOTS).replace(memory=shared.memory, memory_valid=shared.memory_valid)
    tokens = jnp.repeat(_tokens(), 2, axis=0)
    hidden, _, _ = _extend(model, params, wide, tokens, first=True)
    np.testing.assert_allclose(hidden, jnp.repeat(_taught(name), 2, axis=0), atol=3e-5)


def test_a_window_has_as_many_slots_as_it_is_wide():
    layers = empty_cache(MODELS["llama-windowed"], ROWS, SLOTS).layers
    assert [layer.slots for layer in layers] == [6, SLOTS]
    layers = empty_cache(MODELS["gpt-banded"], ROWS, SLOTS, slack=3).layers
    assert [layer.slots for layer in layers] == [SLOTS, 8]


def test_taps_work_while_decoding():
    model, params = model_and_params("llama")
    name = "layers/attention/weights"
    taps = nn.Taps(returned=(name,))
    whole = model.apply(parameters("llama"), _tokens(), ctx=nn.Context(taps=taps)).taps[name]
    _, cache, _ = _extend(model, params, _new_cache("llama"), _tokens()[:, :-1], first=True)
    ctx = nn.reading(nn.Context(taps=taps), cache)
    last = model.apply(params, _tokens()[:, -1:], positions=cache.length[:, None], ctx=ctx).taps[name]
    seen = jnp.concatenate([last[..., : LENGTH - 1], last[..., -1:]], -1)  # the slots that hold a token, then itself
    np.testing.assert_allclose(seen, whole[..., -1:, :], atol=1e-5)


def test_stacked_layers_are_refused():
    model = MODELS["gpt"]
    with pytest.raises(InputError, match="give parameters that flaxllm.prepare made"):
        extend(model, parameters("gpt"), _new_cache("gpt"), _tokens())


def test_packed_rows_are_refused():
    model, params = model_and_params("gpt")
    _, cache, _ = _extend(model, params, _new_cache("gpt"), _tokens()[:, :4], first=True)
    with pytest.raises(InputError, match="give each document a row"):
        model.apply(params, _tokens(), segments=jnp.ones((ROWS, LENGTH), int), ctx=nn.reading(nn.Context(), cache))


def test_a_model_without_words_is_refused():
    with pytest.raises(InputError, match="head 'sequence-classification', which writes no text"):
        check_writes(build("gpt", {"num_layers": 2}, head="sequence-classification"))


def test_a_step_leaves_the_rest_of_the_cache_where_it_is(optimized):
    """Donated, a cache of many slots is written into, not copied."""
    model, params = model_and_params("gpt")
    step = jax.jit(partial(extend, model), donate_argnums=1)
    compiled = step.lower(params, _new_cache("gpt"), _tokens()[:, :1]).compile().memory_analysis()
    cache_bytes = sum(x.nbytes for x in jax.tree.leaves(_new_cache("gpt")))
    assert compiled.alias_size_in_bytes >= cache_bytes
    assert compiled.temp_size_in_bytes < cache_bytes / 2
