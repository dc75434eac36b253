"""Weights in the forms that they are kept in. A plain array is one; what decoding reads fastest is another.

`nn.dense`, `nn.embed` and `nn.unembed` take any of them; the others are made of plain parameters by `flaxllm.decoding`.
"""

from typing import Protocol, no_type_check, runtime_checkable

import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from flaxllm.nn.context import Context


@runtime_checkable
class Kept(Protocol):
    """A form that is no array; lookup tables also have `rows(ids, ctx)`."""

    def product(self, equation: str, x: Array, ctx: Context, out_dtype: DTypeLike | None) -> Array: ...


Weight = Array | Kept


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of the array
class OutputsFirst(struct.PyTreeNode):
    """A kernel with its output axes first: what goes into one output lies side by side, as a product with few vectors
    reads it fastest on a CPU."""

    array: Float[Array, "*outputs_then_inputs"]

    def product(self, equation: str, x: Array, ctx: Context, out_dtype: DTypeLike | None) -> Array:
        inputs, kernel, outputs = letters(equation)
        turned = outputs_first(kernel, inputs)
        return jnp.einsum(
            f"{inputs},{turned}->{outputs}", x, ctx.cast(self.array), precision=ctx.precision,
            preferred_element_type=out_dtype,
        )  # fmt: skip


def product(
    equation: str, x: Float[Array, "..."], weight: Weight, ctx: Context, out_dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
    """`einsum(equation, x, weight)`, whatever form the weight is kept in; `equation` is that of the plain array."""
    if isinstance(weight, Kept):
        return weight.product(equation, x, ctx, out_dtype)
    return jnp.einsum(equation, x, ctx.cast(weight), precision=ctx.precision, preferred_element_type=out_dtype)


def rows(table: Weight, ids: Int[Array, "*ids"], ctx: Context) -> Float[Array, "*ids width"]:
    """Rows of a lookup table. An id outside of it gives NaN, so that a wrong vocabulary cannot pass for a right one."""
    if isinstance(table, Kept):
        return table.rows(ids, ctx)
    return ctx.cast(jnp.take(table, ids, axis=0, mode="fill"))


def outputs_first(kernel: str, inputs: str) -> str:
    """The letters of a kernel's axes with those that are summed over, which `inputs` has too, last."""
    return "".join(a for a in kernel if a not in inputs) + "".join(a for a in kernel if a in inputs)


def letters(equation: str) -> tuple[str, str, str]:
    """The axes of the inputs, of the kernel and of the outputs, as an einsum's equation has them."""
    operands, outputs = equation.split("->")
    inputs, kernel = operands.split(",")
    return inputs, kernel, outputs
