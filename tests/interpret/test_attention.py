import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm.errors import InputError
from flaxllm.interpret import attention_maps, attention_rollout, head_summaries
from flaxllm.nn import Context, Replacement, Taps
from interpret.small import LENGTH, inputs, model_and_params

LAYERS, HEADS = 3, 2
TOKENS = np.array([[4, 7, 4, 4, 9, 7, 4], [5, 6, 7, 8, 5, 6, 5]])


def weights(causal: bool = True) -> np.ndarray:
    scores = np.exp(2.0 * np.random.default_rng(0).normal(size=(LAYERS, 2, HEADS, 7, 7)))
    scores = np.tril(scores) if causal else scores
    return scores / scores.sum(-1, keepdims=True)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_rollout_is_the_product_of_the_layers():
    given = weights()
    given[1, 0, :, 2] = 0.0  # a query that sees nothing keeps what it has
    rollout = attention_rollout(given.astype(np.float32))
    for row in range(2):
        below = np.eye(7)
        for layer in range(LAYERS):
            mixing = (given[layer, row].mean(0) + np.eye(7)) / 2
            mixing[2] = np.eye(7)[2] if (layer, row) == (1, 0) else mixing[2]
            below = mixing @ below
            assert_close(rollout[layer, row], below)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_heads_are_summed_up_over_all_valid_queries(causal, padding):
    given = weights(causal)
    valid = np.ones((2, 7), bool)
    if padding:
        valid[1, slice(0, 3) if padding == "left" else slice(4, 7)] = False
    given = np.where(valid[:, None, None, :], given, 0.0)  # padding is no key
    found = head_summaries(given.astype(np.float32), TOKENS, None if padding is None else valid)
    for layer in range(LAYERS):
        for head in range(HEADS):
            entropy, distance, previous, induction = [], [], [], []
            for row, q in np.argwhere(valid):
                w = given[layer, row, head, q]
                entropy.append(-sum(p * np.log(p) for p in w if p > 0))
                distance.append(sum(p * abs(q - k) for k, p in enumerate(w)))
                if q > 0 and valid[row, q - 1]:
                    previous.append(w[q - 1])
                earlier = [k for k in range(q) if valid[row, k] and TOKENS[row, k] == TOKENS[row, q]]
                if earlier:
                    induction.append(sum(w[k + 1] for k in earlier))
            expected = [np.mean(values) for values in (entropy, distance, previous, induction)]
            assert_close([summary[layer, head] for summary in found], expected)


def test_what_no_query_shows_is_not_a_number():
    found = head_summaries(weights(), np.arange(14).reshape(2, 7))
    assert np.isnan(found.induction).all() and np.isfinite(found.previous_token).all()
    assert head_summaries(weights()).induction is None


def test_weights_of_cross_attention_are_refused():
    for function in (attention_rollout, head_summaries):
        with pytest.raises(InputError, match="from 7 queries to 6 keys: expected those of self-attention"):
            function(weights()[..., :6])


def test_maps_show_what_the_context_changes():
    model, params = model_and_params("gpt")
    scores = Replacement(jnp.zeros((2, 1, 1, 1, 1)), jnp.array([False, True]).reshape(2, 1, 1, 1, 1))
    ctx = Context(taps=Taps(replaced={"layers/attention/scores": scores}))
    plain, changed = (attention_maps(model, params, **inputs("gpt"), ctx=each)["decoder"] for each in (Context(), ctx))
    np.testing.assert_array_equal(changed[0], plain[0])
    assert_close(changed[1, 0, 0], np.tril(np.ones((LENGTH, LENGTH))) / np.arange(1, LENGTH + 1)[:, None])


def test_a_target_for_a_model_of_one_text_is_refused():
    model, params = model_and_params("gpt")
    tokens = inputs("gpt")["tokens"]
    with pytest.raises(InputError, match="a gpt model reads one text and no target: leave decoder_tokens and decoder_valid out"):
        attention_maps(model, params, tokens, tokens, decoder_valid=tokens > 0)
