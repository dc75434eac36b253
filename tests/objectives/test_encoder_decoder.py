import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.objectives.encoder_decoder import teacher_forced
from objectives.rows import assert_same, batch_of, compiled, negative_log_likelihood, parameters

SIZES = dict(vocab_size=40, num_layers=1, num_heads=2, head_dim=4, d_model=8, d_mlp=16, decoder_start_token=3)
MODELS = {"t5": build("t5", SIZES), "transformer": build("transformer", SIZES | dict(pad_token=3))}
RNG = np.random.default_rng(0)
ITEMS = [tuple(RNG.integers(4, 40, size).astype(np.int32) for size in sizes) for sizes in ((3, 5), (9, 2), (4, 4), (12, 10), (1, 1))]
Z_LOSS, SMOOTHING = 0.01, 0.1


def objective_of(model):
    return teacher_forced(
        model, None, 12, 10, items=lambda records: records, pair=lambda item, rng: item, z_loss=Z_LOSS,
        label_smoothing=SMOOTHING, max_logit_bytes=2**30,
    )  # fmt: skip


def test_targets_are_read_one_place_late_from_the_start_token():
    source, target = np.array([5, 6, 7], np.int32), np.array([8, 9, 1], np.int32)
    example = objective_of(MODELS["t5"]).example((source, target), RNG)
    assert {key: value.tolist() for key, value in example.items()} == {
        "tokens": [5, 6, 7], "decoder_tokens": [3, 8, 9], "decoder_targets": [8, 9, 1], "decoder_weights": [1.0, 1.0, 1.0]
    }  # fmt: skip
    assert {key: value.dtype for key, value in example.items()} == {
        "tokens": np.int32, "decoder_tokens": np.int32, "decoder_targets": np.int32, "decoder_weights": np.float32
    }  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_the_formula_of_each_pair_alone_however_they_are_packed(name):
    model, params = MODELS[name], parameters(MODELS[name])
    objective = objective_of(model)
    alone, packed = batch_of(objective, ITEMS, 6, pack=False), batch_of(objective, ITEMS, 6, pack=True)
    assert packed["segments"].max() > 1 and not alone["decoder_segments"][5].any()
    source, target = alone["segments"] > 0, alone["decoder_segments"] > 0

    @jax.jit
    def logits_of(params, tokens, decoder_tokens):
        hidden = model.apply(params, tokens, decoder_tokens, valid=source, decoder_valid=target).hidden
        return model.unembed(params, hidden)

    logits = np.asarray(logits_of(params, alone["tokens"], alone["decoder_tokens"]), np.float64)
    targets = alone["decoder_targets"]
    plain = negative_log_likelihood(logits, targets)
    partition = logsumexp(logits, -1)
    loss = (1 - SMOOTHING) * plain + SMOOTHING * (partition[..., None] - logits).mean(-1) + Z_LOSS * partition**2
    run = compiled(objective, gradient=name == "t5")
    found = run(params, alone)
    assert found[0]["loss"] == (pytest.approx((loss * target).sum(), rel=1e-5), 22.0)
    assert found[0]["cross_entropy"] == (pytest.approx((plain * target).sum(), rel=1e-5), 22.0)
    assert found[0]["accuracy"] == (((logits.argmax(-1) == targets) & target).sum(), 22.0)
    assert float(objective.weights(packed)["loss"]) == 22.0
    assert_same(run(params, packed), found)
    assert_same(run(params, {key: value[[4, 2, 5, 0, 3, 1]] for key, value in alone.items()}), found)


def test_a_model_without_a_decoder_of_its_own_is_refused():
    with pytest.raises(InputError, match="needs a model with the head 'seq2seq-lm', and this one has 'causal-lm'"):
        objective_of(build("gpt", dict(num_layers=1)))
