import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.interpret import lens, logit_lens
from flaxllm.interpret.forward import forward
from flaxllm.models import Model
from interpret.small import MODELS, PAIRS, VOCAB, in_float64, inputs, layer_norm, model_and_params, parameters, rms_norm, stack

ERF = np.vectorize(math.erf)


def logits_by_hand(model: Model, params: dict, x: np.ndarray) -> np.ndarray:
    """From the residual stream after any layer to logits, in float64, from the papers' formulas."""
    config, table = model.config, params["embedding"]["tokens"]
    if model.family == "gpt":
        return layer_norm(params["final_norm"], x, config.norm_eps) @ table.T
    if model.family == "llama":
        return rms_norm(params["final_norm"], x, config.norm_eps) @ params["head"]["table"].T
    if model.family == "t5":
        return rms_norm(params["decoder"]["final_norm"], x, config.norm_eps) @ table.T / math.sqrt(config.d_model)
    if model.family == "transformer":
        return x @ table.T + params["head"]["bias"]
    head = params["head"]
    inner = x @ head["transform"]["kernel"] + head["transform"]["bias"]
    inner = layer_norm(head["norm"], inner * (1 + ERF(inner / math.sqrt(2))) / 2, config.norm_eps)
    return inner @ table.T + head["vocabulary"]["bias"]


@pytest.mark.parametrize("name", MODELS)
def test_each_depth_is_read_as_the_last(name):
    model, params = model_and_params(name)
    names = (f"{stack(name)}embedding", f"{stack(name)}layers/out")
    output = forward(model, params, inputs(name), nn.Context(taps=nn.Taps(returned=names)))
    embedded, after = (output.taps[name] for name in names)
    found = logit_lens(model, params, **inputs(name), k=3)
    depths = np.concatenate([embedded[None], after]).astype(np.float64)
    assert found.tokens.shape == (1 + len(after), *after.shape[1:3], 3)
    logits = logits_by_hand(model, in_float64(params), depths)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    best = np.argsort(-probabilities, -1)[..., :3]
    np.testing.assert_array_equal(found.tokens, best)
    np.testing.assert_allclose(found.probabilities, np.take_along_axis(probabilities, best, -1), atol=1e-5)
    np.testing.assert_allclose(found.entropy, -(probabilities * np.log(probabilities)).sum(-1), atol=1e-5)
    own = jax.nn.softmax(model.unembed(params, output.hidden))
    np.testing.assert_allclose(found.probabilities[-1], jax.lax.top_k(own, 3)[0], atol=1e-6)


@pytest.mark.parametrize("name", ["gpt", "t5", "bert"])
def test_what_comes_next_is_known_within_a_text(name):
    model, params = model_and_params(name)
    given = inputs(name)
    read, prefix = (given["decoder_tokens"], "decoder_") if name in PAIRS else (given["tokens"], "")
    valid = np.ones(read.shape, bool)
    valid[0, 3:], valid[1, :2] = False, False
    for padding in ({}, {f"{prefix}valid": valid}):
        known = valid if padding else np.ones(read.shape, bool)
        actual = logit_lens(model, params, **given, **padding).actual
        for row, place in np.ndindex(read.shape):
            follows = place + 1 < read.shape[1] and known[row, place] and known[row, place + 1]
            expected = read[row, place] if name == "bert" else read[row, place + 1] if follows else -1
            assert actual[row, place] == expected


def test_the_logits_of_one_depth_are_held_at_a_time():
    model, params = model_and_params("gpt")
    rows, length, width = 2, 5, 16
    embedded, after = jnp.zeros((rows, length, width)), jnp.zeros((7, rows, length, width))
    program = lens._say.lower(model, params, embedded, after, 3, nn.Context()).as_text()
    assert f"tensor<{rows}x{length}x{VOCAB}xf32>" in program
    assert f"8x{rows}x{length}x{VOCAB}x" not in program


def test_a_model_without_a_vocabulary_and_an_odd_k_are_refused():
    model = Model("gpt", MODELS["gpt"].config, "sequence-classification")
    with pytest.raises(InputError, match="has the head 'sequence-classification' and no logits over a vocabulary"):
        logit_lens(model, {}, **inputs("gpt"))
    for k in (0, VOCAB + 1):
        with pytest.raises(InputError, match=f"got k={k}: expected 1 to {VOCAB}"):
            logit_lens(MODELS["gpt"], parameters("gpt"), **inputs("gpt"), k=k)
