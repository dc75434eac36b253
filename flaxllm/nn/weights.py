"""Weights in the forms that they are kept in. A plain array is one; what decoding reads fastest is another.

`nn.dense`, `nn.embed` and `nn.unembed` take any of them; the others are made of plain parameters by `flaxllm.decoding`.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol, no_type_check, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from flaxllm.nn.context import Context

FEW_ROWS = 128  # up to so many, a matrix is the left one of a product


@runtime_checkable
class Kept(Protocol):
    """A form that is no array; lookup tables also have `rows(ids, ctx)`."""

    def product(self, equation: str, x: Array, ctx: Context, out_dtype: DTypeLike | None) -> Array: ...


Weight = Array | Kept


class Matrix(struct.PyTreeNode):
    """A kernel (or a token table) as the matrix that it is, outputs first, whatever axes it has: what goes into one output
    lies side by side. `outputs` are the sizes of its output axes in equations."""

    outputs: tuple[int, ...] = struct.field(pytree_node=False)

    def product(self, equation: str, x: Array, ctx: Context, out_dtype: DTypeLike | None) -> Array:
        inputs, kernel, result = letters(equation)
        summed = "".join(axis for axis in kernel if axis in inputs)
        batch = inputs.removesuffix(summed)
        if inputs != batch + summed or result != batch + "".join(axis for axis in kernel if axis not in inputs):
            raise ValueError(f"a matrix needs its axes last in inputs and outputs, and in its own order, not {equation}")
        sizes, width = x.shape[: x.ndim - len(summed)], math.prod(x.shape[x.ndim - len(summed) :])
        y = self.times(x.reshape(math.prod(sizes), width), ctx)
        return y.reshape(*sizes, *self.outputs).astype(out_dtype or x.dtype)


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of the array
class OutputsFirst(Matrix):
    """A plain matrix, in the order that a CPU reads fastest for few vectors."""

    matrix: Float[Array, "output input"]

    @property
    def dtype(self) -> DTypeLike:
        return self.matrix.dtype

    def times(self, x: Float[Array, "row input"], ctx: Context) -> Float[Array, "row output"]:
        return matrix_product(x, ctx.cast(self.matrix), ctx)

    def rows(self, ids: Int[Array, "*ids"], ctx: Context) -> Float[Array, "*ids input"]:
        return rows(self.matrix, ids, ctx)


class Joined(struct.PyTreeNode):
    """Several matrices of one input as a single one, whose product takes less time than theirs. It is kept in place of the
    first, and None in place of the others. `outputs` are the sizes of the output axes of each."""

    outputs: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)
    whole: Matrix

    @classmethod
    def of(cls, matrices: Sequence[Matrix]) -> "Joined":
        """Of matrices of one form and one number of inputs."""
        outputs = tuple(matrix.outputs for matrix in matrices)
        flat = [matrix.replace(outputs=(sum(map(math.prod, outputs)),)) for matrix in matrices]
        return cls(outputs, jax.tree.map(lambda *parts: jnp.concatenate(parts), *flat))

    def products(self, equation: str, x: Array, ctx: Context) -> list[Array]:
        *ends, _ = accumulate(map(math.prod, self.outputs))
        parts = jnp.split(self.whole.product(equation, x, ctx, None), ends, axis=-1)
        return [part.reshape(*part.shape[:-1], *sizes) for part, sizes in zip(parts, self.outputs, strict=True)]


def matrix_product(
    x: Float[Array, "row input"], matrix: Float[Array, "output input"], ctx: Context
) -> Float[Array, "row output"]:
    """Each row's product with the matrix, in float32 at least.

    With the matrix on the left XLA on CPU takes two thirds of the time for 2 to 32 rows, and a fifth more for 512. It would
    turn the product round again to spare the transpose of a small result, if it saw it.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if len(x) > FEW_ROWS:
        return jnp.einsum("ri,oi->ro", x, matrix, precision=ctx.precision, preferred_element_type=wide)
    y = jnp.einsum("oi,ri->or", matrix, x, precision=ctx.precision, preferred_element_type=wide)
    return jnp.einsum("or->ro", jax.lax.optimization_barrier(y))


def product(
    equation: str, x: Float[Array, "..."], weight: Weight, ctx: Context, out_dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
    """`einsum(equation, x, weight)`, whatever form the weight is kept in; `equation` is that of the plain array."""
    if isinstance(weight, Kept):
        return weight.product(equation, x, ctx, out_dtype)
    return jnp.einsum(equation, x, ctx.cast(weight), precision=ctx.precision, preferred_element_type=out_dtype)


def products(
    equation: str, x: Float[Array, "..."], weights: Sequence[Weight | Joined | None], ctx: Context
) -> list[Float[Array, "..."]]:
    """`product` of `x` with each weight, whose equations are alike; at once where the weights are joined."""
    if isinstance(weights[0], Joined):
        return weights[0].products(equation, x, ctx)
    return [product(equation, x, weight, ctx) for weight in weights]


def rows(table: Weight, ids: Int[Array, "*ids"], ctx: Context) -> Float[Array, "*ids width"]:
    """Rows of a lookup table. An id outside of it gives NaN, so that a wrong vocabulary cannot pass for a right one."""
    if isinstance(table, Kept):
        return table.rows(ids, ctx)
    return ctx.cast(jnp.take(table, ids, axis=0, mode="fill"))


def letters(equation: str) -> tuple[str, str, str]:
    """The axes of the inputs, of the kernel and of the outputs, as an einsum's equation has them."""
    operands, outputs = equation.split("->")
    inputs, kernel = operands.split(",")
    return inputs, kernel, outputs
