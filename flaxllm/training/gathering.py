"""What each process of a run knows, known to all of them."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def of_all_processes(own: Any) -> list[Any]:
    """The json-able values of all processes, in their order. Every process calls this."""
    if jax.process_count() == 1:
        return [own]
    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.array(len(text))).max())
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    return [json.loads(row.tobytes()) for row in np.asarray(multihost_utils.process_allgather(padded))]


def whole(x: Any) -> Any:
    """All of an array, wherever its parts are. Every process calls this."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return x
