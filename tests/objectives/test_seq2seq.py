import dataclasses

import numpy as np
import pytest

from data.frozen_tokenizers import load
from decoding.tiny import character_tokenizer
from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.objectives import seq2seq
from objectives.rows import batch_of

T5, MARIAN = load("t5"), load("marian")
T5_MODEL = build("t5", dict(vocab_size=600, num_layers=1))
MARIAN_MODEL = build("transformer", dict(vocab_size=358, num_layers=1, eos_token=0, pad_token=357, decoder_start_token=357))
RECORDS = [{"source": "the house is wonderful.", "target": "das Haus"}, {"source": "a house", "target": "ein Haus", "prefix": "x: "}]


@pytest.mark.parametrize(("model", "tokenizer"), [(T5_MODEL, T5), (MARIAN_MODEL, MARIAN)], ids=["t5", "marian"])
def test_texts_are_read_as_their_tokenizer_reads_them(model, tokenizer):
    objective = seq2seq(model, tokenizer, 48, max_target_len=32, prefix="translate: ")
    assert objective.fields == ("prefix", "source", "target")
    first, second = objective.items(RECORDS)
    assert first.source.tolist() == tokenizer("translate: the house is wonderful.").tokens[0].tolist()
    assert second.source.tolist() == tokenizer("x: a house").tokens[0].tolist()
    target = tokenizer.encode_target("das Haus").tokens[0].tolist()
    assert target[-1] == tokenizer.eos
    example = objective.example(first, np.random.default_rng(0))
    assert example["tokens"].tolist() == first.source.tolist() == objective.judge.prompt(first).tolist()
    assert example["decoder_targets"].tolist() == target
    assert example["decoder_tokens"].tolist() == [model.config.decoder_start_token, *target[:-1]]
    batch = batch_of(objective, [first, second], 2, pack=True)
    assert batch["segments"].max() == batch["decoder_segments"].max() == 2


def test_long_texts_are_cut_with_their_ends():
    item = seq2seq(T5_MODEL, T5, 6, max_target_len=4).items([{"source": "the house is wonderful.", "target": "the house is"}])[0]
    assert item.source.tolist() == [*T5.encode("the house is wonderful.")[:5], 1]
    assert item.target.tolist() == [*T5.encode("the house is")[:3], 1]


def test_a_tokenizer_that_adds_nothing_gives_targets_their_end():
    model = build("transformer", dict(vocab_size=50, num_layers=1, eos_token=49))
    (item,) = seq2seq(model, character_tokenizer(), 8).items([{"source": "ABC", "target": "DE"}])
    assert item.source.tolist() == [0, 1, 2] and item.target.tolist() == [3, 4, 49]
    assert item.source.dtype == item.target.dtype == np.int32


def test_what_is_written_is_scored_by_the_metric():
    items = seq2seq(T5_MODEL, T5, 32).items([{"source": "a", "target": "the cat sat on the mat"}, {"source": "b", "target": "ja"}])

    def score(metric, texts):
        return seq2seq(T5_MODEL, T5, 32, metric=metric).judge.score(items, texts)

    right = ["the cat sat on the mat", "ja"]
    assert score("bleu", right) == {"bleu": pytest.approx(100.0)}
    assert score("chrf", right) == {"chrf": pytest.approx(100.0)}
    assert score("rouge", right) == {"rouge1": 1.0, "rouge2": 0.5, "rougeL": 1.0}  # "ja" has no bigram
    assert score("exact-match", [" the cat sat on the mat\n", "nein"]) == {"exact_match": 0.5}
    assert score("bleu", ["the cat", "nein"])["bleu"] < 50.0
    assert seq2seq(T5_MODEL, T5, 32, metric="loss").judge is None


def test_what_cannot_be_learned_is_refused():
    objective = seq2seq(T5_MODEL, T5, 32)
    with pytest.raises(InputError, match="record 1 has no field 'target'"):
        objective.items([RECORDS[0], {"source": "a"}])
    with pytest.raises(InputError, match="record 0 has 3 as its 'source': expected a string"):
        objective.items([{"source": 3, "target": "a"}])
    with pytest.raises(InputError, match="record 1 has None as its 'prefix'"):
        objective.items([RECORDS[0], RECORDS[0] | {"prefix": None}])
    with pytest.raises(InputError, match="unknown objective.metric 'blue': did you mean 'bleu'"):
        seq2seq(T5_MODEL, T5, 32, metric="blue")
    characters = build("transformer", dict(vocab_size=50, num_layers=1, eos_token=(48, 49)))
    with pytest.raises(InputError, match="record 1 has an empty 'source': leave it out"):
        seq2seq(characters, character_tokenizer(), 8).items([{"source": "A", "target": ""}, {"source": "", "target": "A"}])
    with pytest.raises(InputError, match="ends its texts with token None, and the tokenizer with 1"):
        seq2seq(build("t5", dict(vocab_size=600, eos_token=None)), T5, 32)
    with pytest.raises(InputError, match="needs a model with the head 'seq2seq-lm'"):
        seq2seq(dataclasses.replace(T5_MODEL, head="encoder"), T5, 32)
