"""The command line: flags, errors in one sentence, and the hand-over to `flaxllm.training`.

A flag is defined for each key of the loaded config, with absl: `ml_collections.config_flags` parses values while it
defines flags, so that its errors are tracebacks, and it knows no key that is near to a wrong one.
"""

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, NoReturn

from absl import flags
from ml_collections import ConfigDict

import flaxllm
from flaxllm import usage
from flaxllm.errors import InputError, did_you_mean
from flaxllm.memory import restart_with_huge_pages

TEXTS = ("config", "workdir", "mode", "slurm")
MODES = ("train", "eval")
SWITCHES = ("dry_run", "sweep", "distributed", "help")
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def launch(arguments: Sequence[str] | None = None) -> NoReturn:
    """`python launch.py`: train, and exit."""
    _exit_with(lambda: _train(_given(arguments), "python launch.py"))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """`flaxllm`: run the named command, and exit."""
    if arguments is None:
        restart_with_huge_pages()
    _exit_with(lambda: _main(_given(arguments)))


def _given(arguments: Sequence[str] | None) -> list[str]:
    return sys.argv[1:] if arguments is None else list(arguments)


def _exit_with(run: Callable[[], int]) -> NoReturn:
    """Exit with what `run` returns; what a person did wrong is one line, what we did wrong keeps its traceback."""
    try:
        code = run()
    except InputError as error:
        code = _complain(f"error: {error}", BAD_INPUT)
    except KeyboardInterrupt:
        code = _complain("interrupted", INTERRUPTED)
    sys.exit(code)


def _complain(sentence: str, code: int) -> int:
    print(" ".join(sentence.splitlines()), file=sys.stderr)
    return code


def _main(arguments: list[str]) -> int:
    commands = {
        "train": lambda rest: _train(rest, "flaxllm train"),
        "inspect": _inspect,
        "convert": _convert,
        "generate": _generate,
        "pipeline": _pipeline,
        "attention": partial(_draw, usage.ATTENTION, "draw_attention"),
        "lens": partial(_draw, usage.LENS, "draw_lens"),
        "serve": _serve,
    }
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h", "help"):
        print(usage.COMMANDS, end="")
        return 0
    if name == "--version":
        print(f"flaxllm {flaxllm.__version__}")
        return 0
    if name not in commands:
        raise InputError(f"flaxllm has no command {name!r}: {did_you_mean(name, commands)}")
    return commands[name](rest)


def _inspect(arguments: list[str]) -> int:
    kinds = {"head": str, "quantize": str, "text": str, "taps": bool}
    given = _command_line(arguments, usage.INSPECT, ("PATH",), kinds)
    if given is None:
        return 0
    if given.flags.pop("taps", False):
        from flaxllm.interpret import show_taps

        if "quantize" in given.flags or "text" in given.flags:
            raise InputError("--taps shows the names of inner values: leave --quantize and --text out")
        show_taps(*given.places, **given.flags)
        return 0
    if "quantize" in given.flags:
        from flaxllm.quantization import show_quantized

        if "head" in given.flags:
            raise InputError("--quantize shows what a language model's weights cost: leave --head out")
        show_quantized(*given.places, given.flags["quantize"], given.flags.get("text"))
        return 0
    if "text" in given.flags:
        raise InputError("--text is what --quantize is measured on: give --quantize=int8 or int4 beside it")
    from flaxllm.pretrained import inspect

    inspect(*given.places, **given.flags)
    return 0


def _convert(arguments: list[str]) -> int:
    given = _command_line(arguments, usage.CONVERT, ("SOURCE", "FOLDER"), {"dtype": str, "head": str})
    if given is not None:
        from flaxllm.pretrained import convert

        convert(*given.places, **given.flags)
    return 0


_WRITING = {
    "max_new_tokens": int, "temperature": float, "top_k": int, "top_p": float, "min_p": float, "typical_p": float,
    "repetition_penalty": float, "presence_penalty": float, "frequency_penalty": float, "no_repeat_ngram_size": int,
    "min_new_tokens": int, "num_beams": int, "length_penalty": float, "stop": str, "seed": int, "chat": bool, "dtype": str,
}  # fmt: skip


