"""A function of a batch, worked out part after part."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flaxllm.errors import InputError


def map_parts(function: Callable[[Any], Any], arrays: Any, rows_at_a_time: int) -> Any:
    """`function(arrays)`, computed for `rows_at_a_time` rows, then the next, and so on to what is left.

    `arrays` is any tree of arrays with one leading axis `batch`, and `function` gives such a tree, each of its rows a function
    of the same row of `arrays` alone. What one layer computes is then as large as the part, not as the batch. On a CPU this is
    faster where a part's arrays stay in its cache (for an encoder, about a thousand tokens) and a batch's would be written to
    memory and read back; on any device it bounds the memory. The parts run in a `lax.map`, compiled once, and the rows left
    over after the whole parts by themselves.

    Raises:
      InputError: less than one row at a time, or arrays without one common leading axis, given or returned.
    """
    if rows_at_a_time < 1:
        raise InputError(f"map_parts got rows_at_a_time={rows_at_a_time}: expected 1 or more")
    batch = _num_rows(arrays, "arrays")
    whole = batch - batch % rows_at_a_time

    def checked(part: Any) -> Any:
        out = function(part)
        given, returned = _num_rows(part, "arrays"), _num_rows(out, "results")
        if returned != given:
            raise InputError(f"map_parts got {returned} rows from its function for {given}: expected as many")
        return out

    if batch <= rows_at_a_time:
        return checked(arrays)
    parts = jax.tree.map(lambda x: x[:whole].reshape(-1, rows_at_a_time, *x.shape[1:]), arrays)
    out = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), jax.lax.map(checked, parts))
    if whole == batch:
        return out
    rest = checked(jax.tree.map(lambda x: x[whole:], arrays))
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), out, rest)


def _num_rows(arrays: Any, what: str) -> int:
    shapes = [x.shape for x in jax.tree.leaves(arrays)]
    rows = {shape[:1] for shape in shapes}
    if len(rows) != 1 or rows == {()}:
        shown = ", ".join(map(str, shapes)) or "none"
        raise InputError(f"map_parts got {what} of shapes {shown}: expected arrays with one common leading axis")
    return rows.pop()[0]
