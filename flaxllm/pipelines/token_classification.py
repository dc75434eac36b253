"""Classes of tokens, and the entities that they make: as transformers joins them (`pipelines/token_classification.py`)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from flaxllm.data.encoding import Encoded
from flaxllm.errors import InputError, did_you_mean
from flaxllm.pipelines.loaded import Loaded, encode, listed, logits, run, softmax

STRATEGIES = ("none", "simple", "first", "average", "max")


class Piece(NamedTuple):
    """A token, or a word once its tokens are joined; the text has it at `start` to `end`."""

    word: str
    scores: Float[np.ndarray, "classes"]
    index: int  # among the row's tokens
    start: int
    end: int
    goes_on: bool = False  # the word of the token before


def token_classification(
    at: Loaded,
    inputs: str | Sequence[str],
    *,
    aggregation_strategy: str = "none",
    ignore_labels: Sequence[str] = ("O",),
    stride: int | None = None,
    truncation: bool = False,
) -> list[dict] | list[list[dict]]:
    """The tokens of each text whose label is none of `ignore_labels`, or the entities that they make.

    `aggregation_strategy`: "none" gives `entity`, `score`, `index`, `word`, `start` and `end` of each token. The others give
    entities (`entity_group`, `score`, `word`, `start`, `end`): "simple" joins neighbours of one class that no B- parts;
    "first", "average" and "max" let the tokens of a word have one class before, that of the first, of the mean of their
    scores, or of the highest score. With `stride` a text of more tokens than the model takes is read in windows that share so
    many; of entities that overlap the longest is kept.
    """
    if aggregation_strategy not in STRATEGIES:
        near = did_you_mean(aggregation_strategy, STRATEGIES)
        raise InputError(f"aggregation_strategy cannot be {aggregation_strategy!r}: {near}")
    if stride is not None and aggregation_strategy == "none":
        raise InputError("stride reads a text in windows, and joins the entities of both: choose an aggregation_strategy too")
    texts = listed(inputs)
    encoded = [_encoded(at, text, number, stride, truncation) for number, text in enumerate(texts)]
    results = []
    for text, each, rows in zip(texts, encoded, run(at, logits, encoded)):
        found = []
        for number, classes in enumerate(rows):
            pieces = _pieces(at, text, each, number, softmax(classes))
            entities = _entities(at, pieces, aggregation_strategy)
            found += [e for e in entities if e.get("entity", e.get("entity_group")) not in ignore_labels]
        results.append(_without_overlaps(found) if len(rows) > 1 else found)
    return results[0] if isinstance(inputs, str) else results


def _encoded(at: Loaded, text: str, number: int, stride: int | None, truncation: bool) -> Encoded:
    if stride is None:
        return encode(at, text, None, number, truncation)
    if at.cut_len is None:
        raise InputError("stride reads a text in windows as long as the model takes, and this one takes any: leave stride out")
    return at.tokenizer(text, max_len=at.cut_len, stride=stride, padding_side="right")


def _pieces(at: Loaded, text: str, encoded: Encoded, row: int, scores: Float[np.ndarray, "token classes"]) -> list[Piece]:
    """The tokens of a row that are the text's."""
    backend, unknown = at.tokenizer.backend, at.tokenizer.unk
    prefix = getattr(backend.model, "continuing_subword_prefix", None)
    pieces = []
    for index in np.flatnonzero(~encoded.special[row]).tolist():
        start, end = encoded.offsets[row, index].tolist()
        token = int(encoded.tokens[row, index])
        word = backend.id_to_token(token)
        if prefix:
            goes_on = len(word) != end - start
        else:  # such tokenizers mark no words: what no space parts is taken for one
            goes_on = start > 0 and " " not in text[start - 1 : start + 1]
        if token == unknown:
            word, goes_on = text[start:end], False
        pieces.append(Piece(word, scores[index], index, start, end, goes_on))
    return pieces


def _entities(at: Loaded, pieces: list[Piece], strategy: str) -> list[dict]:
    if strategy not in ("none", "simple"):
        words: list[list[Piece]] = []
        for piece in pieces:
            if words and piece.goes_on:
                words[-1].append(piece)
            else:
                words.append([piece])
        pieces = [_word(at, word, strategy) for word in words]
    labels = [at.model.config.labels[piece.scores.argmax()] for piece in pieces]
    if strategy == "none":
        return [
            {
                "entity": label, "score": float(piece.scores.max()), "index": piece.index, "word": piece.word,
                "start": piece.start, "end": piece.end,
            }
            for label, piece in zip(labels, pieces)
        ]  # fmt: skip
    groups: list[tuple[str, list[Piece]]] = []  # each under its first one's label
    for label, piece in zip(labels, pieces):
        if groups and _class(groups[-1][0]) == _class(label) and not label.startswith("B-"):
            groups[-1][1].append(piece)
        else:
            groups.append((label, [piece]))
    return [
        {
            "entity_group": label.split("-", 1)[-1], "score": float(np.mean([piece.scores.max() for piece in group])),
            "word": _joined(at, group), "start": group[0].start, "end": group[-1].end,
        }
        for label, group in groups
    ]  # fmt: skip


def _class(label: str) -> str:
    return label[2:] if label[:2] in ("B-", "I-") else label


def _word(at: Loaded, pieces: list[Piece], strategy: str) -> Piece:
    """The tokens of a word as one piece."""
    scores = {
        "first": lambda: pieces[0].scores,
        "max": lambda: max((piece.scores for piece in pieces), key=np.max),
        "average": lambda: np.mean([piece.scores for piece in pieces], axis=0),
    }[strategy]()
    return Piece(_joined(at, pieces), scores, pieces[0].index, pieces[0].start, pieces[-1].end)


def _joined(at: Loaded, pieces: list[Piece]) -> str:
    words, decoder = [piece.word for piece in pieces], at.tokenizer.backend.decoder
    return " ".join(words) if decoder is None else decoder.decode(words)


def _without_overlaps(entities: list[dict]) -> list[dict]:
    """Of entities that overlap the longest, and of those the one with the highest score."""
    kept: list[dict] = []
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        if not kept or not kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            kept.append(entity)
        elif _weight(entity) > _weight(kept[-1]):
            kept[-1] = entity
    return kept


def _weight(entity: dict) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
