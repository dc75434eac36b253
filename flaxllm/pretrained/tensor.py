"""A tensor of a checkpoint, before it is read: what every reader of a file format gives and every writer takes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """What a file says of one tensor, and how to get it.

    `dtype` is numpy's or ml_dtypes' own. `file` is where it comes from (or goes to), for messages. `read()` gives the
    whole tensor as a fresh, writable array that the caller owns; it raises InputError where the file fails it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    read: Callable[[], np.ndarray]
