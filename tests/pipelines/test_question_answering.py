"""Answers against the definition in float64: every window and every span by itself, with logits of each window alone."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest

from data.frozen_tokenizers import load
from flaxllm.errors import InputError
from flaxllm.models import build
from flaxllm.pipelines import pipeline
from pipelines.pipeline_cases import LONG, SIZES, TEXTS

BERT, GPT2 = load("bert"), load("gpt2")
SHAPES = SIZES | dict(max_len=48, init_stddev=0.6)
MODELS = {
    "bert": (BERT, build("bert", SHAPES | dict(vocab_size=BERT.vocab_size, pooler=False), head="question-answering")),
    "gpt": (GPT2, build("gpt", SHAPES | dict(vocab_size=GPT2.vocab_size), head="question-answering")),
}
PARAMS = {name: model.init(jax.random.PRNGKey(2)) for name, (_, model) in MODELS.items()}
QUESTION, OTHER = "Is it quick?", "Which dog is it?"
MOST, STRIDE = 48, 8


@pytest.fixture(scope="module", params=MODELS)
def name(request) -> str:
    return request.param


def ask(name: str, *inputs, **options):
    tokenizer, model = MODELS[name]
    return pipeline("question-answering", model=model, params=PARAMS[name], tokenizer=tokenizer)(*inputs, max_seq_len=MOST, **options)


def words(text: str) -> list[tuple[int, int]]:
    """Where BERT's words are: letters and digits, or a sign."""
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


def expected(name: str, question: str, context: str, max_answer_len: int = 15, aligned: bool = True, nothing: bool = False) -> list[dict]:
    """All answers by the definition, the best first."""
    tokenizer, model = MODELS[name]
    asked, read = tokenizer(question, add_special_tokens=False), tokenizer(context, add_special_tokens=False)
    before, sep = list(asked.tokens[0]), []
    if name == "bert":
        before, sep = [BERT.cls, *before, BERT.sep], [BERT.sep]
    room, answers, least, begin = MOST - len(before) - len(sep), {}, math.inf, 0
    while True:
        window = list(read.tokens[0][begin : begin + room])
        types = dict(token_types=np.array([[0] * len(before) + [1] * len(window + sep)])) if name == "bert" else {}
        logits = np.asarray(model.apply(PARAMS[name], np.array([before + window + sep]), **types).logits[0], np.float64)
        may = [0] * (name == "bert") + list(range(len(before), len(before) + len(window)))
        chances = np.exp(logits) / np.exp(logits[may]).sum(0)
        least = min(least, chances[0, 0] * chances[0, 1] if name == "bert" else 0.0)
        spans = []
        for s in range(len(window)):
            for e in range(s, min(s + max_answer_len, len(window))):
                start, end = int(read.offsets[0, begin + s, 0]), int(read.offsets[0, begin + e, 1])
                spans.append((chances[len(before) + s, 0] * chances[len(before) + e, 1], start, end))
        # As many spans of a window are looked at as there could be answers in, once they are aligned.
        for score, start, end in sorted(spans, reverse=True)[: 2 * 3 + 10 if aligned else 3]:
            if aligned:
                start = next(a for a, b in words(context) if a <= start < b)
                end = next(b for a, b in words(context) if a < end <= b)
            answer = answers.setdefault(context[start:end].lower(), {"score": 0.0, "start": start, "end": end})
            answer["score"] += score
        begin += room - STRIDE
        if begin + STRIDE >= len(read.tokens[0]):
            break
    if nothing:
        answers[""] = {"score": least, "start": 0, "end": 0}
    found = [answer | {"answer": context[answer["start"] : answer["end"]]} for answer in answers.values()]
    return sorted(found, key=lambda answer: -answer["score"])


