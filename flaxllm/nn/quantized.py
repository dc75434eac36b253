"""Weights in few bits. Only the weights are rounded: products are those of floating-point numbers.

A weight is kept as the matrix that it is, outputs first, whatever axes it has; a stack of layers is a stack of matrices.
"""

import math
from collections.abc import Callable
from typing import no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float16, Int, Int8, UInt8

from flaxllm.nn.context import Context
from flaxllm.nn.weights import letters

GROUP = 32  # inputs that share a step in 4 bits
_FEW_ROWS = 64  # up to so many, a CPU multiplies them in one pass over the integers


class _Matrix(struct.PyTreeNode):
    """`outputs` are the sizes of the output axes in equations. Rows are float32 unless the context says otherwise."""

    outputs: tuple[int, ...] = struct.field(pytree_node=False)

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(jnp.float32)

    def product(self, equation: str, x: Array, ctx: Context, out_dtype: DTypeLike | None) -> Array:
        inputs, kernel, result = letters(equation)
        summed = "".join(axis for axis in kernel if axis in inputs)
        batch = inputs.removesuffix(summed)
        if inputs != batch + summed or result != batch + "".join(axis for axis in kernel if axis not in inputs):
            raise ValueError(f"a quantized weight needs its axes last and in its own order in inputs and outputs, not {equation}")
        sizes, width = x.shape[: x.ndim - len(summed)], math.prod(x.shape[x.ndim - len(summed) :])
        y = self.times(x.reshape(math.prod(sizes), width), ctx)
        return y.reshape(*sizes, *self.outputs).astype(out_dtype or x.dtype)

    def rows(self, ids: Int[Array, "*ids"], ctx: Context) -> Float[Array, "*ids input"]:
        taken = jax.tree.map(lambda part: jnp.take(part, ids, axis=0, mode="fill"), self)  # outside: NaN, from the scale
        return ctx.cast(taken.dequantized())


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class Int8Matrix(_Matrix):
    """`scale * values`, with a scale for each output and values from -127 to 127 (Jacob et al. 2018, eq. 1, symmetric).

    A weight is off by half a scale at most: 1/254 of its output's largest weight.
    """

    values: Int8[Array, "*layers output input"]
    scale: Float[Array, "*layers output"]

    @classmethod
    def of(cls, matrix: Float[Array, "*layers output input"], outputs: tuple[int, ...]) -> "Int8Matrix":
        matrix = matrix.astype(jnp.float32)
        scale = jnp.abs(matrix).max(-1) / 127
        return cls(outputs, jnp.round(_ratio(matrix, scale[..., None])).astype(jnp.int8), scale)

    def dequantized(self) -> Float[Array, "*layers output input"]:
        return self.values * self.scale[..., None]

    def times(self, x: Float[Array, "row input"], ctx: Context) -> Float[Array, "row output"]:
        if _in_one_pass(x):
            return _one_pass(lambda x: (x * self.values.astype(x.dtype)).sum(-1), x) * self.scale
        return _dot(x, self.values, ctx) * self.scale


@no_type_check
class Int4Matrix(_Matrix):
    """`low + step * level`, with a low and a step for each group of 32 inputs and levels from 0 to 15: 5 bits a weight. It
    is the Q4_1 of llama.cpp, and keeps the values of tensors that were read from it.

    A weight is off by half a step at most, and by the rounding of low and step. A byte holds the levels of inputs `i` (its
    lower half) and `i + 16` of a group.
    """

    levels: UInt8[Array, "*layers output group pair"]
    low: Float16[Array, "*layers output group"]
    step: Float16[Array, "*layers output group"]

    @classmethod
    def of(cls, matrix: Float[Array, "*layers output input"], outputs: tuple[int, ...]) -> "Int4Matrix":
        groups = matrix.astype(jnp.float32).reshape(*matrix.shape[:-1], -1, GROUP)
        low = groups.min(-1).astype(jnp.float16)
        step = ((groups.max(-1) - low) / 15).astype(jnp.float16)
        levels = jnp.round(_ratio(groups - low[..., None], step[..., None].astype(jnp.float32)))
        first, second = jnp.split(levels.clip(0, 15).astype(jnp.uint8), 2, axis=-1)
        return cls(outputs, first | second << 4, low, step)

    def dequantized(self) -> Float[Array, "*layers output input"]:
        levels = jnp.concatenate([self.levels & 15, self.levels >> 4], -1)
        low, step = (part[..., None].astype(jnp.float32) for part in (self.low, self.step))
        return (low + step * levels).reshape(*levels.shape[:-2], -1)

    def times(self, x: Float[Array, "row input"], ctx: Context) -> Float[Array, "row output"]:
        if not _in_one_pass(x):
            return _dot(x, self.dequantized(), ctx)
        halves = x.reshape(len(x), -1, 2, GROUP // 2)
        lows = jnp.einsum("rg,og->ro", halves.sum((-1, -2)), self.low.astype(x.dtype), precision=ctx.precision)
        return lows + _one_pass(self._levels_product, halves)

    def _levels_product(self, halves: Array) -> Array:
        first, second = (self.levels & 15).astype(halves.dtype), (self.levels >> 4).astype(halves.dtype)
        sums = (halves[..., 0, :] * first + halves[..., 1, :] * second).sum(-1)
        return (sums * self.step.astype(halves.dtype)).sum(-1)


QUANTIZED = {"int8": Int8Matrix, "int4": Int4Matrix}


def _ratio(values: Array, unit: Array) -> Array:
    return jnp.where(unit == 0, 0, values / jnp.where(unit == 0, 1, unit))


def _in_one_pass(x: Array) -> bool:
    return len(x) <= _FEW_ROWS and x.dtype == jnp.float32 and jax.default_backend() == "cpu"


def _one_pass(multiplied: Callable[[Array], Array], x: Array) -> Array:
    """`multiplied` for each row of `x`, in a form that XLA on CPU fuses with the conversion of the integers: before a dot it
    would write them out as floats. A batch of one row would not be fused either."""
    return multiplied(x[0])[None] if len(x) == 1 else multiplied(x[:, None])


def _dot(x: Array, matrix: Array, ctx: Context) -> Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum("ri,oi->ro", x, matrix.astype(x.dtype), precision=ctx.precision, preferred_element_type=wide)
