"""Low-rank adapters: a weight, and beside it the product of two thin matrices that is added to it (Hu et al. 2021)."""

from typing import no_type_check

import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from flaxllm.nn.context import Context
from flaxllm.nn.layers import dropout
from flaxllm.nn.weights import Weight, letters, product, rows

_RANK = "R"  # the rank's axis in equations: those of the models have no capital


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of the arrays
class LowRank(struct.PyTreeNode):
    """`W x + up (down x)` (Hu et al. 2021, section 4.1, eq. 3, its scale already in `up`).

    `base` is W in any form, few bits included (Dettmers et al. 2023, eq. 5). Of a token table, as of every form that is no
    plain array, each row is an output: `up` has a column for each token. `dropout` is the rate on the x that goes `down`,
    for products and not for rows; its mask is told from others' by `name`.
    """

    base: Weight
    down: Float[Array, "*layers_and_inputs rank"]
    up: Float[Array, "*layers_and_rank_and_outputs"]
    name: str = struct.field(pytree_node=False, default="")
    dropout: float = struct.field(pytree_node=False, default=0.0)

    @property
    def dtype(self) -> DTypeLike:
        return self.base.dtype

    def product(self, equation: str, x: Array, ctx: Context, out_dtype: DTypeLike | None) -> Array:
        inputs, kernel, outputs = letters(equation)
        summed, rest = ("".join(axis for axis in kernel if (axis in inputs) == is_input) for is_input in (True, False))
        batch = "".join(axis for axis in inputs if axis not in summed)
        y = product(equation, x, self.base, ctx, out_dtype)
        x = dropout(x, self.dropout, self.name, ctx)
        thin = product(f"{inputs},{summed}{_RANK}->{batch}{_RANK}", x, self.down, ctx)
        return y + product(f"{batch}{_RANK},{_RANK}{rest}->{outputs}", thin, self.up, ctx, out_dtype).astype(y.dtype)

    def rows(self, ids: Int[Array, "*ids"], ctx: Context) -> Float[Array, "*ids width"]:
        table = rows(self.base, ids, ctx)
        thin = ctx.cast(jnp.take(self.up, ids, axis=-1))
        return table + jnp.einsum("r...,dr->...d", thin, ctx.cast(self.down), precision=ctx.precision).astype(table.dtype)
