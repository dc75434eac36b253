"""Answers that are a part of a text, found as transformers 4 found them (`pipelines/question_answering.py`, gone from 5)."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from flaxllm.data.encoding import Encoded
from flaxllm.data.json_file import brief
from flaxllm.errors import InputError
from flaxllm.pipelines.loaded import Loaded, logits, run, softmax

_log = logging.getLogger("flaxllm")
_FIELDS = {"question", "context"}
_IMPOSSIBLE = -1e4  # a logit


def question_answering(
    at: Loaded,
    inputs: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    *,
    question: str | Sequence[str] | None = None,
    context: str | Sequence[str] | None = None,
    top_k: int = 1,
    doc_stride: int | None = None,
    max_seq_len: int | None = None,
    max_question_len: int = 64,
    max_answer_len: int = 15,
    handle_impossible_answer: bool = False,
    align_to_words: bool = True,
) -> dict | list:
    """The best answer to each question in its context, `{"score": ..., "start": ..., "end": ..., "answer": ...}`, or the
    `top_k` best; start and end are characters of the context.

    Questions come with `question` and `context`, texts or lists of them (one context may serve all), or as `{"question": ...,
    "context": ...}`. A context that with its question has more than `max_seq_len` tokens (384, or what the model takes) is
    read in windows that share `doc_stride` (128, or half a window). In each the probabilities of all starts and of all ends
    add up to 1, and a span's score is the product of its own two; it has `max_answer_len` tokens at most. What several spans
    give the same answer has the sum of their scores. With `handle_impossible_answer` no answer ("") has the least score of
    its kind in any window. `align_to_words` lets answers begin and end with a word.

    Raises:
      InputError: a question or a context is missing or empty, or a setting is out of its range.
    """
    pairs, single = _pairs(inputs, question, context)
    most = min(384, at.cut_len or 384) if max_seq_len is None else max_seq_len
    if most > (at.max_len or most):
        raise InputError(f"max_seq_len is {most}, and this model takes {at.max_len} tokens: lower it, or leave it out")
    stride = min(most // 2, 128) if doc_stride is None else doc_stride
    for name, value in {"top_k": top_k, "max_answer_len": max_answer_len, "max_question_len": max_question_len}.items():
        if value < 1:
            raise InputError(f"{name} is {value}: expected 1 or more")
    pairs = [(_cut(at, question, max_question_len), context) for question, context in pairs]
    # A tokenizer that fills up on the left has the question, which all windows share, on the right.
    order, cuts = (1, "only_second") if at.tokenizer.padding_side == "right" else (-1, "only_first")
    which = 1 if order == 1 else 0
    encoded = [at.tokenizer(*pair[::order], max_len=most, truncation=cuts, stride=stride, padding_side="right") for pair in pairs]
    results = []
    for (_, text), each, rows in zip(pairs, encoded, run(at, logits, encoded)):
        answers: list[dict] = []
        nothing = {"score": np.inf, "start": 0, "end": 0, "answer": ""}
        for row, scores in enumerate(rows):
            may = each.sequence_ids[row] == which
            if at.tokenizer.cls is not None:  # what models give for no answer
                may |= each.tokens[row] == at.tokenizer.cls
            starts, ends = (softmax(np.where(may, of[: len(may)], _IMPOSSIBLE)) for of in scores.T)
            nothing["score"] = min(nothing["score"], float(starts[0] * ends[0]))
            # Some are of the same words once they are aligned.
            for start, end, score in _spans(starts, ends, may, top_k * 2 + 10 if align_to_words else top_k, max_answer_len):
                start, end = _characters(each, row, start, end, which, align_to_words)
                _add(answers, {"score": score, "start": start, "end": end, "answer": text[start:end]})
        answers += [nothing] if handle_impossible_answer or not answers else []
        answers = sorted(answers, key=lambda answer: -answer["score"])[:top_k]
        results.append(answers[0] if top_k == 1 else answers)
    return results[0] if single else results


def _pairs(inputs, question, context) -> tuple[list[tuple[str, str]], bool]:
    """Questions with their contexts, and whether there is one that stands for itself."""
    if inputs is None:
        if question is None or context is None:
            raise InputError("question-answering needs both: give question= and context=")
        single = isinstance(question, str) and isinstance(context, str)
        contexts = [context] * (1 if single else len(question)) if isinstance(context, str) else list(context)
        questions = [question] * len(contexts) if isinstance(question, str) else list(question)
        if len(questions) != len(contexts):
            raise InputError(f"there are {len(questions)} questions and {len(contexts)} contexts: expected as many of both")
        given = [{"question": question, "context": context} for question, context in zip(questions, contexts)]
    else:
        single = isinstance(inputs, Mapping)
        given = [inputs] if single else list(inputs)
    for number, item in enumerate(given):
        fits = isinstance(item, Mapping) and item.keys() == _FIELDS
        if not fits or not all(isinstance(value, str) and value.strip() for value in item.values()):
            raise InputError(f"question {number} is {brief(item)}: expected a question and a context, texts that are not empty")
    return [(item["question"], item["context"]) for item in given], single


def _cut(at: Loaded, question: str, most: int) -> str:
    offsets = at.tokenizer(question, add_special_tokens=False).offsets[0]
    if len(offsets) <= most:
        return question
    end = offsets[most - 1, 1]
    _log.warning("a question has more than max_question_len=%d tokens: cut off is %s", most, brief(question[end:]))
    return question[:end]


def _spans(
    starts: Float[np.ndarray, "token"], ends: Float[np.ndarray, "token"], may: Bool[np.ndarray, "token"], count: int, max_len: int
) -> list[tuple[int, int, float]]:
    """The best spans, first and last token and score, of those that are allowed; the first token, [CLS], is in none."""
    may = may & (np.arange(len(may)) > 0)
    allowed = np.tril(np.triu(may[:, None] & may), max_len - 1)
    scores = np.where(allowed, np.einsum("s,e->se", starts, ends), -1.0).ravel()
    best = np.argpartition(-scores, min(count, len(scores) - 1))[:count]
    best = best[np.argsort(-scores[best], kind="stable")]
    return [(*map(int, np.unravel_index(place, allowed.shape)), float(scores[place])) for place in best if scores[place] >= 0]


def _characters(encoded: Encoded, row: int, start: int, end: int, which: int, align_to_words: bool) -> tuple[int, int]:
    """Where in the context a span of tokens, or of the words that they are in, begins and ends."""
    offsets, words = encoded.offsets[row], encoded.word_ids[row]
    if align_to_words and words[start] >= 0 and words[end] >= 0:
        of_text = encoded.sequence_ids[row] == which
        start = np.flatnonzero(of_text & (words == words[start]))[0]
        end = np.flatnonzero(of_text & (words == words[end]))[-1]
    return int(offsets[start, 0]), int(offsets[end, 1])


def _add(answers: list[dict], new: dict) -> None:
    """What is there already, upper or lower case, only counts for more."""
    for answer in answers:
        if answer["answer"].lower() == new["answer"].lower():
            answer["score"] += new["score"]
            return
    answers.append(new)
