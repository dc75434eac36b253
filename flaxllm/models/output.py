"""What every model's `apply` returns."""

from flax import struct
from jaxtyping import Array, Float


class Output(struct.PyTreeNode):
    """`hidden`: the final hidden states, an encoder-decoder's being its decoder's. `pooled`: one vector a sequence, where
    the model has a pooler. `logits`: those of a head with few classes, one set a sequence or a token. `encoded`: the
    hidden states of an encoder-decoder's encoder. `taps`: the named values that the context asked for."""

    hidden: Float[Array, "batch length embed"]
    pooled: Float[Array, "batch embed"] | None = None
    logits: Float[Array, "batch *length classes"] | None = None
    encoded: Float[Array, "batch source embed"] | None = None
    taps: dict[str, Array] = struct.field(default_factory=dict)
