"""A tag for each word of a sentence: named entities and the like (Devlin et al. 2019, section 5.3)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

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
    label_index,
    read_field,
    text_arrays,
)
from flaxllm.objectives.objective import Batch, Judge, Objective, Term

_OUTSIDE = "O"


class TaggedWindow(NamedTuple):
    """A sentence, or as much of a long one as fits a row: its arrays, and the words that begin in it."""

    example: dict[str, np.ndarray]
    record: int
    tags: list[str]  # of these words
    places: Int[np.ndarray, " word"]  # the first token of each; -1 for a word that the tokenizer makes nothing of


def token_classification(model: Model, tokenizer: Tokenizer | None, max_len: int, *, all_subtokens: bool = False) -> Objective:
    """Tags of words, learned at the first token of each; with `all_subtokens` at its others too, where a tag B- goes on as I-,
    if there is one. The loss is softmax cross-entropy, the mean over these tokens.

    A record has `words` and as many `tags`, by name or index. A sentence of more than `max_len` tokens makes several rows that
    share none, so that each word counts once. A prediction is that of a word's first token, and "O" where it has none.

    Batches hold `tokens` `[batch, length]` with `segments` and `positions`, `token_types` where the model has some, `targets`
    and `weights` `[batch, length]`.

    Raises:
      InputError: a model without this head; from `items`, a record without its fields, without words, with another number of
        tags, or with a tag that is no label.
    """
    check_head(model, "token-classification", "token-classification")
    labels = model.config.labels

    def terms(params: dict, batch: Batch, ctx: Context) -> dict[str, Term]:
        return class_terms(head_logits(model, params, batch, ctx), batch["targets"], batch["weights"])

    def items(records: Sequence[Mapping[str, Any]]) -> list[TaggedWindow]:
        encode, made = from_left(tokenizer), []
        for numbers, block in blocks(records):
            read = [_read(record, number, labels) for number, record in zip(numbers, block)]
            encoded = encode([words for words, _ in read], max_len=max_len, stride=0, split_words=True)
            for index, (_, tags) in enumerate(read):
                rows = np.flatnonzero(encoded.row == index).tolist()
                made += _windows(model, encoded, rows, tags, numbers[index], all_subtokens)
        return made

    def score(windows: Sequence[TaggedWindow], outputs: dict[str, np.ndarray]) -> dict[str, float]:
        true, predicted = [], []
        for _, parts in groupby(zip(windows, outputs["labels"]), key=lambda part: part[0].record):
            sentence = [(window, [_OUTSIDE if p < 0 else labels[said[p]] for p in window.places]) for window, said in parts]
            true.append([tag for window, _ in sentence for tag in window.tags])
            predicted.append([tag for _, tags in sentence for tag in tags])
        flat = ([tag for tags in side for tag in tags] for side in (predicted, true))
        return metrics.entities(predicted, true) | metrics.accuracy(*flat)

    empty = empty_text(model, max_len)
    return Objective(
        terms=terms,
        weights=loss_weight,
        items=items,
        example=lambda window, rng: window.example,
        empty_row=empty | {"targets": np.zeros(max_len, np.int32), "weights": np.zeros(max_len, np.float32)},
        packs=False,
        fields=("words", "tags"),
        judge=Judge(
            score=score,
            outputs=lambda params, batch, ctx: {"labels": head_logits(model, params, batch, ctx).argmax(-1)},
            library="seqeval",
        ),
    )


def _read(record: Mapping[str, Any], number: int, labels: Sequence[str]) -> tuple[list[str], list[int]]:
    lists = (list, tuple, np.ndarray)
    words = list(read_field(record, number, "words", lists, "a list of words"))
    tags = list(read_field(record, number, "tags", lists, "a list of tags, one a word"))
    if not words or not all(isinstance(word, str) for word in words):
        raise InputError(f"record {number} has {brief(words)} as its 'words': expected strings, one at least")
    if len(tags) != len(words):
        raise InputError(f"record {number} has {len(words)} words and {len(tags)} tags: expected a tag for each word")
    return words, [label_index(labels, tag, number, "tags") for tag in tags]


def _windows(
    model: Model, encoded: Encoded, rows: list[int], tags: list[int], number: int, all_subtokens: bool
) -> Iterator[TaggedWindow]:
    """The rows of a sentence."""
    labels = model.config.labels
    words = encoded.word_ids[rows]  # [row, token], -1 at special tokens
    found, first = np.unique(words, return_index=True)
    found, first = found[found >= 0], first[found >= 0]
    begins = np.zeros(words.shape, bool)
    begins.flat[first] = True
    row_of, place_of = np.zeros(len(tags), np.int32), np.full(len(tags), -1, np.int32)
    row_of[found], place_of[found] = np.divmod(first, words.shape[1])
    row_of = np.maximum.accumulate(row_of)  # a word without tokens goes with the one before
    going_on = [_going_on(tag, labels) for tag in tags]
    targets = np.where(words < 0, 0, np.where(begins, np.take(tags, words), np.take(going_on, words))).astype(np.int32)
    weights = (words >= 0 if all_subtokens else begins).astype(np.float32)
    for index, row in enumerate(rows):
        example = text_arrays(model, encoded, row)
        kept, own = slice(len(example["tokens"])), np.flatnonzero(row_of == index)
        example |= {"targets": targets[index, kept], "weights": weights[index, kept]}
        yield TaggedWindow(example, number, [labels[tags[word]] for word in own], place_of[own])


def _going_on(tag: int, labels: Sequence[str]) -> int:
    """The tag of a word's later tokens."""
    inside = f"I-{labels[tag][2:]}"
    return labels.index(inside) if labels[tag].startswith("B-") and inside in labels else tag
