"""Pure layers: embedding, dense, norms, activations, feed-forward, dropout. Arrays in, arrays out.

Each layer has a function that declares its parameters and one that applies them. Where the derivative of a plain formula
would keep more values for the backward pass than the mathematics needs (layer norm, GELU), it is given by hand.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxllm.nn.context import Context, tap
from flaxllm.nn.param import Initializer, Param, normal, ones, zeros
from flaxllm.nn.weights import Weight, product, products, rows


def dense_specs(
    inputs: dict[str, int], outputs: dict[str, int], init: Initializer = normal(0.02), bias: bool = True
) -> dict[str, Param]:
    """A linear map from the axes `inputs` to the axes `outputs` (name to size)."""
    sizes = {**inputs, **outputs}
    specs = {"kernel": Param(tuple(sizes.values()), tuple(sizes), init, tuple(inputs))}
    if bias:
        specs["bias"] = Param(tuple(outputs.values()), tuple(outputs), zeros)
    return specs


def dense(params: dict, x: Float[Array, "..."], equation: str, ctx: Context) -> Float[Array, "..."]:
    """`einsum(equation, x, kernel) + bias`, where a bias is declared."""
    return denses([params], x, equation, ctx)[0]


def denses(maps: Sequence[dict], x: Float[Array, "..."], equation: str, ctx: Context) -> list[Float[Array, "..."]]:
    """`dense` by each of several maps of one input: a single product where `flaxllm.prepare` has joined their kernels."""
    outputs = products(equation, x, [params["kernel"] for params in maps], ctx)
    return [y + ctx.cast(params["bias"]) if "bias" in params else y for y, params in zip(outputs, maps, strict=True)]


def embedding_specs(index: str, size: int, width: int, init: Initializer = normal(0.02)) -> Param:
    """A lookup table of `size` rows; `index` is "vocab", "positions" or "token_types"."""
    return Param((size, width), (index, "embed"), init, (index,))


def embed(
    table: Weight, ids: Int[Array, "batch length"], ctx: Context, untrained: int | None = None
) -> Float[Array, "batch length width"]:
    """Rows of the table `[size, width]`; NaN for an id outside of it. To look `untrained` up trains nothing (torch's
    `padding_idx`)."""
    embedded = rows(table, ids, ctx)
    if untrained is None:
        return embedded
    return jnp.where((ids == untrained)[..., None], jax.lax.stop_gradient(embedded), embedded)


def unembed(
    table: Weight, hidden: Float[Array, "*batch width"], ctx: Context
) -> Float[Array, "*batch vocab"]:
    """Each hidden state's product with every row of the table `[vocab, width]`, in float32 at least."""
    return product("...d,vd->...v", hidden, table, ctx, jnp.promote_types(hidden.dtype, jnp.float32))


def layer_norm_specs(width: int) -> dict[str, Param]:
    return {"scale": Param((width,), ("embed",), ones), "bias": Param((width,), ("embed",), zeros)}


def layer_norm(params: dict, x: Float[Array, "*batch width"], eps: float, ctx: Context) -> Float[Array, "*batch width"]:
    """`scale * (x - mean) / sqrt(variance + eps) + bias` over the last axis, in float32 (Ba et al. 2016, eq. 3-4)."""
    y = _layer_norm(x, params["scale"], params["bias"], eps)
    return y.astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    return _normalize(x, eps)[0] * scale + bias


