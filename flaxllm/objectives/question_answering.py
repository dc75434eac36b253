"""Questions whose answers stand in a text: where an answer begins and ends (Devlin et al. 2019, sections 4.2 and 4.3)."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from flaxllm import metrics
from flaxllm.data import Tokenizer
from flaxllm.data.encoding import Encoded
from flaxllm.data.json_file import brief
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.objectives.causal_lm import loss_weight
from flaxllm.objectives.labelled import (
    blocks,
    check_head,
    class_terms,
    empty_text,
    from_left,
    head_logits,
    read_field,
    text_arrays,
)
from flaxllm.objectives.objective import Batch, Judge, Objective, Term

_ANSWERS = "a dict of two lists of one length, 'text' and 'answer_start'"


class Asked(NamedTuple):
    """What a record asks, and its answers: none where the context has none."""

    question: str
    context: str
    answers: list[str]
    place: tuple[int, int] | None  # where in the context the first answer starts and ends


class Window(NamedTuple):
    """A question and a part of its context, as arrays, and where its tokens stand in the context."""

    example: dict[str, np.ndarray]
    number: int  # of the record
    asked: Asked
    offsets: Int[np.ndarray, "token 2"]  # the characters of the context, start and end; -1 at all other tokens


def question_answering(
    model: Model,
    tokenizer: Tokenizer | None,
    max_len: int,
    *,
    doc_stride: int = 128,
    max_question_len: int = 64,
    max_answer_len: int = 30,
    null_threshold: float = 0.0,
) -> Objective:
    """Answers as spans of a context, each window of a long one a row; windows share `doc_stride` tokens.

    A record has `question`, `context` and `answers`, as SQuAD has them: {"text": [...], "answer_start": [...]}, where the
    starts are characters and both are empty where there is no answer. The first answer is learned; a window that does not
    hold all of it points at its first token ([CLS] in BERT). A question is cut to `max_question_len` tokens.

    The loss is the mean of the cross-entropies of start and end over all places of the row. As in the released code of BERT,
    and in transformers, those of the question and of padding are not left out of it.

    An answer is judged as the span of at most `max_answer_len` tokens with the highest sum of a start's and an end's score,
    over all windows. Where some record has no answer, none is given if the least score of a window's first token as both,
    less that of the best span, is above `null_threshold`. The figures are those of SQuAD 1.1 or, then, 2.0.

    Batches hold `tokens` `[batch, length]` with `segments` and `positions`, `token_types` where the model has some, `span`
    `[batch, 2]`, the first and the last token of the answer, and `weights` `[batch]`.

    Raises:
      InputError: a model without this head; from `items`, too little room for a context, a record without its fields, or
        one whose answer does not stand in its context at its start.
    """
    check_head(model, "question-answering", "question-answering")

    def terms(params: dict, batch: Batch, ctx: Context) -> dict[str, Term]:
        logits = head_logits(model, params, batch, ctx).swapaxes(1, 2)
        return class_terms(logits, batch["span"], jnp.stack(2 * [batch["weights"] / 2], axis=1))

    def items(records: Sequence[Mapping[str, Any]]) -> list[Window]:
        encode = from_left(tokenizer)
        room = max_len - encode("", "").tokens.shape[1] - max_question_len
        if room <= doc_stride:
            raise InputError(
                f"max_len {max_len} leaves {room} tokens of a window to the context, beside a question of max_question_len "
                f"{max_question_len}, and windows share doc_stride {doc_stride}: raise the first, or lower the others"
            )
        made = []
        for numbers, block in blocks(records):
            asked = [_read(record, number) for number, record in zip(numbers, block)]
            encoded = encode(
                _cut(encode, [each.question for each in asked], max_question_len),
                [each.context for each in asked],
                max_len=max_len,
                truncation="only_second",
                stride=doc_stride,
            )
            made += [_window(model, encoded, row, numbers[index], asked[index]) for row, index in enumerate(encoded.row)]
        return made

    def score(windows: Sequence[Window], outputs: dict[str, np.ndarray]) -> dict[str, float]:
        answers, references, null_scores = [], [], []
        for _, parts in groupby(zip(windows, outputs["logits"]), key=lambda part: part[0].number):
            parts = list(parts)
            answer, best = max((_best_span(*part, max_answer_len) for part in parts), key=lambda found: found[1])
            answers.append(answer)
            references.append(parts[0][0].asked.answers)
            null_scores.append(min(logits[0].sum() for _, logits in parts) - best)
        if all(references):
            return metrics.squad(answers, references)
        return metrics.squad_v2(answers, references, np.array(null_scores), null_threshold)

    return Objective(
        terms=terms,
        weights=loss_weight,
        items=items,
        example=lambda window, rng: window.example | {"weights": np.ones((), np.float32)},
        empty_row=empty_text(model, max_len) | {"span": np.zeros(2, np.int32), "weights": np.zeros((), np.float32)},
        packs=False,
        fields=("question", "context", "answers"),
        judge=Judge(score=score, outputs=lambda params, batch, ctx: {"logits": head_logits(model, params, batch, ctx)}),
    )


def _read(record: Mapping[str, Any], number: int) -> Asked:
    question, context = (read_field(record, number, name, str, "a string") for name in ("question", "context"))
    answers = read_field(record, number, "answers", Mapping, _ANSWERS)
    texts, starts = (list(answers.get(name, ())) for name in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise InputError(f"record {number} has {brief(dict(answers))} as its 'answers': expected {_ANSWERS}")
    for text, start in zip(texts, starts):
        is_place = isinstance(text, str) and text and isinstance(start, int | np.integer) and start >= 0
        if not (is_place and context.startswith(text, start)):
            raise InputError(
                f"record {number} has in its 'answers' {brief(text)} at {brief(start)}, and its 'context' has other words there: "
                "expected the place of the answer's first character"
            )
    return Asked(question.lstrip(), context, texts, (starts[0], starts[0] + len(texts[0])) if texts else None)


def _cut(tokenizer: Tokenizer, questions: list[str], most: int) -> list[str]:
    """The questions without what their first `most` tokens do not spell."""
    encoded = tokenizer(questions, add_special_tokens=False, max_len=most)
    return [question[: offsets[:, 1].max(initial=0)] for question, offsets in zip(questions, encoded.offsets)]


def _window(model: Model, encoded: Encoded, row: int, number: int, asked: Asked) -> Window:
    example = text_arrays(model, encoded, row)
    length = len(example["tokens"])
    of_context = encoded.sequence_ids[row, :length] == 1
    offsets = np.where(of_context[:, None], encoded.offsets[row, :length], -1)
    span = [0, 0] if asked.place is None else _tokens_of(asked.place, offsets)
    return Window(example | {"span": np.array(span, np.int32)}, number, asked, offsets)


def _tokens_of(place: tuple[int, int], offsets: Int[np.ndarray, "token 2"]) -> list[int]:
    """The first and the last token of what stands at `place` in the context; 0 and 0 where not all of it is in the window."""
    start, end = place
    tokens = np.flatnonzero(offsets[:, 0] >= 0)
    starts, ends = offsets[tokens].T
    if not len(tokens) or start < starts[0] or ends[-1] < end:
        return [0, 0]
    return tokens[[np.searchsorted(starts, start, side="right") - 1, np.searchsorted(ends, end)]].tolist()


def _best_span(window: Window, logits: Float[np.ndarray, "token ends"], max_len: int) -> tuple[str, float]:
    """The span of the highest score in a window, as text, and its score."""
    offsets = window.offsets
    starts, ends = np.where(offsets[:, 0] >= 0, logits[: len(offsets)].T, -np.inf)
    ends = np.concatenate([ends, np.full(max_len - 1, -np.inf)])
    scores = starts[:, None] + np.lib.stride_tricks.sliding_window_view(ends, max_len)  # [first, tokens after it]
    first, more = np.unravel_index(scores.argmax(), scores.shape)
    # Without a token of the context these are -1 to -1: an empty text.
    return window.asked.context[offsets[first, 0] : offsets[first + more, 1]], float(scores[first, more])
