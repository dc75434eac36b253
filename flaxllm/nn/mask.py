"""What a query may see, described rather than drawn."""

from collections.abc import Callable
from functools import reduce
from typing import no_type_check

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from flaxllm.errors import InputError

# Where the maximum over a query's scores starts: finite, so that exp(-inf - maximum) is 0 and not NaN.
LEAST_SCORE = -1e30


@no_type_check  # jax rebuilds a pytree around placeholders too, in place of these arrays
class Mask(struct.PyTreeNode):
    """A description of the visible keys of each query; each part given narrows what is seen.

    `causal`: keys at positions up to the query's. `window`: with `causal`, the last `window` positions up to
    and including the query's own; without, those less than `window` away to either side. Positions are
    explicit, so that a query at position 7 sees keys 0 to 7 whatever the array shapes are; left out, they
    count from 0, which is only accepted where queries and keys are equally many. Segments: a query sees keys
    of its own segment only (packed documents). `key_valid`: False hides a key (padding). A query that may see
    nothing has output 0.
    """

    causal: bool = struct.field(pytree_node=False, default=False)
    window: int | None = struct.field(pytree_node=False, default=None)
    query_positions: Int[Array, "#batch q_len"] | None = None
    key_positions: Int[Array, "#batch k_len"] | None = None
    query_segments: Int[Array, "#batch q_len"] | None = None
    key_segments: Int[Array, "#batch k_len"] | None = None
    key_valid: Bool[Array, "#batch k_len"] | None = None

    @property
    def orders(self) -> bool:
        """Positions matter."""
        return self.causal or self.window is not None

    def map(self, of_queries: Callable[[Array], Array], of_keys: Callable[[Array], Array]) -> "Mask":
        """The same rules over other arrays: those of the queries and those of the keys, each changed."""
        functions = dict.fromkeys(QUERY_ARRAYS, of_queries) | dict.fromkeys(KEY_ARRAYS, of_keys)
        given = {name: getattr(self, name) for name in functions if getattr(self, name) is not None}
        return self.replace(**{name: functions[name](array) for name, array in given.items()})


QUERY_ARRAYS = ("query_positions", "query_segments")
KEY_ARRAYS = ("key_positions", "key_segments", "key_valid")


def check_mask(mask: Mask, batch: int, q_len: int, k_len: int) -> None:
    """Raise InputError where the description does not say who sees whom."""
    if (mask.query_segments is None) != (mask.key_segments is None):
        raise InputError("the attention mask has segments for only one of queries and keys: give both")
    if (mask.query_positions is None) != (mask.key_positions is None):
        raise InputError("the attention mask has positions for only one of queries and keys: give both")
    if mask.orders and mask.query_positions is None and q_len != k_len:
        raise InputError(
            f"a causal or windowed mask over {q_len} queries and {k_len} keys needs query_positions and "
            "key_positions: where the two differ in number, the shapes do not say which query stands where"
        )
    if mask.window is not None and mask.window < 1:
        raise InputError(f"an attention window of {mask.window} shows nothing: use 1 or more, or None")
    for name, length in (dict.fromkeys(QUERY_ARRAYS, q_len) | dict.fromkeys(KEY_ARRAYS, k_len)).items():
        array = getattr(mask, name)
        if array is not None and array.shape not in ((1, length), (batch, length)):
            raise InputError(
                f"the attention mask has {name} of shape {array.shape}: expected {(batch, length)}, or "
                f"{(1, length)} for all rows alike"
            )


def with_positions(mask: Mask, q_len: int, k_len: int) -> Mask:
    """The same mask with its positions written out, if it needs any."""
    if not mask.orders or mask.query_positions is not None:
        return mask
    return mask.replace(query_positions=jnp.arange(q_len)[None], key_positions=jnp.arange(k_len)[None])


def dense_mask(mask: Mask, q_len: int, k_len: int) -> Bool[Array, "#batch q_len k_len"] | None:
    """The mask drawn: True where the query (row) sees the key (column); None if everything is seen."""
    mask = with_positions(mask, q_len, k_len)
    parts = []
    if mask.orders:
        distance = mask.query_positions[:, :, None] - mask.key_positions[:, None, :]
        if mask.causal:
            parts.append(distance >= 0)
        if mask.window is not None:
            parts.append((distance if mask.causal else jnp.abs(distance)) < mask.window)
    if mask.query_segments is not None:
        parts.append(mask.query_segments[:, :, None] == mask.key_segments[:, None, :])
    if mask.key_valid is not None:
        parts.append(mask.key_valid[:, None, :] & jnp.ones((q_len, 1), bool))
    return reduce(jnp.logical_and, parts) if parts else None


def shows_anything(mask: Mask) -> Bool[Array, ""]:
    """Whether some query may see some key, judged by the ranges of their positions (given) and segments.

    False is certain, True is not: it serves to leave out the blocks of a large mask that show nothing.
    """
    shown = jnp.ones((1,), bool)
    if mask.orders:
        queries, keys = mask.query_positions, mask.key_positions
        least, most = queries.min(-1) - keys.max(-1), queries.max(-1) - keys.min(-1)  # of all their distances
        if mask.causal:
            shown &= most >= 0
        if mask.window is not None:
            shown &= least < mask.window
            if not mask.causal:
                shown &= most > -mask.window
    if mask.query_segments is not None:
        queries, keys = mask.query_segments, mask.key_segments
        shown &= (queries.min(-1) <= keys.max(-1)) & (keys.min(-1) <= queries.max(-1))
    if mask.key_valid is not None:
        shown &= mask.key_valid.any(-1)
    return shown.any()