@_layer_norm.defjvp
def _layer_norm_derivative(eps: float, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    normed, rsqrt = _normalize(x, eps)
    centred = _widen(dx) - _widen(dx).mean(-1, keepdims=True)
    dnormed = rsqrt * (centred - normed * (normed * centred).mean(-1, keepdims=True))
    return normed * scale + bias, dnormed * scale + normed * dscale + dbias


def _normalize(x: Array, eps: float) -> tuple[Array, Array]:
    centred = _widen(x) - _widen(x).mean(-1, keepdims=True)
    rsqrt = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return centred * rsqrt, rsqrt


def _widen(x: Array) -> Array:
    """At least float32: sums of low-precision numbers are taken in it."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rms_norm_specs(width: int, axis: str = "embed") -> dict[str, Param]:
    return {"scale": Param((width,), (axis,), ones)}


def rms_norm(params: dict, x: Float[Array, "*batch width"], eps: float, ctx: Context) -> Float[Array, "*batch width"]:
    """`scale * x / sqrt(mean(x^2) + eps)` over the last axis, in float32 (Zhang and Sennrich 2019, eq. 4)."""
    wide = _widen(x)
    normed = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    return (normed * params["scale"]).astype(x.dtype)


@jax.custom_jvp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`0.5 x (1 + erf(x / sqrt(2)))`, in float32 at least (Hendrycks and Gimpel 2016, section 2).

    XLA on CPU takes a third of the time for `erf` that it takes for the `erfc` of `jax.nn.gelu`.
    """
    return (x * _normal_cdf(_widen(x))).astype(x.dtype)


@gelu.defjvp
def _gelu_derivative(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    wide = _widen(x)
    below = _normal_cdf(wide)
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2.0 * math.pi)
    return (wide * below).astype(x.dtype), dx * (below + wide * density).astype(x.dtype)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


_TANH_SLOPE = 0.7978845608028654  # sqrt(2 / pi)
_TANH_CUBIC = 0.044715


@jax.custom_jvp
def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (Hendrycks and Gimpel 2016, section 2), as in GPT-2."""
    return 0.5 * x * (1.0 + _gelu_gate(x))


@gelu_tanh.defjvp
def _gelu_tanh_derivative(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    gate = _gelu_gate(x)
    gate_slope = (1.0 - gate * gate) * _TANH_SLOPE * (1.0 + 3.0 * _TANH_CUBIC * x * x)
    return 0.5 * x * (1.0 + gate), dx * (0.5 * (1.0 + gate) + 0.5 * x * gate_slope)


def _gelu_gate(x: Array) -> Array:
    return jnp.tanh(_TANH_SLOPE * (x + _TANH_CUBIC * x * x * x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": gelu_tanh,
    "gelu": gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def feed_forward_specs(
    width: int,
    hidden: int,
    init: Initializer = normal(0.02),
    out_init: Initializer | None = None,
    bias: bool = True,
    gated: bool = False,
) -> dict[str, dict]:
    up = dense_specs({"embed": width}, {"mlp": hidden}, init, bias)
    specs = {"up": up, "down": dense_specs({"mlp": hidden}, {"embed": width}, out_init or init, bias)}
    return specs | {"gate": up} if gated else specs


def feed_forward(
    params: dict,
    x: Float[Array, "batch length width"],
    activation: str,
    ctx: Context,
    dropout_rate: float = 0.0,
) -> Float[Array, "batch length width"]:
    """`down(activation(up(x)))` at each position (Vaswani et al. 2017, eq. 2); where a gate is declared,
    `down(activation(gate(x)) * up(x))` (Shazeer 2020, eq. 6). `dropout_rate` acts on what goes `down`."""
    ctx = ctx.within("mlp")
    names = [name for name in ("up", "gate") if name in params]
    inner = denses([params[name] for name in names], x, "btd,df->btf", ctx)
    hidden, *gate = (tap(value, name, ctx) for name, value in zip(names, inner, strict=True))
    hidden = ACTIVATIONS[activation](*gate) * hidden if gate else ACTIVATIONS[activation](hidden)
    hidden = dropout(tap(hidden, "activation", ctx), dropout_rate, "activation", ctx)
    return tap(dense(params["down"], hidden, "btf,fd->btd", ctx), "out", ctx)


def dropout(x: Float[Array, "batch *rest"], rate: float, name: str, ctx: Context) -> Float[Array, "batch *rest"]:
    """Zero each value with probability `rate` and scale the others by `1 / (1 - rate)` (Srivastava et al. 2014).

    The mask of a row depends on the key, the place's name, the layer, and the row's global number alone, so that it is
    the same wherever the row is computed and no two rows share one. Without a key nothing is dropped.
    """
    if rate == 0.0 or ctx.dropout_key is None:
        return x
    rows = jnp.arange(x.shape[0]) if ctx.rows is None else ctx.rows
    key = ctx.key_for(name)
    kept = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), 1.0 - rate, x.shape[1:]))(rows)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))
