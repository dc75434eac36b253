"""A model reading tokens into a cache: some tokens after others, or a source that a decoder will look at."""

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models import Model, family
from flaxllm.nn import Cache, Context, KeyValues

TEXT_HEADS = ("causal-lm", "seq2seq-lm")
_CROSS = "decoder/layers/cross_attention"
_OF_SOURCE = ("encoder/", f"{_CROSS}/key", f"{_CROSS}/value")  # the taps of what a source is read for


class Read(NamedTuple):
    """What was made of new tokens: their hidden states, the cache that holds them too, and what the context's taps return."""

    hidden: Float[Array, "batch length width"]
    cache: Cache
    taps: dict[str, Array]


def has_encoder(model: Model) -> bool:
    return hasattr(family(model.family), "encode")


def most_positions(model: Model) -> int | None:
    """How many tokens a text may have, where each position is looked up in a table; None where any number will do."""
    return model.config.max_len if "positions" in model.param_specs()["embedding"] else None


def check_writes(model: Model) -> None:
    """Raise InputError if the model cannot write text."""
    if model.head not in TEXT_HEADS:
        raise InputError(
            f"this {model.family} model has the head {model.head or 'base'!r}, which writes no text: load it with one of "
            f"{' and '.join(TEXT_HEADS)}, if its family has it"
        )


def empty_cache(model: Model, batch: int, slots: int, dtype: DTypeLike = jnp.float32, slack: int = 0) -> Cache:
    """A cache that has read nothing, for `batch` rows of up to `slots` tokens each.

    A layer that sees a window only has slots for that, and `slack` more: so many tokens can be taken back.
    """
    module, specs = family(model.family), model.param_specs()
    layers = specs["decoder" if has_encoder(model) else nn.LAYERS]
    key = (layers[nn.LAYERS] if has_encoder(model) else layers)["attention"]["key"]["kernel"]
    depth, _, kv_heads, head_dim = key.shape
    windows = module.windows(model.config) if hasattr(module, "windows") else (None,)

    def empty(window: int | None) -> KeyValues:
        size = slots if window is None else min(slots, window + slack)
        orders = (head_dim, size), (size, head_dim)
        return KeyValues(*(jnp.zeros((batch, kv_heads, *order), dtype) for order in orders))

    return Cache(jnp.zeros(batch, jnp.int32), tuple(empty(windows[i % len(windows)]) for i in range(depth)))


def with_source(
    model: Model,
    params: dict,
    cache: Cache,
    source: Int[Array, "batch source"],
    valid: Bool[Array, "batch source"] | None = None,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Cache:
    """The cache of an encoder-decoder's prepared parameters with what each layer's cross-attention makes of a source.

    Of the context's taps those count that change what is made of the source.
    """
    ctx = nn.collecting(ctx.replace(taps=_taps(ctx, of_source=True)))
    encoded = family(model.family).encode(params, model.config, source, valid, ctx=ctx)
    layers = params["decoder"][nn.LAYERS]
    crossing = ctx.replace(scope=f"{_CROSS}/")
    memory = tuple(nn.remember(layer["cross_attention"], encoded, crossing.replace(layer=i)) for i, layer in enumerate(layers))
    nn.returned_taps(ctx)
    return cache.replace(memory=memory, memory_valid=valid)


def extend(
    model: Model,
    params: dict,
    cache: Cache,
    tokens: Int[Array, "batch length"],
    counts: Int[Array, "batch"] | None = None,
    first: bool = False,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Read:
    """Read tokens after those in the cache.

    Of row `b` the first `counts[b]` tokens are read (all unless given), and the rest is padding. `params` are prepared ones.
    `first` says that no row of the cache holds anything, which spares looking. Attention weights that the context's taps
    return are over the slots of the cache, and then over the new tokens; what is made of a source is not returned.

    Raises:
      InputError: the parameters' layers are stacked, or a tap that this model does not have.
    """
    batch, length = tokens.shape
    module, positions, valid = family(model.family), nn.new_positions(cache, length), None
    if counts is None:
        counts = jnp.full(batch, length)
    else:
        valid = jnp.arange(length) < counts[:, None]
        # Padding stands where the last token does: beyond a table of positions it would be NaN, which no mask hides.
        positions = jnp.minimum(positions, jnp.maximum(cache.length + counts - 1, 0)[:, None])
    ctx = nn.reading(ctx, cache.replace(layers=()) if first else cache)
    if has_encoder(model):
        ctx = nn.collecting(ctx.replace(taps=_taps(ctx, of_source=False)))
        hidden = module.decode(
            params, model.config, tokens, cache.memory, valid=cache.memory_valid, decoder_valid=valid,
            decoder_positions=positions, ctx=ctx,
        )  # fmt: skip
        taps = nn.returned_taps(ctx)
    else:
        output = module.apply(params, model.config, tokens, valid=valid, positions=positions, ctx=ctx)
        hidden, taps = output.hidden, output.taps
    return Read(hidden, nn.written(ctx, cache, counts, hidden), taps)


def _taps(ctx: Context, of_source: bool) -> nn.Taps | None:
    """The taps of what is read once, a source, or of what is read token by token; only the latter come back."""
    if ctx.taps is None:
        return None

    def kept(names: Iterable[str]) -> list[str]:
        return [name for name in names if name.startswith(_OF_SOURCE) == of_source]

    taps, functions = ctx.taps, dict(ctx.taps.functions)
    return nn.Taps(
        returned=() if of_source else tuple(kept(taps.returned)),
        replaced={name: taps.replaced[name] for name in kept(taps.replaced)},
        functions=tuple((name, functions[name]) for name in kept(functions)),
        added={name: taps.added[name] for name in kept(taps.added)},
    )
