"""Question answering: windows and spans, the loss in float64, the best span by trying all, and the figures by hand."""

import numpy as np
import pytest
from scipy.special import log_softmax

from flaxllm.errors import InputError
from flaxllm.objectives import question_answering
from objectives.batches import apply, batches, judged, summed, tiny

HEAD = "question-answering"
CONTEXT = "The house on the hill was built in 1921 by a man who never lived in it; his daughter sold it to the town in May."
QUESTION = "When was it built?"


def record(answer: str | None, context: str = CONTEXT, question: str = QUESTION) -> dict:
    answers = {"text": [], "answer_start": []} if answer is None else {"text": [answer], "answer_start": [context.index(answer)]}
    return {"question": question, "context": context, "answers": answers}


def make(tokenizer: str = "bert", family: str = "bert", max_len: int = 40, **options):
    model, params, tokenizer = tiny(family, HEAD, tokenizer)
    options = {"doc_stride": 8, "max_question_len": 20} | options
    return question_answering(model, tokenizer, max_len, **options), model, params, tokenizer


def released_span(sequence_ids, offsets, start_char: int, end_char: int) -> tuple[int, int]:
    """As the example script of transformers (run_qa.py) finds it, step by step."""
    start = 0
    while sequence_ids[start] != 1:
        start += 1
    end = len(sequence_ids) - 1
    while sequence_ids[end] != 1:
        end -= 1
    if not (offsets[start][0] <= start_char and offsets[end][1] >= end_char):
        return 0, 0
    while start < len(offsets) and offsets[start][0] <= start_char:
        start += 1
    while sequence_ids[end] == 1 and offsets[end][1] >= end_char:  # the script goes on into a question without [SEP]
        end -= 1
    return start - 1, end + 1


@pytest.mark.parametrize(("tokenizer", "family"), [("bert", "bert"), ("roberta_prefix", "bert"), ("gpt2", "gpt"), ("t5", "t5")])
def test_answers_are_where_the_released_code_finds_them(tokenizer, family):
    objective, _, _, tokenizer = make(tokenizer, family, max_question_len=24)
    answers = ["The", "1921", "1921 by", "built in 1921", "in May.", "ay", "it; his daughter sold it to the town", "hill"]
    items = objective.items([record(answer) for answer in answers])
    encoded = tokenizer(len(answers) * [QUESTION], len(answers) * [CONTEXT], max_len=40, truncation="only_second", stride=8)
    assert len(items) == len(encoded.row) > 2 * len(answers)
    assert [item.number for item in items] == encoded.row.tolist()
    found = set()
    for row, item in enumerate(items):
        valid, answer = encoded.valid[row], answers[item.number]
        assert item.example["tokens"].tolist() == encoded.tokens[row][valid].tolist()
        start = CONTEXT.index(answer)
        span = released_span(encoded.sequence_ids[row][valid], encoded.offsets[row][valid], start, start + len(answer))
        assert tuple(item.example["span"]) == span
        if span != (0, 0):
            found.add(answer)
            assert answer in CONTEXT[item.offsets[span[0], 0] : item.offsets[span[1], 1]]
    assert found.issuperset(answers[:6])


def test_windows_hold_the_whole_context_and_share_the_stride():
    objective, *_ = make()
    first, *_ = windows = objective.items([record(None)])
    inside = [item.offsets[item.offsets[:, 0] >= 0] for item in windows]
    assert first.offsets[0].tolist() == [-1, -1] and (first.offsets[:, 0] >= 0).sum() == len(inside[0]) < 40
    assert inside[0][-8:].tolist() == inside[1][:8].tolist() and inside[0][-9].tolist() not in inside[1].tolist()
    assert {tuple(place) for part in inside for place in part.tolist()} == {tuple(place) for place in make()[3](CONTEXT, add_special_tokens=False).offsets[0].tolist()}
    assert all(item.example["span"].tolist() == [0, 0] for item in windows)
    assert first.example["token_types"].tolist() == [*(40 - len(inside[0]) - 1) * [0], *len(inside[0]) * [1], 1]


def test_a_long_question_is_cut():
    objective, _, _, tokenizer = make(max_question_len=5)
    (short, *_), (long, *_) = (objective.items([record(None, question=text)]) for text in ("a b c d e", "  a b c d e f g"))
    assert short.example["tokens"].tolist() == long.example["tokens"].tolist()
    assert tokenizer.decode(long.example["tokens"][:7]) == "[CLS] a b c d e [SEP]"
    byte_level = make("gpt2", "gpt")[0]  # a token for each space that the others would have no room beside
    (plain, *_), (late, *_) = (byte_level.items([record(None, question=text)]) for text in ("When?", "   When?"))
    assert plain.example["tokens"].tolist() == late.example["tokens"].tolist()


def test_the_loss_is_the_formula_in_float64():
    objective, model, params, tokenizer = make(max_len=24, doc_stride=2, max_question_len=12)
    items = objective.items([record("1921"), record(None, "It was built."), record("It", "It was built.")])
    assert len({len(item.example["tokens"]) for item in items}) > 1
    loss, right = 0.0, 0
    for item in items:
        # As in the released code, places that only fill up the row take part.
        row = {name: np.pad(item.example[name], (0, 24 - len(item.example[name])))[None] for name in ("tokens", "token_types")}
        inputs = row | {"valid": np.arange(24)[None] < len(item.example["tokens"]), "positions": np.arange(24)[None]}
        log_p = log_softmax(np.asarray(apply(model, params, inputs).logits[0], np.float64), 0)
        start, end = item.example["span"]
        loss -= (log_p[start, 0] + log_p[end, 1]) / 2
        right += ((log_p[:, 0].argmax() == start) + (log_p[:, 1].argmax() == end)) / 2
    for made in (batches(objective, items, 8), batches(objective, items[::-1], 8)):
        sums = summed(objective, params, made)
        assert sums["loss"] == pytest.approx((loss, len(items)), rel=1e-5)
        assert sums["accuracy"] == (right, len(items))
    figures = judged(objective, params, items, 8)
    assert {"exact", "f1", "HasAns_f1", "NoAns_f1", "best_f1"} <= figures.keys()
    assert judged(objective, params, items[:1], 8).keys() == {"exact_match", "f1"}


