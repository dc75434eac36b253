"""Checkpoints that people really have, against what transformers makes of them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import real_weights
from flaxllm import from_pretrained, load_tokenizer

SENTENCES = ["Hello, my dog is cute", "The cat sat on the mat because it was tired."]


@pytest.fixture(scope="module")
def minilm() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "fixtures" / "minilm.npz") as arrays:
        return dict(arrays)


def test_minilm_gives_the_embeddings_of_transformers(minilm):
    model, params = from_pretrained(real_weights.minilm_folder())
    out = jax.jit(model.apply)(params, jnp.asarray(minilm["tokens"]), valid=jnp.asarray(minilm["valid"]))
    valid = minilm["valid"]
    kept = valid[:, :6, None]
    assert np.abs((out.hidden[:, :6] - minilm["hidden"]) * kept).max() <= 1e-5 * np.abs(minilm["hidden"]).max()
    assert np.abs(out.pooled - minilm["pooled"]).max() <= 1e-5
    embeddings = (np.asarray(out.hidden) * valid[..., None]).sum(1) / valid.sum(1, keepdims=True)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert np.abs(embeddings - minilm["embeddings"]).max() <= 1e-5


def test_minilm_reads_text_as_transformers_does(minilm):
    encoded = load_tokenizer(real_weights.minilm_folder())(SENTENCES)
    np.testing.assert_array_equal(encoded.tokens, minilm["tokens"])
    np.testing.assert_array_equal(encoded.valid, minilm["valid"])


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "head", "architecture"),
    [
        ("bert_pretrained", "pretraining", "BertForPreTraining"),
        ("bert_ft", "base", "BertModel"),
        ("bert_ft_10k_25s", None, "BertForSequenceClassification"),
    ],
)
def test_the_checkpoints_of_rxnfp_compute_what_torch_computes(name, head, architecture):
    transformers = pytest.importorskip("transformers", reason="the live comparison needs the [parity] extra")
    import torch

    folder = real_weights.rxnfp_folders()[name]
    model, params = from_pretrained(folder, head=head, config={"model_type": "bert"})
    reference = getattr(transformers, architecture).from_pretrained(folder).eval()
    tokens = np.random.default_rng(0).integers(5, model.config.vocab_size, (2, 40), np.int32)
    out = jax.jit(model.apply)(params, jnp.asarray(tokens))
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor(tokens).long(), output_hidden_states=True)
    pairs = [(out.hidden, expected.hidden_states[-1])]
    if head == "pretraining":
        pairs += [(model.unembed(params, out.hidden), expected.prediction_logits), (out.logits, expected.seq_relationship_logits)]
    elif head == "base":
        pairs += [(out.pooled, expected.pooler_output)]
    else:
        assert len(model.config.labels) == 50
        pairs += [(out.logits, expected.logits)]
    for ours, theirs in pairs:
        assert np.abs(ours - theirs.numpy()).max() <= 1e-5 * np.abs(theirs.numpy()).max()
