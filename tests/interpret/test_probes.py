import numpy as np
import pytest

from flaxllm import errors
from flaxllm.errors import InputError
from flaxllm.interpret import linear_probes

RNG = np.random.default_rng(0)
LABELS = np.array(["noun", "verb", "noun"])[np.arange(120) % 3]


def activations() -> np.ndarray:
    """Of three layers: the first holds the label on a scale of its own, the second noise, the third an exclusive or."""
    noise = RNG.normal(size=(3, 120, 4))
    noise[0, :, 2] = 1e4 + 1e-2 * (LABELS == "verb") + 1e-4 * noise[0, :, 2]
    noise[2, :, 0] = np.sign(noise[2, :, 1]) * np.where(LABELS == "verb", 1, -1)
    return noise


def test_a_layer_is_judged_by_what_is_linear_in_it():
    found = linear_probes(activations(), LABELS)
    assert found.accuracy.shape == (3,)
    assert found.accuracy[0] == 1.0
    assert (found.accuracy[1:] < 0.85).all()


def test_what_is_judged_was_not_trained_on():
    """A probe as wide as the examples knows all that it was trained on; on others it guesses."""
    noise, labels = RNG.normal(size=(1, 200, 300)), RNG.integers(0, 2, 200)
    test = np.arange(200) < 100
    assert linear_probes(noise, labels, test).accuracy[0] < 0.7
    mirrored = np.where(test, 1 - labels, labels)  # right on one side is wrong on the other
    both = np.stack([labels - 0.5, noise[0, :, 0]], -1)[None]
    assert linear_probes(both, mirrored, test).accuracy[0] < 0.2


def test_the_majority_is_the_training_sides():
    labels = np.repeat([0, 1, 1, 0], [30, 10, 20, 5])
    test = np.arange(65) >= 40
    found = linear_probes(RNG.normal(size=(1, 65, 2)), labels, test)
    assert found.majority == pytest.approx(5 / 25)


def test_the_seed_draws_the_sides():
    noise = RNG.normal(size=(4, 60, 3))
    labels = RNG.integers(0, 2, 60)
    first, again, other = (linear_probes(noise, labels, train_fraction=0.5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.accuracy, again.accuracy)
    assert not np.array_equal(first.accuracy, other.accuracy)
    assert set(np.round(first.accuracy * 30, 9) % 1) == {0.0}  # of thirty examples


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((np.zeros((1, 5, 2)), [0, 1, 0, 1]), r"activations of shape \(1, 5, 2\) and labels of \(4,\): expected \[layers"),
        ((np.zeros((1, 5, 2)), np.arange(5), np.zeros(5, bool)), "has 0 of 5 examples to test on"),
        ((np.zeros((1, 5, 2)), np.arange(5), np.ones(5, bool)), "has 5 of 5 examples to test on"),
        ((np.zeros((1, 5, 2)), np.zeros(5)), "trains on one class only, 0.0"),
    ],
)
def test_what_teaches_nothing_is_refused(args, message):
    with pytest.raises(InputError, match=message):
        linear_probes(*args)


def test_without_scikit_learn_one_sentence_says_what_to_install(monkeypatch):
    def missing(name: str):
        raise ImportError(name=name)

    monkeypatch.setattr(errors.importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"a linear probe needs sklearn, which is not installed: pip install 'flaxllm\[eval\]'"):
        linear_probes(activations(), LABELS)
