"""Multi-head attention as a layer: projections around the one `attention` function (Vaswani et al. 2017, section 3.2.2)."""

from collections.abc import Callable

from jaxtyping import Array, Float

from flaxllm.nn.attention import attention
from flaxllm.nn.cache import KeyValues, Layers, as_kept
from flaxllm.nn.cached_attention import attend_with_past, kept_attention
from flaxllm.nn.context import Context, constrain, tap
from flaxllm.nn.layers import dense, dense_specs, denses, rms_norm, rms_norm_specs
from flaxllm.nn.mask import Mask
from flaxllm.nn.param import Initializer, normal


def multi_head_specs(
    width: int,
    num_heads: int,
    head_dim: int,
    num_kv_heads: int | None = None,
    init: Initializer = normal(0.02),
    out_init: Initializer | None = None,
    bias: bool = True,
    out_bias: bool | None = None,
    head_norm: bool = False,
) -> dict[str, dict]:
    """Queries, keys, values and the way out; `num_kv_heads` where several query heads share a key head (Ainslie et al.
    2023), `head_norm` where queries and keys are normalised (Dehghani et al. 2023, section 2)."""
    embed, heads = {"embed": width}, {"heads": num_heads, "head_dim": head_dim}
    shared = heads if num_kv_heads is None else {"kv_heads": num_kv_heads, "head_dim": head_dim}
    specs = {
        "query": dense_specs(embed, heads, init, bias),
        "key": dense_specs(embed, shared, init, bias),
        "value": dense_specs(embed, shared, init, bias),
        "out": dense_specs(heads, embed, out_init or init, bias if out_bias is None else out_bias),
    }
    if head_norm:
        specs |= {name: rms_norm_specs(head_dim, "head_dim") for name in ("query_norm", "key_norm")}
    return specs


def multi_head_attention(
    params: dict,
    x: Float[Array, "batch q_len width"],
    mask: Mask,
    ctx: Context,
    *,
    memory: Float[Array, "batch k_len width"] | Layers | None = None,
    bias: Float[Array, "#batch #heads #q_len #k_len"] | None = None,
    scale: float | None = None,
    rotate: Callable[[Array], Array] | None = None,
    norm_eps: float = 1e-6,
    dropout_rate: float = 0.0,
) -> Float[Array, "batch q_len width"]:
    """Attention from `x` to `memory` (cross-attention), or to `x` itself where there is none.

    `memory` may also be what `remember` made of it for each layer. `rotate` turns queries and keys by their positions;
    `norm_eps` is that of the norms of queries and keys, where declared. `ctx` is the one of this layer's scope, such as
    `ctx.within("attention")`; where it has a cache, `x` also attends to what that holds.
    """
    if memory is None:
        q, k, v = _heads(("query", "key", "value"), params, x, norm_eps, ctx)
    else:
        (q,) = _heads(("query",), params, x, norm_eps, ctx)
    if isinstance(memory, tuple):
        mixed = kept_attention(q, (memory[ctx.layer],), mask, ctx, bias, scale)
    else:
        if memory is not None:
            k, v = _heads(("key", "value"), params, memory, norm_eps, ctx)
        if rotate is not None:
            q, k = tap(rotate(q), "rotated_query", ctx), tap(rotate(k), "rotated_key", ctx)
        q, k, v = (constrain(value, ctx, "batch", "length", "heads", None) for value in (q, k, v))
        if ctx.cache is None:
            mixed = attention(q, k, v, mask, bias=bias, scale=scale, dropout_rate=dropout_rate, ctx=ctx)
        else:
            mixed = attend_with_past(q, k, v, mask, ctx, bias, scale)
    return tap(dense(params["out"], tap(mixed, "mixed", ctx), "bthk,hkd->btd", ctx), "out", ctx)


def remember(
    params: dict, memory: Float[Array, "batch source width"], ctx: Context, norm_eps: float = 1e-6
) -> KeyValues:
    """The keys and values that a layer's cross-attention makes of a memory, to be made once for many tokens."""
    return as_kept(*_heads(("key", "value"), params, memory, norm_eps, ctx))


def _heads(
    names: tuple[str, ...], params: dict, x: Float[Array, "batch length width"], norm_eps: float, ctx: Context
) -> list[Float[Array, "batch length _ head_dim"]]:
    heads = denses([params[name] for name in names], x, "btd,dhk->bthk", ctx)

    def normed(name: str, value: Array) -> Array:
        value = tap(value, name, ctx)
        return rms_norm(params[f"{name}_norm"], value, norm_eps, ctx) if f"{name}_norm" in params else value

    return [normed(name, value) for name, value in zip(names, heads, strict=True)]
