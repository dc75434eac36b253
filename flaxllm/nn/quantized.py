"""Weights in few bits. Only the weights are rounded: products are those of floating-point numbers.

A weight is kept as the matrix that it is, outputs first, whatever axes it has; a stack of layers is a stack of matrices.
"""

import math
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float16, Int, Int8, UInt8

from flaxllm.nn.context import Context
from flaxllm.nn.weights import Matrix, matrix_product

GROUP = 32  # inputs that share a step in 4 bits
_BLOCK = 96 * 1024  # weights that a CPU has as floats at a time: they stay in a core's cache


class _Quantized(Matrix):
    """Rows are float32 unless the context says otherwise."""

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(jnp.float32)

    def times(self, x: Float[Array, "row input"], ctx: Context) -> Float[Array, "row output"]:
        """A CPU takes some outputs after others: XLA would write the whole weight out as floats."""
        count, size = math.prod(self.outputs), max(8, _BLOCK // x.shape[-1])
        if jax.default_backend() != "cpu" or count <= size:
            return self.times_at_once(x, ctx)

        def part(start: Array | int, size: int) -> Array:
            cut = jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, start, size), self)
            return cut.times_at_once(x, ctx)

        whole = count - count % size
        blocks = jax.lax.map(lambda start: part(start, size), jnp.arange(0, whole, size))
        y = jnp.einsum("bro->rbo", blocks).reshape(len(x), whole)
        return jnp.concatenate([y, part(whole, count - whole)], axis=-1) if whole < count else y

    def rows(self, ids: Int[Array, "*ids"], ctx: Context) -> Float[Array, "*ids input"]:
        taken = jax.tree.map(lambda part: jnp.take(part, ids, axis=0, mode="fill"), self)  # outside: NaN, from the scale
        return ctx.cast(taken.dequantized())


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class Int8Matrix(_Quantized):
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

    def times_at_once(self, x: Float[Array, "row input"], ctx: Context) -> Float[Array, "row output"]:
        return matrix_product(x, self.values.astype(x.dtype), ctx) * self.scale


@no_type_check
class Int4Matrix(_Quantized):
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

    def times_at_once(self, x: Float[Array, "row input"], ctx: Context) -> Float[Array, "row output"]:
        halves = [half.reshape(len(x), -1) for half in jnp.split(x.reshape(len(x), -1, GROUP), 2, axis=-1)]
        low, step = (part[..., None].astype(jnp.float32) for part in (self.low, self.step))
        return sum(
            matrix_product(half, (low + step * levels).reshape(len(levels), -1).astype(x.dtype), ctx)
            for half, levels in zip(halves, (self.levels & 15, self.levels >> 4))
        )


QUANTIZED = {"int8": Int8Matrix, "int4": Int4Matrix}


def _ratio(values: Array, unit: Array) -> Array:
    return jnp.where(unit == 0, 0, values / jnp.where(unit == 0, 1, unit))
