"""Records in Arrow tables: parquet files, and the data sets of Hugging Face's `datasets`; both packages are optional."""

import io
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from flaxllm.data.json_file import read_object
from flaxllm.data.library_errors import blaming
from flaxllm.data.record_files import Found, unique
from flaxllm.data.sources import opened
from flaxllm.errors import InputError, did_you_mean, optional_library

_HUB = "hub:"
_SPLITS = "dataset_dict.json"  # in a folder with a subfolder for each split
_STATE = "state.json"  # in the folder of one split


def read_parquet(path: Path) -> Iterator[Found]:
    """A parquet file's rows."""
    parquet = optional_library("pyarrow.parquet", str(path), "pyarrow")
    with opened(path) as file:
        content = io.BytesIO(file.read())
    with blaming(f"{path} is no sound parquet file"):
        table = parquet.ParquetFile(content).read()
        unique(table.column_names, str(path))
        rows = table.to_pylist()
    yield from _found(str(path), rows)


def is_dataset(source: str) -> bool:
    """Whether a source is `hub:...`, or a folder that `datasets` saved, with or without `:split`."""
    folder, _ = _folder_and_split(source)
    return source.startswith(_HUB) or any(os.path.exists(folder / name) for name in (_SPLITS, _STATE))


def read_dataset(source: str) -> Iterator[Found]:
    """A data set's rows: of a saved folder, `folder` or `folder:split`, or of the hub, `hub:[OWNER/]NAME[/CONFIG]:SPLIT`."""
    datasets = optional_library("datasets", f"source {source!r}", "datasets")
    with blaming(f"{source} is not read by datasets"):
        if source.startswith(_HUB):
            dataset = datasets.load_dataset(**_on_hub(source))
        else:
            dataset = datasets.load_from_disk(str(_split_folder(source)))
        rows = list(dataset.with_format(None))
    yield from _found(source, rows)


def _on_hub(source: str) -> dict[str, str | None]:
    path, _, split = source.removeprefix(_HUB).partition(":")
    if not path or not split:
        raise InputError(f"source {source!r} names no split: expected hub:NAME:SPLIT or hub:OWNER/NAME/CONFIG:SPLIT")
    parts = path.split("/")
    return {"path": "/".join(parts[:2]), "name": "/".join(parts[2:]) or None, "split": split}


def _folder_and_split(source: str) -> tuple[Path, str]:
    path = os.path.expanduser(source)
    folder, _, split = (path, "", "") if os.path.isdir(path) or ":" not in path else path.rpartition(":")
    return Path(folder), split


def _split_folder(source: str) -> Path:
    folder, split = _folder_and_split(source)
    if not os.path.exists(folder / _SPLITS):
        if split:
            raise InputError(f"source {source!r}: {folder} holds one data set without splits: leave :{split} out")
        return folder
    splits = read_object(folder / _SPLITS)["splits"]
    if split not in splits:
        raise InputError(f"source {source!r} names no split as {str(folder)!r} has, after a colon: {did_you_mean(split, splits)}")
    return folder / split


def _found(where: str, rows: Iterable[dict[str, Any]]) -> Iterator[Found]:
    for index, row in enumerate(rows):
        yield f"{where}[{index}]", partial(dict, row)
