"""Evaluation over a whole held-out set, each example counted exactly once."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from flaxllm.objectives import Term, add_terms
from flaxllm.parallel import Placement


def evaluate(eval_step: Callable, params: Any, batches: Iterable[dict], placement: Placement) -> dict[str, Term]:
    """Each term's sum and weight over all batches, as floats; to be divided once. Empty where there are no batches."""
    total = None
    for batch in batches:
        terms = eval_step(params, placement.batch(batch))
        total = terms if total is None else add_terms(total, terms)
    terms = {} if total is None else placement.read(total)
    return {name: Term(float(term.sum), float(term.weight)) for name, term in terms.items()}


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """The code length of a text per byte of UTF-8: comparable between tokenizers, which the loss per token is not."""
    return nats / (math.log(2) * text_bytes)
