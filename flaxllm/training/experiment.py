"""An experiment file: Python with a function `get_config()`, or `get_config(argument)`, and perhaps `sweep(add)` or `run(config,
workdir)`."""

import importlib.util
import inspect
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ml_collections import ConfigDict

from flaxllm.data.sources import nearest_path
from flaxllm.errors import InputError, did_you_mean
from flaxllm.training.config import default_config
from flaxllm.training.overrides import dotted_keys

_MODULE = "flaxllm_experiment"
_FREE = ("model.", "data.columns.", "data.mixture.")  # the sections whose keys depend on the run


class Experiment(NamedTuple):
    """What a file describes. `sweep` calls the function it is given once for each run, with that run's changes; `run` is what
    is done with the config in place of training once."""

    path: Path
    config: ConfigDict
    sweep: Callable[[Callable[[dict[str, object]], None]], None] | None
    run: Callable[[ConfigDict, Path], None] | None


def load_experiment(spec: str) -> Experiment:
    """The experiment that `"path/to/file.py"`, or `"path/to/file.py:argument"`, names.

    Raises:
      InputError: there is no such file, it fails, or it does not give a config.
    """
    name, _, argument = spec.partition(":")
    path = Path(name).expanduser()
    if not path.is_file():
        what = "is a folder: name a file in it" if path.is_dir() else f"does not exist: {nearest_path(path)}"
        raise InputError(f"the config file {name!r} {what}")
    module = _run(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise InputError(f"{path} has no function get_config(), which makes the config: define it there")
    arguments = [argument] if argument else []
    _check_call(get_config, arguments, path)
    with errors_of(path):
        config = get_config(*arguments)
    _check_config(config, path)
    return Experiment(path, config, getattr(module, "sweep", None), _own_run(module, path))


def make_workdir(workdir: str | Path) -> Path:
    """The folder of a run, made if it is not there, as an absolute path.

    Raises:
      InputError: it cannot be made, or nothing can be written in it.
    """
    path = Path(workdir).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except FileExistsError as error:
        raise InputError(f"the workdir {str(workdir)!r} is a file: name a folder, new or of an earlier run") from error
    except OSError as error:
        raise InputError(
            f"the workdir {str(workdir)!r} cannot be written ({error.strerror}): name another folder"
        ) from error
    return path


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Turns whatever the file's own code raises into one sentence that says where."""
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path} line {lines[-1]}" if lines else str(path)
        if isinstance(error, InputError):
            # What the file itself raises is meant for whoever runs it, and complete.
            raise error if frames[-1].filename == str(path) else InputError(f"{where}: {error}") from error
        if isinstance(error, SyntaxError) and error.filename == str(path):
            raise InputError(f"{path} line {error.lineno or 1} is no Python ({error.msg}): correct it") from error
        raise InputError(f"{where} raised {type(error).__name__}: {_message(error)}") from error


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_MODULE, path, loader=SourceFileLoader(_MODULE, str(path)))
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # as dataclasses and pickle need it
    with errors_of(path):
        spec.loader.exec_module(module)
    return module


def _message(error: Exception) -> str:
    # A ConfigDict's AttributeError holds a KeyError, whose text is quoted once more, and lists all of its values.
    while error.args and isinstance(error.args[0], Exception):
        (error, *_) = error.args
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(re.sub(r'Other fields present: "\{.*\}"', "", text).split()) or "no message"


def _check_call(get_config: Callable, arguments: list[str], path: Path) -> None:
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        if arguments:
            raise InputError(f"{path} takes no argument, got {arguments[0]!r}: write --config={path}") from error
        raise InputError(f"{path} needs an argument: write --config={path}:ARGUMENT") from error


def _own_run(module: ModuleType, path: Path) -> Callable[[ConfigDict, Path], None] | None:
    run = getattr(module, "run", None)
    try:
        if run is not None:
            inspect.signature(run).bind("config", "workdir")
    except TypeError as error:  # a signature that does not fit, or nothing that has one
        raise InputError(f"the run of {path} cannot be called as run(config, workdir): let it take these") from error
    return run


def _check_config(config: object, path: Path) -> None:
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"get_config() of {path} returned a {type(config).__name__}, where a ConfigDict was expected: "
            "start from flaxllm.default_config()"
        )
    objective = config.get("objective", {}).get("name", "causal-lm")
    with errors_of(path):
        default = default_config(objective=objective)
    wanted, found = (
        {key for key in dotted_keys(tree) if key == "model.family" or not key.startswith(_FREE)} for tree in (default, config)
    )
    for key in sorted(wanted - found):
        raise InputError(f"the config of {path} lacks {key}: start from flaxllm.default_config()")
    for key in sorted(found - wanted):
        raise InputError(f"the config of {path} has a key {key!r} that nothing reads: {did_you_mean(key, wanted)}")
