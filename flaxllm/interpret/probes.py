"""Linear probes: what can be read off each layer by a linear map."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from flaxllm.errors import InputError, optional_library


class Probes(NamedTuple):
    """The share of the test examples that each layer's probe gets right, and that of the class most common in training."""

    accuracy: Float[np.ndarray, "layers"]
    majority: float


def linear_probes(
    activations: Float[Array | np.ndarray, "layers examples width"],
    labels: Shaped[np.ndarray, "examples"] | Int[Array, "examples"] | list,
    test: Bool[np.ndarray, "examples"] | None = None,
    *,
    train_fraction: float = 0.8,
    seed: int = 0,
    strength: float = 1.0,
    max_steps: int = 1000,
) -> Probes:
    """A logistic regression on each layer's activations, judged on examples that it was not trained on (Alain and Bengio 2017,
    section 3). Features are standardised by the training examples; `strength` is the inverse of the L2 penalty (C).

    `test` marks the examples to be judged on; without it a share `train_fraction`, drawn with `seed`, is trained on. Examples
    that are alike, such as tokens of one text, should stand on one side: then give `test`.

    Raises:
      InputError: scikit-learn is not installed, shapes that do not fit, no example on one side, or training on one class.
    """
    sklearn = optional_library("sklearn.linear_model", "a linear probe", "'flaxllm[eval]'")
    preprocessing = optional_library("sklearn.preprocessing", "a linear probe", "'flaxllm[eval]'")
    activations, labels = np.asarray(activations, np.float32), np.asarray(labels)
    if activations.ndim != 3 or labels.shape != activations.shape[1:2]:
        raise InputError(
            f"linear_probes got activations of shape {activations.shape} and labels of {labels.shape}: expected "
            "[layers, examples, width] and [examples]"
        )
    test = _drawn(len(labels), train_fraction, seed) if test is None else np.asarray(test, bool)
    if test.shape != labels.shape or test.all() or not test.any():
        raise InputError(f"linear_probes has {test.sum()} of {len(labels)} examples to test on: leave some for each side")
    classes, counts = np.unique(labels[~test], return_counts=True)
    if len(classes) < 2:
        raise InputError(f"linear_probes trains on one class only, {classes[0]}: give examples of two at least")
    accuracy = []
    for layer in activations:
        scaler = preprocessing.StandardScaler().fit(layer[~test])
        probe = sklearn.LogisticRegression(C=strength, max_iter=max_steps, random_state=seed)
        probe.fit(scaler.transform(layer[~test]), labels[~test])
        accuracy.append(probe.score(scaler.transform(layer[test]), labels[test]))
    return Probes(np.array(accuracy), float((labels[test] == classes[counts.argmax()]).mean()))


def _drawn(count: int, train_fraction: float, seed: int) -> Bool[np.ndarray, "examples"]:
    order = np.random.default_rng(seed).permutation(count)
    test = np.ones(count, bool)
    test[order[: round(train_fraction * count)]] = False
    return test
