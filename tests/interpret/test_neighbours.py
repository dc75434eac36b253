import numpy as np
import pytest

from flaxllm.decoding import prepare
from flaxllm.errors import InputError
from flaxllm.interpret import nearest_tokens
from interpret.small import VOCAB, model_and_params


@pytest.mark.parametrize("form", [lambda model, params: params, prepare], ids=["plain", "prepared"])
def test_the_nearest_have_the_largest_cosines(form):
    model, params = model_and_params("llama")
    vectors = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    vectors[0, 0] = 0.1 * params["embedding"]["tokens"][17]  # a cosine knows no length
    table = np.asarray(params["embedding"]["tokens"], np.float64)
    cosines = vectors @ table.T / np.linalg.norm(table, axis=-1) / np.linalg.norm(vectors, axis=-1, keepdims=True)
    found = nearest_tokens(model, form(model, params), vectors, k=4)
    np.testing.assert_array_equal(found.tokens, np.argsort(-cosines, -1)[..., :4])
    np.testing.assert_allclose(found.similarities, -np.sort(-cosines, -1)[..., :4], atol=1e-5)
    assert found.tokens[0, 0, 0] == 17
    np.testing.assert_array_equal(nearest_tokens(model, params, np.zeros(16, np.float32), k=2).similarities, 0.0)


def test_other_widths_and_an_odd_k_are_refused():
    model, params = model_and_params("llama")
    with pytest.raises(InputError, match="got vectors of width 15: expected 16"):
        nearest_tokens(model, params, np.zeros((1, 15), np.float32))
    for k in (0, VOCAB + 1):
        with pytest.raises(InputError, match=f"got k={k}: expected 1 to {VOCAB}"):
            nearest_tokens(model, params, np.zeros((1, 16), np.float32), k)