def _generate(arguments: list[str]) -> int:
    given = _command_line(arguments, usage.GENERATE, ("PATH", "PROMPT"), _WRITING)
    if given is not None:
        from flaxllm.compiled import keep_compiled
        from flaxllm.pipelines import write

        keep_compiled()
        path, prompt = given.places
        write(path, sys.stdin.read() if prompt == "-" else prompt, **given.flags)
    return 0


def _pipeline(arguments: list[str]) -> int:
    kinds: dict[str, type] = {"dtype": str}
    if arguments and not arguments[0].startswith("-"):
        from flaxllm.pipelines.command import flag_kinds, run_pipeline

        kinds |= flag_kinds(arguments[0])
    given = _command_line(arguments, usage.PIPELINE, ("TASK", "PATH", "[TEXT]"), kinds)
    if given is not None:
        from flaxllm.compiled import keep_compiled

        keep_compiled()
        run_pipeline(*given.places, **given.flags)
    return 0


_DRAWING = {"target": str, "output": str, "png": str, "dtype": str}


def _draw(shown: str, drawing: str, arguments: list[str]) -> int:
    given = _command_line(arguments, shown, ("PATH", "TEXT"), _DRAWING)
    if given is not None:
        from flaxllm.compiled import keep_compiled
        from flaxllm.interpret import command

        keep_compiled()
        path, text = given.places
        getattr(command, drawing)(path, sys.stdin.read() if text == "-" else text, **given.flags)
    return 0


_SERVING = {
    "port": int, "host": str, "slots": int, "max_len": int, "max_queue": int, "served_model_name": str, "timeout": float,
    "dtype": str,
}  # fmt: skip


def _serve(arguments: list[str]) -> int:
    given = _command_line(arguments, usage.SERVE, ("PATH",), _SERVING)
    if given is not None:
        from flaxllm.compiled import keep_compiled
        from flaxllm.serving import serve

        keep_compiled()
        serve(*given.places, **given.flags)
    return 0


class _Given(NamedTuple):
    places: list[str]
    flags: dict[str, object]


