"""Text metrics: their formulas on small cases, and the figures that the libraries' own pages publish."""

import math
from collections import Counter

import pytest

from flaxllm.errors import InputError
from flaxllm.metrics import bleu, bleu_signature, chrf, rouge

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

# The example of sacreBLEU's README, two references each.
SYSTEM = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


def test_bleu_and_chrf_are_those_of_sacrebleus_page():
    assert bleu(SYSTEM, REFERENCES) == {"bleu": pytest.approx(48.53, abs=5e-3)}
    assert chrf(SYSTEM, REFERENCES) == {"chrf": pytest.approx(59.73, abs=5e-3)}


def ngrams(words: list[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def plain_bleu(predictions: list[str], references: list[str]) -> float:
    """Papineni et al. 2002, section 2.3, of one reference and of words parted by spaces."""
    pairs = [(p.split(), r.split()) for p, r in zip(predictions, references)]
    logs = 0.0
    for n in range(1, 5):
        clipped = sum((ngrams(p, n) & ngrams(r, n)).total() for p, r in pairs)
        logs += math.log(clipped / sum(ngrams(p, n).total() for p, _ in pairs)) / 4
    c, r = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    return 100 * math.exp(min(0.0, 1 - r / c) + logs)


def test_bleu_is_papinenis_formula_over_the_corpus():
    predictions = ["the cat sat on the mat", "A dog ran over a small hill"]
    references = ["the cat sat on a red mat", "a dog ran over a small green hill today"]
    assert bleu(predictions, references)["bleu"] == pytest.approx(plain_bleu(predictions, references))
    lower = plain_bleu([p.lower() for p in predictions], references)
    assert bleu(predictions, references, lowercase=True)["bleu"] == pytest.approx(lower)
    assert lower > bleu(predictions, references)["bleu"] + 1


def test_the_tokenizer_parts_punctuation():
    predictions, references = ["Well , the cat sat there ."], ["Well, the cat sat there."]
    assert bleu(predictions, references)["bleu"] == pytest.approx(100)
    assert bleu(predictions, references, tokenize="none")["bleu"] < 60


def test_the_signature_says_how_a_figure_was_computed():
    signature = bleu_signature(REFERENCES).split("|version:")[0]
    assert signature == "nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp"
    signature = bleu_signature(["a b", "c"], lowercase=True, tokenize="intl").split("|version:")[0]
    assert signature == "nrefs:1|case:lc|eff:no|tok:intl|smooth:exp"


def test_examples_may_differ_in_how_many_references_they_have():
    assert bleu(["a b c d e", "f g h i j"], [["x", "a b c d e"], ["f g h i j"]])["bleu"] == pytest.approx(100)


def test_chrf_plus_plus_counts_words_too():
    # All six orders of characters agree; of 2 and 3 words one does, and no pair of words.
    predictions, references = ["abcdef ghijkl"], ["abcdef ghij kl"]
    assert chrf(predictions, references)["chrf"] == pytest.approx(100)
    precision, recall = (6 + 1 / 2) / 8, (6 + 1 / 3) / 8
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert chrf(predictions, references, word_order=2)["chrf"] == pytest.approx(expected)


def test_rouge_is_the_f1_of_what_is_common():
    prediction, reference = "The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog"
    # Of 8 and 9 words 6 are common; of 7 and 8 pairs 2; the longest common subsequence has 5.
    expected = {"rouge1": 2 * 6 / 17, "rouge2": 2 * 2 / 15, "rougeL": 2 * 5 / 17}
    assert rouge([prediction], [reference]) == pytest.approx(expected)
    both = rouge([prediction, "x"], [[reference, "nothing"], "y"])
    assert both == pytest.approx({name: value / 2 for name, value in expected.items()})


def test_rouge_may_compare_stems():
    assert rouge(["some cats jumping"], ["the cat jumps"])["rouge1"] == 0.0
    expected = {"rouge1": 2 / 3, "rouge2": 1 / 2, "rougeL": 2 / 3}
    assert rouge(["some cats jumping"], ["the cat jumps"], stemmer=True) == pytest.approx(expected)


def test_what_cannot_be_judged_is_refused():
    for expected, judge in {
        "there are 1 predictions for 2 references": lambda: bleu(["a"], ["a", "b"]),
        "there are 0 predictions for 0 references": lambda: rouge([], []),
        "example 1 has no reference": lambda: chrf(["a", "b"], [["a"], []]),
        "sacreBLEU has no tokenize '13b': did you mean '13a'": lambda: bleu(["a"], ["a"], tokenize="13b"),
    }.items():
        with pytest.raises(InputError, match=expected):
            judge()