def logits_for(items, *scores: dict) -> np.ndarray:
    """Logits of 0, but those of some tokens: `{token: (start, end)}` for each window."""
    logits = np.zeros((len(items), 40, 2), np.float32)
    for row, of_row in zip(logits, scores):
        for token, pair in of_row.items():
            row[token] = pair
    return logits


def test_the_best_span_is_that_of_trying_all():
    objective, *_ = make(max_answer_len=3)
    items = objective.items([record("1921")])
    rng = np.random.default_rng(0)
    at_the_end = np.full((len(items), 40, 2), -9.0, np.float32)  # a span could only go on beyond the row
    at_the_end[-1, len(items[-1].offsets) - 2, 0] = 50.0
    for logits in (at_the_end, *rng.normal(size=(30, len(items), 40, 2)).astype(np.float32)):
        best = max(
            (logits[row, start, 0] + logits[row, end, 1], CONTEXT[item.offsets[start, 0] : item.offsets[end, 1]])
            for row, item in enumerate(items)
            for start in np.flatnonzero(item.offsets[:, 0] >= 0)
            for end in range(start, min(start + 3, len(item.offsets)))
            if item.offsets[end, 0] >= 0
        )[1]
        expected = [each._replace(asked=each.asked._replace(answers=[best])) for each in items]
        assert objective.judge.score(expected, {"logits": logits})["exact_match"] == 100.0


def test_the_figures_where_every_question_has_an_answer():
    objective, *_ = make()
    items = objective.items([record("1921"), record("built in 1921")])
    windows = len(items) // 2
    start, end = items[0].example["span"]
    high = {0: (90, 90), start: (5, 0), end: (0, 5)}  # the first token is no answer, however high
    logits = logits_for(items, high, *(windows - 1) * [{}], {start: (5, 0), end: (0, 5)})
    figures = objective.judge.score(items, {"logits": logits})
    assert figures == pytest.approx({"exact_match": 50.0, "f1": (100 + 50) / 2})  # 2 * 1/1 * 1/3 / (1/1 + 1/3) = 1/2


@pytest.mark.parametrize(("threshold", "exact"), [(0.0, 50.0), (2.5, 0.0), (-9.0, 50.0)])
def test_a_question_may_be_left_without_an_answer(threshold, exact):
    objective, *_ = make(null_threshold=threshold)
    items = objective.items([record(None), record("1921")])
    windows = len(items) // 2
    start, end = items[windows].example["span"]
    # No answer: 12, and in one window 4, against 2. The other: -4 against 10, of the wrong span.
    unanswered = [{0: (6, 6), 20: (1, 0), 21: (0, 1)}, *(windows - 1) * [{0: (2, 2)}]]
    answered = [{0: (-2, -2), start - 3: (5, 0), end - 2: (0, 5)}, *(windows - 1) * [{0: (3, 3)}]]
    figures = objective.judge.score(items, {"logits": logits_for(items, *unanswered, *answered)})
    assert figures["exact"] == exact and figures["NoAns_exact"] == (100.0 if threshold < 2 else 0.0)
    assert figures["HasAns_exact"] == 0.0


def test_a_context_without_tokens_has_no_answer():
    objective, *_ = make()
    items = objective.items([record(None, context=" ")])
    assert objective.judge.score(items, {"logits": logits_for(items)})["exact"] == 100.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 3}, "record 0 has 3 as its 'context': expected a string"),
        ({"answers": ["1921"]}, r"record 0 has \['1921'\] as its 'answers': expected a dict of two lists"),
        ({"answers": {"text": ["1921"]}}, "record 0 has .* as its 'answers': expected a dict of two lists of one length"),
        ({"answers": {"text": ["1921"], "answer_start": [3]}}, "record 0 has in its 'answers' '1921' at 3, and its 'context' has other words there"),
        ({"answers": {"text": ["1921"], "answer_start": [4000]}}, "record 0 has in its 'answers' '1921' at 4000"),
        ({"answers": {"text": ["1921"], "answer_start": [None]}}, "record 0 has in its 'answers' '1921' at None"),
        ({"answers": {"text": [""], "answer_start": [3]}}, "record 0 has in its 'answers' '' at 3"),
        ({"answers": {"text": ["May"], "answer_start": [-4]}}, "record 0 has in its 'answers' 'May' at -4"),
        ({"answers": {"text": ["The"], "answer_start": ["0"]}}, "record 0 has in its 'answers' 'The' at '0'"),
    ],
)
def test_a_record_that_cannot_be_is_named(change, message):
    objective, *_ = make()
    with pytest.raises(InputError, match=message):
        objective.items([record("1921") | change])


def test_settings_that_leave_no_room_are_refused():
    with pytest.raises(InputError, match="max_len 31 leaves 8 tokens of a window to the context, beside .* doc_stride 8"):
        make(max_len=31)[0].items([record("1921")])
    assert make(max_len=32)[0].items([record("1921")])
