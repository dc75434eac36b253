"""Translations and summaries against references, by the field's own libraries: sacreBLEU and rouge-score."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from flaxllm.errors import InputError, did_you_mean
from flaxllm.metrics.inputs import check_pairs, library

Texts = Sequence[str] | Sequence[Sequence[str]]  # a text for each example, or several

_ROUGE = ("rouge1", "rouge2", "rougeL")


def bleu(predictions: Sequence[str], references: Texts, lowercase: bool = False, tokenize: str = "13a") -> dict[str, float]:
    """The corpus's `bleu`, 0 to 100 (Papineni et al. 2002), as sacreBLEU computes it from plain text (Post 2018).

    Its default is what papers report; `lowercase=True` gives the tokenised, lower-case figure. `bleu_signature` says which.

    Raises:
      InputError: there are not as many predictions as references, or sacreBLEU has no such `tokenize`.
    """
    return {"bleu": _bleu(lowercase, tokenize).corpus_score(list(predictions), _streams(predictions, references)).score}


def bleu_signature(references: Texts, lowercase: bool = False, tokenize: str = "13a") -> str:
    """sacreBLEU's signature of a figure with these settings, to be reported with it."""
    first = [texts if isinstance(texts, str) else texts[0] for texts in references]
    metric = _bleu(lowercase, tokenize)
    metric.corpus_score(first, _streams(first, references))
    return metric.get_signature().format()


def chrf(predictions: Sequence[str], references: Texts, word_order: int = 0) -> dict[str, float]:
    """The corpus's `chrf`, 0 to 100 (Popović 2015), as sacreBLEU computes it; with `word_order=2` it is chrF++ (Popović 2017).

    Raises:
      InputError: there are not as many predictions as references.
    """
    metric = library("sacrebleu.metrics").CHRF(word_order=word_order)
    return {"chrf": metric.corpus_score(list(predictions), _streams(predictions, references)).score}


def rouge(predictions: Sequence[str], references: Texts, stemmer: bool = False) -> dict[str, float]:
    """The mean F1 of unigrams, bigrams and longest common subsequences, 0 to 1: `rouge1`, `rouge2`, `rougeL` (Lin 2004).

    Of several references the nearest counts. `stemmer=True` compares words by their Porter stems.

    Raises:
      InputError: there are not as many predictions as references.
    """
    scorer = library("rouge_score.rouge_scorer").RougeScorer(_ROUGE, use_stemmer=stemmer)
    check_pairs(predictions, references)
    scores = [scorer.score_multi(several, p) for p, several in zip(predictions, _several(references))]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in _ROUGE}


def _bleu(lowercase: bool, tokenize: str):
    metric = library("sacrebleu.metrics").BLEU
    if tokenize not in metric.TOKENIZERS:
        raise InputError(f"sacreBLEU has no tokenize {tokenize!r}: {did_you_mean(tokenize, metric.TOKENIZERS)}")
    return metric(lowercase=lowercase, tokenize=tokenize)


def _streams(predictions: Sequence[str], references: Texts) -> list[list[str | None]]:
    """The first reference of each example, then the second, and so on, as sacreBLEU takes them; None where there is none."""
    check_pairs(predictions, references)
    return [list(stream) for stream in zip_longest(*_several(references))]


def _several(references: Texts) -> list[list[str]]:
    several = [[texts] if isinstance(texts, str) else list(texts) for texts in references]
    missing = next((index for index, texts in enumerate(several) if not texts), None)
    if missing is not None:
        raise InputError(f"example {missing} has no reference: expected one at least")
    return several
