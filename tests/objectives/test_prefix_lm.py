import numpy as np
import pytest

from data.frozen_tokenizers import load
from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.objectives import prefix_lm
from objectives.rows import documents_of

T5 = load("t5")
OBJECTIVE = prefix_lm(build("t5", dict(vocab_size=600, num_layers=1)), T5, 12)


def test_a_text_is_cut_at_any_place_alike():
    piece, rng, counts = np.arange(10, 22, dtype=np.int32), np.random.default_rng(0), np.zeros(12)
    for _ in range(2200):
        example = OBJECTIVE.example(piece, rng)
        source, target = example["tokens"].tolist(), example["decoder_targets"].tolist()
        assert source.pop() == target.pop() == 1 and source + target == piece.tolist()
        assert example["decoder_tokens"].tolist() == [0, *target]
        counts[len(source)] += 1
    assert counts[0] == 0
    assert ((counts[1:] - 200) ** 2 / 200).sum() < 10 + 4 * np.sqrt(20)


def test_a_full_text_fits_wherever_it_is_cut():
    items = OBJECTIVE.items(documents_of([[*range(10, 40), 1]]))
    assert [len(items[i]) for i in range(len(items))] == [12, 12, 6]
    assert {len(array) for array in OBJECTIVE.empty_row.values()} == {12}


def test_a_decoder_alone_is_refused():
    with pytest.raises(InputError, match="needs a model with the head 'seq2seq-lm', and this one has 'causal-lm'"):
        prefix_lm(build("llama", dict(num_layers=1)), T5, 12)