def check_same(ours: list[dict], theirs: list[dict]) -> None:
    assert [{**answer, "score": 0} for answer in ours] == [{**answer, "score": 0} for answer in theirs]
    np.testing.assert_allclose([a["score"] for a in ours], [a["score"] for a in theirs], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("context", [TEXTS[1], LONG], ids=["one window", "several"])
@pytest.mark.parametrize("max_answer_len", [15, 2])
def test_the_best_spans_of_all_windows(name, context, max_answer_len):
    """GPT-2 has no words of its own that others would know: spans stay as they are."""
    aligned = name == "bert"
    options = dict(top_k=3, max_answer_len=max_answer_len, doc_stride=STRIDE, align_to_words=aligned)
    ours = ask(name, question=QUESTION, context=context, **options)
    check_same(ours, expected(name, QUESTION, context, max_answer_len, aligned)[:3])


@pytest.mark.parametrize("context", [LONG, " ".join(LONG.split()[::-1])], ids=["forwards", "backwards"])  # the last window or not
def test_no_answer_has_the_least_of_its_scores(name, context):
    ours = ask(name, question=QUESTION, context=context, handle_impossible_answer=True, top_k=30, doc_stride=STRIDE, max_answer_len=1)
    theirs = expected(name, QUESTION, context, aligned=name == "bert", nothing=True)
    of_nothing = [[answer["score"] for answer in answers if not answer["answer"]] for answers in (ours, theirs)]
    np.testing.assert_allclose(*of_nothing, rtol=1e-4, atol=1e-9)
    assert sorted(ours, key=lambda answer: -answer["score"]) == ours


def test_several_questions_and_every_way_to_ask(name):
    alone = [ask(name, question=question, context=context) for question, context in ((QUESTION, TEXTS[1]), (OTHER, TEXTS[0]))]
    both = dict(question=[QUESTION, OTHER], context=[TEXTS[1], TEXTS[0]])
    pairs = [dict(zip(both, pair)) for pair in zip(*both.values())]
    assert set(alone[0]) == {"score", "start", "end", "answer"}
    for ours in (ask(name, **both), ask(name, pairs)):
        for one, other in zip(ours, alone, strict=True):
            check_same([one], [other])
    check_same([ask(name, pairs[0])], alone[:1])
    shared = ask(name, question=[QUESTION, OTHER], context=TEXTS[1])
    check_same(shared[:1], alone[:1])
    assert ask(name, question=[QUESTION], context=[TEXTS[1]], top_k=2)[0] == ask(name, question=QUESTION, context=TEXTS[1], top_k=2)


def test_a_tokenizer_that_fills_up_on_the_left_has_the_question_last():
    tokenizer, model = MODELS["gpt"]
    left = dataclasses.replace(tokenizer, padding_side="left")
    pipe = pipeline("question-answering", model=model, params=PARAMS["gpt"], tokenizer=left, align_to_words=False)
    contexts = [TEXTS[1], TEXTS[0]]  # the second is the shorter one
    for context, ours in zip(contexts, pipe(question=[OTHER, OTHER], context=contexts, max_seq_len=MOST)):
        read, asked = (tokenizer(text, add_special_tokens=False) for text in (context, OTHER))
        logits = np.asarray(model.apply(PARAMS["gpt"], np.hstack([read.tokens, asked.tokens])).logits[0], np.float64)
        chances = np.exp(logits[: read.tokens.shape[1]])
        chances[0] = 0  # the first token is in no answer
        scores = np.triu(np.outer(*chances.T)) / np.exp(logits[: read.tokens.shape[1]]).sum(0).prod()
        start, end = np.unravel_index(np.tril(scores, 14).argmax(), scores.shape)
        place = dict(start=int(read.offsets[0, start, 0]), end=int(read.offsets[0, end, 1]))
        check_same([ours], [dict(score=scores[start, end], **place, answer=context[slice(*place.values())])])


def test_a_long_question_is_cut_and_a_warning_tells_what(caplog):
    cut = ask("bert", question="the the the dog ran", context=TEXTS[1], max_question_len=3)
    assert "cut off is ' dog ran'" in caplog.text
    check_same([cut], [ask("bert", question="the the the", context=TEXTS[1])])


@pytest.mark.parametrize(
    ("inputs", "options", "sentence"),
    [
        ((), dict(question=QUESTION), "needs both: give question= and context="),
        ((), dict(question=[QUESTION], context=[LONG, LONG]), "there are 1 questions and 2 contexts: expected as many of both"),
        ((), dict(question=" ", context=LONG), "question 0 is .*: expected a question and a context, texts that are not empty"),
        (([{"question": QUESTION}],), {}, "question 0 is {'question': 'Is it quick\\?'}: expected a question and a context"),
        ((), dict(question=QUESTION, context=LONG, top_k=0), "top_k is 0: expected 1 or more"),
        ((), dict(question=QUESTION, context=LONG, doc_stride=60), "stride 60 is not less than the .* tokens of a window"),
        ((), dict(question=QUESTION, context=LONG, max_answer_length=3), "did you mean 'max_answer_len'"),
    ],
)
def test_a_wrong_question_is_one_sentence(inputs, options, sentence):
    with pytest.raises(InputError, match=sentence):
        ask("bert", *inputs, **options)


def test_windows_longer_than_the_model_are_refused():
    tokenizer, model = MODELS["bert"]
    pipe = pipeline("question-answering", model=model, params=PARAMS["bert"], tokenizer=tokenizer)
    with pytest.raises(InputError, match="max_seq_len is 64, and this model takes 48 tokens"):
        pipe(question=QUESTION, context=LONG, max_seq_len=64)
