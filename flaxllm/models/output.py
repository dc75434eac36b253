"""What every model's `apply` returns."""

from flax import struct
from jaxtyping import Array, Float


class Output(struct.PyTreeNode):
    """`hidden`: the final hidden states. `taps`: the named values that the context asked for."""

    hidden: Float[Array, "batch length embed"]
    taps: dict[str, Array] = struct.field(default_factory=dict)
