"""Classification: against the losses' formulas in float64, on each text alone; labels, errors, and the judge's figures."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from flaxllm.errors import InputError
from flaxllm.nn import Context
from flaxllm.objectives import classification
from objectives.batches import apply, batches, check_gradient, judged, summed, tiny

TEXTS = ["A bad film.", "It was not that bad, was it?", "Never again, she said, and left the room at once."]
LABELS = ("neg", "neutral", "pos")
HEAD = "sequence-classification"


def logits_of(model, params, tokenizer, records) -> np.ndarray:
    """Of each text by itself, without anything that fills up its row."""
    rows = [tokenizer(record["text"], record.get("text_pair"), max_len=20) for record in records]
    names = ("tokens", "token_types") if model.family == "bert" else ("tokens",)
    return np.concatenate([apply(model, params, {name: getattr(row, name) for name in names}).logits for row in rows]).astype(float)


def test_the_loss_is_the_formula_on_each_text_alone():
    model, params, tokenizer = tiny("bert", HEAD, "bert", labels=LABELS)
    records = [{"text": text, "text_pair": "The other.", "label": label} for text, label in ((TEXTS[0], "pos"), (TEXTS[2], 1))]
    objective = classification(model, tokenizer, 20)
    log_p = log_softmax(logits_of(model, params, tokenizer, records), -1)
    items = objective.items(records)
    for made in (batches(objective, items, 3), batches(objective, items[::-1], 3)):  # the last row is empty
        sums = summed(objective, params, made)
        assert sums["loss"] == pytest.approx((-log_p[0, 2] - log_p[1, 1], 2), rel=1e-5)
        assert sums["accuracy"] == ((log_p.argmax(-1) == [2, 1]).sum(), 2)
    check_gradient(objective, params, made[0])


@pytest.mark.parametrize(("family", "tokenizer"), [("gpt", "gpt2"), ("llama", "llama"), ("t5", "t5")])
def test_every_family_reads_a_text_to_its_end_and_no_further(family, tokenizer):
    model, params, tokenizer = tiny(family, HEAD, tokenizer, labels=LABELS)
    record = {"text": TEXTS[0], "label": 0}
    objective = classification(model, tokenizer, 20)
    log_p = log_softmax(logits_of(model, params, tokenizer, [record]), -1)
    sums = summed(objective, params, batches(objective, objective.items([record]), 2))
    assert sums["loss"] == pytest.approx((-log_p[0, 0], 1), rel=1e-5)


def test_several_labels_have_the_mean_of_their_sigmoid_cross_entropies():
    model, params, tokenizer = tiny("bert", HEAD, "bert", labels=LABELS)
    objective = classification(model, tokenizer, 20, kind="multi-label")
    records = [{"text": text, "label": label} for text, label in zip(TEXTS, [[0, "pos"], ("neutral",)])]
    logits, label = logits_of(model, params, tokenizer, records), np.array([[1, 0, 1], [0, 1, 0]])
    p = 1 / (1 + np.exp(-logits))
    expected = -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean(-1).sum()
    sums = summed(objective, params, batches(objective, objective.items(records), 3))
    assert sums["loss"] == pytest.approx((expected, 2), rel=1e-5)
    assert sums["accuracy"] == (((logits > 0) == label).all(-1).sum(), 2)
    assert objective.items([{"text": "a", "label": []}])[0]["label"].tolist() == [0, 0, 0]


def test_a_number_has_its_squared_error():
    model, params, tokenizer = tiny("bert", HEAD, "bert", labels=("score",))
    objective = classification(model, tokenizer, 20, kind="regression")
    records = [{"text": text, "label": label} for text, label in zip(["a b c d", "e f g h", "h d a a"], [1.5, "-2", 3])]
    items, logits = objective.items(records), logits_of(model, params, tokenizer, records)[:, 0]
    sums = summed(objective, params, batches(objective, items, 2))
    assert sums == {"loss": pytest.approx((((logits - [1.5, -2, 3]) ** 2).sum(), 3), rel=1e-5)}
    figures = judged(objective, params, items, 2)
    assert figures.keys() == {"pearson", "spearman"}
    assert figures["pearson"] == pytest.approx(np.corrcoef(logits, [1.5, -2, 3])[0, 1], abs=1e-5)


def test_texts_are_cut_and_pairs_have_types():
    model, _, tokenizer = tiny("bert", HEAD, "bert")
    objective = classification(model, tokenizer, 8)
    (item,) = objective.items([{"text": "a b", "text_pair": "c d e f g h", "label": 1}])
    assert tokenizer.decode(item["tokens"]) == "[CLS] a b [SEP] c d e [SEP]"
    assert item["token_types"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert objective.empty_row["tokens"].shape == objective.empty_row["token_types"].shape == (8,)
    untyped = classification(*tiny("bert", HEAD, "roberta", num_token_types=1)[::2], 8)
    assert "token_types" not in untyped.empty_row and "token_types" not in untyped.items([{"text": "a", "label": 1}])[0]


def test_the_judge_of_classes():
    model, _, tokenizer = tiny("bert", HEAD, "bert", labels=("no", "yes"))
    objective = classification(model, tokenizer, 20)
    items = objective.items([{"text": "a", "label": label} for label in (1, 1, 0, 1, 0)])
    logits = np.array([[0, 1], [1, 0], [0, 1], [0, 1], [1, 0]], np.float32)
    figures = objective.judge.score(items, {"logits": logits})  # 2 of 3 predicted are right, and of 3 true ones found
    assert figures == pytest.approx(
        {"accuracy": 0.6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "matthews_correlation": 1 / 6}, abs=1e-9
    )
    three = classification(*tiny("bert", HEAD, "bert", labels=LABELS)[::2], 20)
    items = three.items([{"text": "a", "label": label} for label in (0, 1, 2)])
    assert three.judge.score(items, {"logits": np.eye(3)[[0, 0, 2]]})["f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_the_judge_of_several_labels():
    model, _, tokenizer = tiny("bert", HEAD, "bert", labels=LABELS)
    objective = classification(model, tokenizer, 20, kind="multi-label")
    items = objective.items([{"text": "a", "label": label} for label in ([0], [0, 1], [])])
    figures = objective.judge.score(items, {"logits": np.array([[2, -1, -1], [1, -1, 3], [-1, -1, -1]], np.float32)})
    assert figures == pytest.approx({"accuracy": 2 / 3, "micro_f1": 2 / 3, "macro_f1": 1 / 3})


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([{"text": "a"}], {}, "record 0 has no field 'label': say in data.columns which column holds it"),
        ([{"text": "a", "label": 0}, {"text": 3, "label": 0}], {}, "record 1 has 3 as its 'text': expected a string"),
        ([{"text": "a", "label": "poss"}], {}, "record 0 has 'poss' in its 'label', which is no label: did you mean 'pos'?"),
        ([{"text": "a", "label": 3}], {}, "record 0 has 3 in its 'label', which is no label: expected one of: neg, neutral, pos"),
        ([{"text": "a", "label": -1}], {}, "record 0 has -1 in its 'label'"),
        ([{"text": "a", "label": None}], {}, "record 0 has None in its 'label'"),
        ([{"text": "a", "label": "pos"}], {"kind": "multi-label"}, "record 0 has 'pos' as its 'label': expected a list of labels"),
        ([{"text": "a", "text_pair": "b", "label": 0}, {"text": "a", "label": 0}], {}, "record 1 has no field 'text_pair'"),
        ([{"text": "a", "label": 0}, {"text": "a", "text_pair": "b", "label": 0}], {}, "record 1 has a 'text_pair', and record 0 has none"),
    ],
)
def test_a_record_that_cannot_be_is_named(records, options, message):
    objective = classification(*tiny("bert", HEAD, "bert", labels=LABELS)[::2], 20, **options)
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        objective.items(records)


def test_records_that_are_encoded_in_parts_are_all_there(monkeypatch):
    objective = classification(*tiny("bert", HEAD, "bert", labels=LABELS)[::2], 20)
    records = [{"text": "a " * number, "label": 0} for number in range(1, 6)]
    whole = objective.items(records)
    monkeypatch.setattr("flaxllm.objectives.labelled._BLOCK", 2)
    assert [item["tokens"].tolist() for item in objective.items(records)] == [item["tokens"].tolist() for item in whole]
    with pytest.raises(InputError, match="record 5 has 0 as its 'text'"):
        objective.items([*records, {"text": 0, "label": 0}])


def test_what_is_no_number_is_named():
    objective = classification(*tiny("bert", HEAD, "bert", labels=("score",))[::2], 20, kind="regression")
    for value in ("high", None, float("nan")):
        with pytest.raises(InputError, match="record 0 has .* as its 'label': expected a number"):
            objective.items([{"text": "a", "label": value}])


def test_a_model_that_does_not_fit_is_refused():
    model, _, tokenizer = tiny("bert", HEAD, "bert", labels=("score",))
    with pytest.raises(InputError, match="the kind 'classes' needs two labels or more, and the model has 1"):
        classification(model, tokenizer, 20)
    with pytest.raises(InputError, match="there is no kind 'class' of classification: did you mean 'classes'"):
        classification(model, tokenizer, 20, kind="class")
    with pytest.raises(InputError, match="the kind 'regression' needs one label, and the model has 2"):
        classification(*tiny("bert", HEAD, "bert")[::2], 20, kind="regression")
    with pytest.raises(InputError, match="head 'sequence-classification', and this one has 'masked-lm'"):
        classification(*tiny("bert", "masked-lm", "bert")[::2], 20)


def test_a_dry_run_needs_no_tokenizer():
    model, params, _ = tiny("bert", HEAD, "bert")
    objective = classification(model, None, 8)
    row = {name: np.zeros((2, *value.shape), value.dtype) for name, value in objective.empty_row.items()}
    row |= {name: np.zeros((2, 8), np.int32) for name in ("segments", "positions")}
    terms = jax.eval_shape(lambda batch: objective.terms(params, batch, Context()), row)
    assert terms["loss"].sum.shape == ()
