"""What a run learns from and what it is judged by, as its config names them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from flaxllm import data
from flaxllm.errors import InputError, did_you_mean
from flaxllm.objectives import Objective, objective_kind

Source = data.Documents | list[dict[str, Any]]
_SHOWN = 3  # sentences on records that were left out
PART_KEYS = ("source", "eval_source", "format", "columns", "column", "malformed", "prefix", "rate", "metric")


class Part(NamedTuple):
    """One of the sets that a run reads, and what is held out of it. `settings` are those of `config.data`, with its own."""

    train: Source
    eval: Source
    settings: ConfigDict


class Reading(NamedTuple):
    """`parts` by their names; the one of a run that mixes none has an empty name. The fingerprint is of all of them, of how
    they were split, and of the tokenizer."""

    tokenizer: data.Tokenizer
    parts: dict[str, Part]
    fingerprint: str
    skipped: list[str]  # a sentence for each record that was left out


def read_data(config: ConfigDict) -> Reading:
    """The tokenizer, trained if it must be, and what is trained on and held out.

    Raises:
      InputError: a source cannot be read, or leaves one side empty.
    """
    settings = part_settings(config)
    reads_records = _reads_records(config)
    read = {name: _records(part) for name, part in settings.items()} if reads_records else None
    tokenizer = make_tokenizer(config, read)
    parts, facts, skipped = {}, [], []
    for name, part in settings.items():
        if reads_records:
            train, held_out, fact = _split_records(read[name], part)
            skipped += [sentence for side in read[name] for sentence in side.skipped]
        else:
            train, held_out, fact = _split_text(part, tokenizer)
        parts[name] = Part(train, held_out, part)
        facts.append([name, fact])
    if not reads_records and list(settings) == [""]:
        return Reading(tokenizer, parts, facts[0][1], skipped)
    text = json.dumps([facts, tokenizer.fingerprint])
    return Reading(tokenizer, parts, hashlib.sha256(text.encode()).hexdigest(), skipped)


def make_tokenizer(config: ConfigDict, read: dict[str, list[data.Records]] | None = None) -> data.Tokenizer:
    """The tokenizer, made of what all parts train on if it must be made; the text is read only then, or was `read` before."""

    def texts() -> Iterator[str]:
        for name, part in part_settings(config).items():
            if _reads_records(config):
                source = _read(part, part.source) if read is None else read[name][0]
                yield part.get("prefix") or ""
                yield from (text for row in source.rows for text in _strings(row))
            else:
                yield from data.read_documents(part.source, part.column)

    return data.make_tokenizer(config.data.tokenizer, texts(), config.data.vocab_size)


def _reads_records(config: ConfigDict) -> bool:
    return objective_kind(config.objective.name).reads_records


def make_items(objective: Objective, source: Source, malformed: str, report: Callable[[str], None]) -> Sequence[Any]:
    """The objective's items of a source. Records that it cannot use are reported and left out, where `malformed` is "skip".

    Raises:
      InputError: a record cannot be used and `malformed` is "stop", or none can.
    """
    try:
        return objective.items(source)
    except InputError:
        if malformed == "stop" or not isinstance(source, list):
            raise
    usable, wrong = [], []
    for number, record in enumerate(source):
        try:
            objective.items([record])
            usable.append(record)
        except InputError as error:
            wrong.append(str(error).replace("record 0", f"record {number}", 1))
    report_left_out(wrong, report)
    if not usable:
        raise InputError(f"none of the {len(source)} records can be used, as said above: look at data.columns and data.max_len")
    return objective.items(usable)


def report_left_out(sentences: list[str], report: Callable[[str], None]) -> None:
    """Say which records were left out: the first few, and how many."""
    for sentence in sentences[:_SHOWN]:
        report(f"left out: {sentence}")
    if len(sentences) > _SHOWN:
        report(f"left out: {len(sentences) - _SHOWN} records more")


def part_settings(config: ConfigDict) -> dict[str, ConfigDict]:
    """The settings of each part of the data: those of the config, or each of a mixture's over them.

    Raises:
      InputError: a part of a mixture has a key that no part has.
    """
    common = config.data.to_dict()
    mixture = common.pop("mixture")
    if not mixture:
        return {"": ConfigDict(common)}
    parts = {}
    for name, own in mixture.items():
        for key in own:
            if key not in PART_KEYS:
                raise InputError(f"data.mixture.{name} has a key {key!r} that nothing reads: {did_you_mean(key, PART_KEYS)}")
        parts[name] = ConfigDict(common | own)
    return parts


def _records(part: ConfigDict) -> list[data.Records]:
    """The records of the source, and those of the source of evaluation if it has one."""
    sources = [part.source, *([part.eval_source] if part.eval_source else [])]
    return [_read(part, source) for source in sources]


def _read(part: ConfigDict, source: str) -> data.Records:
    return data.read_records(source, dict(part.columns), part.format, part.malformed)


def _split_records(sides: list[data.Records], part: ConfigDict) -> tuple[list[dict], list[dict], list]:
    """What is trained on, what is held out, and what tells whether either has changed."""
    prefix = part.get("prefix") or ""
    rows = [[row | {"prefix": prefix} if prefix else row for row in side.rows] for side in sides]
    prints = [side.fingerprint for side in sides]
    if len(rows) == 2:
        return *rows, [*prints, prefix]
    train, held_out = data.split_rows(len(rows[0]), part.holdout, part.eval_fraction)
    if not len(train):
        raise InputError(f"holding out {part.eval_fraction} of {len(rows[0])} records leaves none to train on: use less or more")
    how = [part.holdout, float(part.eval_fraction)]
    return [rows[0][i] for i in train], [rows[0][i] for i in held_out], [*prints, prefix, *how]


def _split_text(part: ConfigDict, tokenizer: data.Tokenizer) -> tuple[data.Documents, data.Documents, str]:
    corpus = data.load_corpus(part.source, tokenizer, part.column)
    if part.eval_source is None:
        sides = data.split(corpus, part.holdout, part.eval_fraction)
        return sides.train, sides.eval, sides.fingerprint
    held_out = data.load_corpus(part.eval_source, tokenizer, part.column)
    return data.whole(corpus), data.whole(held_out), f"{corpus.digest} {held_out.digest} {tokenizer.fingerprint}"


def _strings(value: Any) -> Iterator[str]:
    """All text in a record."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
