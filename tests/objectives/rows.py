"""What the tests of the objectives on text share: documents, and their examples in rows, packed or one a row."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from scipy.special import log_softmax

from flaxllm.data import Documents, eval_batches
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives import Objective

Found = tuple[dict[str, tuple[float, float]], dict]


def parameters(model: Model) -> dict:
    """Parameters that are large enough for each to show."""
    return jax.tree.map(lambda x: 2 * np.asarray(x), jax.jit(model.init)(jax.random.PRNGKey(0)))


def documents_of(texts: Sequence[Sequence[int]]) -> Documents:
    """A corpus of these documents' tokens."""
    stops = np.cumsum([len(text) for text in texts], dtype=np.int64)
    spans = np.stack([stops - [len(text) for text in texts], stops], axis=1).astype(np.int64)
    return Documents(np.concatenate([np.asarray(text, np.uint16) for text in texts]), spans, 0)


def batch_of(objective: Objective, items: Sequence, rows: int, pack: bool) -> dict[str, np.ndarray]:
    """All items in one batch; an item's example is the same whether packed or not."""
    layout = dict(batch_size=rows, seed=0, rows=(0, rows))
    (batch,) = eval_batches(items, objective.example, objective.empty_row, pack=pack, **layout)
    return batch


def compiled(objective: Objective, gradient: bool = True) -> Callable[[dict, dict], Found]:
    """The function of parameters and a batch that gives each term's sum and weight and, unless that is not asked for, the
    gradient of the sum of those that are minimised."""

    def total(params: dict, batch: dict) -> tuple:
        terms = objective.terms(params, batch, Context())
        return sum(terms[name].sum for name in objective.weights(batch)), terms

    program = jax.jit(jax.grad(total, has_aux=True) if gradient else lambda *given: ({}, total(*given)[1]))

    def run(params: dict, batch: dict[str, np.ndarray]) -> Found:
        of_params, terms = program(params, batch)
        return {name: (float(term.sum), float(term.weight)) for name, term in terms.items()}, of_params

    return run


def assert_same(found: Found, expected: Found) -> None:
    """Terms and gradients are the same up to rounding."""
    assert found[0].keys() == expected[0].keys()
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], expected[0][name], rtol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1.0, float(np.abs(b).max())))


def negative_log_likelihood(logits, targets: np.ndarray) -> np.ndarray:
    """In float64, of each target."""
    return -np.take_along_axis(log_softmax(np.asarray(logits, np.float64), -1), targets[..., None].astype(int), -1)[..., 0]
