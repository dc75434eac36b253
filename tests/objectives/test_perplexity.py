import jax
import numpy as np
import pytest

from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.objectives.perplexity import perplexity

SIZES = dict(vocab_size=30, max_len=16, num_layers=1, num_heads=2, head_dim=8, d_model=16, d_mlp=24)
MODEL = build("gpt", SIZES)
PARAMS = jax.tree.map(lambda x: 3 * x, MODEL.init(jax.random.PRNGKey(0)))
TOKENS = np.random.default_rng(0).integers(0, 30, 24)


def test_pieces_are_predicted_each_by_itself():
    """23 predictions in pieces of 10: two of them, and the rest left out."""
    losses = []
    for start in (0, 10):
        piece = TOKENS[start : start + 11]
        logits = np.asarray(MODEL.unembed(PARAMS, MODEL.apply(PARAMS, piece[None, :-1]).hidden)[0], np.float64)
        losses += (np.log(np.exp(logits).sum(-1)) - logits[np.arange(10), piece[1:]]).tolist()
    assert perplexity(MODEL, PARAMS, TOKENS, max_len=10) == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_what_has_no_perplexity_is_refused():
    with pytest.raises(InputError, match="got 1: use a longer text"):
        perplexity(MODEL, PARAMS, TOKENS[:1])
    with pytest.raises(InputError, match="head 'causal-lm', and this one has 'token-classification'"):
        perplexity(build("gpt", SIZES, head="token-classification"), PARAMS, TOKENS)
