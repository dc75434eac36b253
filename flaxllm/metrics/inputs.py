"""What every metric needs of what it is given."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from flaxllm.errors import InputError, optional_library


def check_pairs(predictions: Sequence | np.ndarray, references: Sequence | np.ndarray) -> None:
    """Raises InputError unless there are as many predictions as references, and one at least."""
    if len(predictions) != len(references) or not len(references):
        raise InputError(
            f"there are {len(predictions)} predictions for {len(references)} references: expected as many, and one at least"
        )


def library(name: str) -> ModuleType:
    """A library of the extra [eval]."""
    return optional_library(name, "this metric", "'flaxllm[eval]'")