def _command_line(arguments: list[str], shown: str, places: Sequence[str], kinds: Mapping[str, type]) -> _Given | None:
    """What is given in `places` (those in brackets may be left out) and as flags, each of its kind; None once the help is
    shown."""
    values = flags.FlagValues()
    for name, kind in kinds.items():
        define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_boolean}
        define[kind](name, None, "", flag_values=values, short_name="o" if name == "output" else None)
    flags.DEFINE_boolean("help", False, "", flag_values=values, short_name="h")
    try:
        rest = values(["flaxllm", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        known = did_you_mean(f"--{error.flagname}", [f"--{name}" for name in (*kinds, "help")])
        raise InputError(f"there is no flag --{error.flagname}: {known}") from error
    except flags.IllegalFlagValueError as error:
        flag, _, reason = str(error).partition(": ")
        raise InputError(f"{flag} cannot be: {reason or 'expected another value'} (--help shows all flags)") from error
    except (flags.Error, ValueError) as error:
        raise InputError(f"{error} (--help shows all flags)") from error
    if values.help:
        print(shown, end="")
        return None
    if not len([place for place in places if place[0] != "["]) <= len(rest) <= len(places):
        raise InputError(f"expected {' and '.join(places)}, got {' and '.join(map(repr, rest)) or 'nothing'} (--help shows more)")
    return _Given(rest, {name: values[name].value for name in kinds if values[name].present})


def _train(arguments: list[str], command: str) -> int:
    values = _train_flags()
    rest = _parse(values, arguments, known_only=True)
    if values.help:
        print(usage.TRAIN.format(command=command), end="")
        return 0
    _check_given(values, rest)
    from flaxllm.training import NonFiniteError, cluster, dry_run, evaluate, experiment, sweep, train

    if values.distributed and values.slurm is None:  # else it is the jobs that join each other
        cluster.start_distributed()
    loaded = experiment.load_experiment(values.config)
    config = _overridden(loaded.config, arguments)
    if loaded.run and (values.mode == "eval" or values.sweep or values.slurm is not None):
        raise InputError(f"{loaded.path} has a run of its own: leave --mode=eval, --sweep and --slurm out")
    trials = sweep.plan_sweep(loaded, config) if values.sweep else []
    if values.dry_run:
        dry_run.dry_run(config)
        sweep.show_plan(trials)
        return 0
    workdir = experiment.make_workdir(values.workdir)
    if values.slurm is not None:
        options = cluster.parse_slurm(values.slurm)
        done = sweep.run_on_slurm(trials, config, workdir, options, values.distributed)
    elif values.sweep:
        done = sweep.run_sweep(trials, workdir)
    else:
        try:
            (evaluate if values.mode == "eval" else loaded.run or train)(config, workdir)
        except NonFiniteError as error:
            return _complain(f"error: {error}", FAILED)
        done = True
    return 0 if done else FAILED


def _train_flags(keys: Mapping[str, bool] | None = None) -> flags.FlagValues:
    """The flags of `train`, and one for each key of the config, of which `keys` says whether it is a switch."""
    values = flags.FlagValues()
    for name in TEXTS:
        flags.DEFINE_string(name, None, "", flag_values=values)
    for name in SWITCHES:
        flags.DEFINE_boolean(name, False, "", flag_values=values, short_name="h" if name == "help" else None)
    for name, is_switch in (keys or {}).items():
        flag = flags.Flag(flags.ArgumentParser(), None, name, None, "", boolean=is_switch)
        flags.DEFINE_flag(flag, values)
    return values


def _parse(values: flags.FlagValues, arguments: list[str], known_only: bool = False) -> list[str]:
    """Parse into `values`, and return what is left: positional arguments and, with `known_only`, unknown flags."""
    try:
        rest = values(["flaxllm", *arguments], known_only)[1:]
    except flags.UnrecognizedFlagError:
        raise
    except flags.IllegalFlagValueError as error:
        raise InputError(f"{str(error).partition(': ')[0]} cannot be: expected true or false") from error
    except (flags.Error, ValueError) as error:
        raise InputError(f"{error} (--help shows all flags)") from error
    for name in TEXTS:
        if (values[name].value or "").startswith("--"):
            raise InputError(f"--{name} needs a value: it is followed by {values[name].value}")
    return rest


def _check_given(values: flags.FlagValues, rest: list[str]) -> None:
    """Raise InputError if a flag that must be given is missing, naming the one that was misspelt in its place."""
    if values.mode not in (None, *MODES):
        raise InputError(f"--mode cannot be {values.mode!r}: {did_you_mean(values.mode, MODES)}")
    if values.mode == "eval" and (values.sweep or values.dry_run or values.slurm is not None):
        raise InputError("--mode=eval judges one run: leave --sweep, --slurm and --dry_run out")
    if values.config and (values.workdir or values.dry_run):
        return
    for before, argument in zip(["", *rest], rest, strict=False):
        is_value = before.startswith("--config.") and "=" not in before
        if argument.startswith("-") and not is_value and not argument.startswith(("--config.", "--noconfig.")):
            raise _unknown_flag(argument.lstrip("-").partition("=")[0])
    if not values.config:
        raise InputError("--config is missing: name an experiment file, such as --config=experiments/quickstart.py")
    raise InputError("--workdir is missing: name the run's folder, such as --workdir=runs/first")


def _overridden(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """The config with what `--config.KEY=VALUE` changes."""
    from flaxllm.training.overrides import dotted_keys, key_type, parse_override, with_changes

    keys = list(dotted_keys(config))
    values = _train_flags({f"config.{key}": key_type(config, key) is bool for key in keys})
    try:
        rest = _parse(values, arguments)
    except flags.UnrecognizedFlagError as error:
        name = error.flagname.removeprefix("no")
        if name.startswith("config."):
            key_type(config, name.removeprefix("config."))  # raises where there is no such key
            raise InputError(f"{name} is no switch: write --{name}=VALUE") from error
        raise _unknown_flag(error.flagname, keys) from error
    if rest:
        raise InputError(f"{rest[0]!r} belongs to no flag: write --name=value (--help shows all flags)")
    texts = {key: values[f"config.{key}"] for key in keys}
    return with_changes(
        config, {key: parse_override(config, key, flag.value) for key, flag in texts.items() if flag.present}
    )


def _unknown_flag(name: str, keys: Iterable[str] = ()) -> InputError:
    known = [f"--{known}" for known in (*TEXTS, *SWITCHES, *(f"config.{key}" for key in keys))]
    near = difflib.get_close_matches(f"--{name}", known, n=1)
    hint = did_you_mean(f"--{name}", near) if near else "--help shows all flags"
    return InputError(f"there is no flag --{name}: {hint}")
