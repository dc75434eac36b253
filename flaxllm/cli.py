"""The command line: flags, errors in one sentence, and the hand-over to `flaxllm.training`.

A flag is defined for each key of the loaded config, with absl: `ml_collections.config_flags` parses values while it
defines flags, so that its errors are tracebacks, and it knows no key that is near to a wrong one.
"""

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from absl import flags
from ml_collections import ConfigDict

import flaxllm
from flaxllm.errors import InputError, did_you_mean
from flaxllm.memory import restart_with_huge_pages

TEXTS = ("config", "workdir", "mode", "slurm")
MODES = ("train", "eval")
SWITCHES = ("dry_run", "sweep", "distributed", "help")
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

TRAIN_HELP = """\
Trains a language model as an experiment file describes. The same command again
resumes where it stopped.

usage: {command} --config=FILE[:ARGUMENT] --workdir=FOLDER [flags]

  --config=FILE[:ARGUMENT]  the experiment: a Python file with get_config()
  --config.KEY=VALUE        change a key: --config.optimizer.learning_rate=3e-4
  --workdir=FOLDER          where checkpoints, metrics and samples go
  --mode=eval               only judge the workdir's model by the held-out set
  --dry_run                 only show parameters, devices, memory and operations
  --sweep                   train each run that the file's sweep(add) adds
  --slurm=OPTION:VALUE,...  train in Slurm jobs: --slurm=partition:gpu,timeout_min:60
  --distributed             join the run's other processes, which are found under
                            Slurm, MPI, Kubernetes and on TPU pods; elsewhere set
                            JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES
                            and JAX_PROCESS_ID
  --help                    show this

examples:
  {command} --config=experiments/quickstart.py --workdir=runs/quickstart
  {command} --config=experiments/quickstart.py --config.mesh=fsdp:4 --dry_run
  {command} --config=experiments/shakespeare_char.py:input.txt \\
      --workdir=runs/rates --sweep
"""

INSPECT_HELP = """\
Shows what a checkpoint holds, without reading its tensors: architecture, parameters
and their names, memory, and what is tied, left out, missing or unmapped.

usage: flaxllm inspect PATH [--head=HEAD] [--quantize=KIND [--text=SOURCE]]

  PATH             a Hugging Face folder, a hub id, or a .gguf file
  --head=HEAD      as another head would see it: base, sequence-classification, ...
  --quantize=KIND  instead, what int8 or int4 weights would save, and cost: memory and
                   perplexity, before and after
  --text=SOURCE    on this text: a file, a folder, python-docs (the default), ...
  --help           show this
"""

CONVERT_HELP = """\
Reads a checkpoint and writes it as a Hugging Face folder, with its tokenizer.

usage: flaxllm convert SOURCE FOLDER [--dtype=DTYPE] [--head=HEAD]

  SOURCE         a Hugging Face folder, a hub id, or a .gguf file
  FOLDER         where config.json, safetensors and tokenizer files go
  --dtype=DTYPE  float32, bfloat16 or float16 (the checkpoint's own unless given)
  --head=HEAD    with another head: base leaves out the one there is
  --help         show this
"""

GENERATE_HELP = """\
Writes on after a prompt with the model of a checkpoint, as it comes.

usage: flaxllm generate PATH PROMPT [flags]

  PATH                      a Hugging Face folder, a hub id, or a .gguf file
  PROMPT                    the text to go on from (- reads it from standard input);
                            for T5 and Marian, what they are to transform
  --max_new_tokens=64       tokens to write at most
  --temperature=1           0 always takes the likeliest token
  --top_k=0 --top_p=1 --min_p=0 --typical_p=1
                            draw among the likeliest only
  --repetition_penalty=1 --presence_penalty=0 --frequency_penalty=0
  --no_repeat_ngram_size=0  no sequence of so many tokens twice
  --min_new_tokens=0        tokens to write at least
  --num_beams=1             search with so many beams (with --length_penalty=1)
  --stop=TEXT               end before this text
  --seed=0                  another one draws another text
  --chat                    put the prompt as a user's message, for chat models
  --dtype=DTYPE             float32, bfloat16 or float16 (the checkpoint's own unless given)
  --help                    show this

examples:
  flaxllm generate HuggingFaceTB/SmolLM2-135M-Instruct --chat "What is a transformer?"
  flaxllm generate google-t5/t5-small --temperature=0 \\
      "translate English to German: The house is wonderful."
"""

SERVE_HELP = """\
Serves a checkpoint over HTTP, as OpenAI's API has it: completions, chat, embeddings.

usage: flaxllm serve PATH [flags]

  PATH                     a Hugging Face folder, a hub id, or a .gguf file
  --port=8000              where to listen
  --host=127.0.0.1         on which address; 0.0.0.0 for all
  --slots=8                so many texts are written at once
  --max_len=2048           tokens of a text, its prompt included
  --max_queue=64           so many may wait; beyond that the answer is 429
  --served_model_name=A,B  the names that clients may ask for
  --timeout=600            seconds after which a request is given up
  --dtype=DTYPE            float32, bfloat16 or float16 (the checkpoint's own unless given)
  --help                   show this

FLAXLLM_API_KEY in the environment is the key that clients must then send.
"""

PIPELINE_HELP = """\
Does a task with a checkpoint: what goes in and comes out is named as in transformers.

usage: flaxllm pipeline TASK PATH [TEXT] [flags]

  TASK            text-classification, token-classification (or ner),
                  question-answering, fill-mask, feature-extraction,
                  text-generation, summarization, translation,
                  translation_en_to_de, zero-shot-classification
  PATH            a Hugging Face folder, a hub id, or a .gguf file
  TEXT            the text (- reads one a line from standard input); for
                  question-answering the context
  --OPTION=VALUE  an option of the task, such as --top_k=3, --question=TEXT,
                  --candidate_labels=A,B, --aggregation_strategy=simple,
                  --num_beams=4, --truncation
  --dtype=DTYPE   float32, bfloat16 or float16 (the checkpoint's own unless given)
  --help          show this

In a pipe each text gives a line of JSON, on a terminal lines to read.

examples:
  flaxllm pipeline translation_en_to_de google-t5/t5-small "The house is wonderful."
  flaxllm pipeline question-answering deepset/roberta-base-squad2 \\
      "My name is Wolfgang and I live in Berlin" --question="Where do I live?"
"""

HELP = """\
Transformer language models as pure JAX functions.

usage: flaxllm COMMAND [flags]

  train       train a model as an experiment file describes
  inspect     show what a checkpoint holds: its architecture, parameters, memory
  convert     write a checkpoint anew: in another dtype, or from a GGUF file
  generate    write text after a prompt
  pipeline    do a task with a checkpoint: classify, answer, translate, ...
  serve       answer over HTTP as OpenAI's API does

`flaxllm COMMAND --help` shows a command's flags, `flaxllm --version` the version.
"""


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
        "serve": _serve,
    }
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if name == "--version":
        print(f"flaxllm {flaxllm.__version__}")
        return 0
    if name not in commands:
        raise InputError(f"flaxllm has no command {name!r}: {did_you_mean(name, commands)}")
    return commands[name](rest)


def _inspect(arguments: list[str]) -> int:
    given = _command_line(arguments, INSPECT_HELP, ("PATH",), {"head": str, "quantize": str, "text": str})
    if given is None:
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
    given = _command_line(arguments, CONVERT_HELP, ("SOURCE", "FOLDER"), {"dtype": str, "head": str})
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
    given = _command_line(arguments, GENERATE_HELP, ("PATH", "PROMPT"), _WRITING)
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
    given = _command_line(arguments, PIPELINE_HELP, ("TASK", "PATH", "[TEXT]"), kinds)
    if given is not None:
        from flaxllm.compiled import keep_compiled

        keep_compiled()
        run_pipeline(*given.places, **given.flags)
    return 0


_SERVING = {
    "port": int, "host": str, "slots": int, "max_len": int, "max_queue": int, "served_model_name": str, "timeout": float,
    "dtype": str,
}  # fmt: skip


def _serve(arguments: list[str]) -> int:
    given = _command_line(arguments, SERVE_HELP, ("PATH",), _SERVING)
    if given is not None:
        from flaxllm.compiled import keep_compiled
        from flaxllm.serving import serve

        keep_compiled()
        serve(*given.places, **given.flags)
    return 0


class _Given(NamedTuple):
    places: list[str]
    flags: dict[str, object]


def _command_line(arguments: list[str], usage: str, places: Sequence[str], kinds: Mapping[str, type]) -> _Given | None:
    """What is given in `places` (those in brackets may be left out) and as flags, each of its kind; None once the help is
    shown."""
    values = flags.FlagValues()
    for name, kind in kinds.items():
        define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_boolean}
        define[kind](name, None, "", flag_values=values)
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
        print(usage, end="")
        return None
    if not len([place for place in places if place[0] != "["]) <= len(rest) <= len(places):
        raise InputError(f"expected {' and '.join(places)}, got {' and '.join(map(repr, rest)) or 'nothing'} (--help shows more)")
    return _Given(rest, {name: values[name].value for name in kinds if values[name].present})


def _train(arguments: list[str], command: str) -> int:
    values = _train_flags()
    rest = _parse(values, arguments, known_only=True)
    if values.help:
        print(TRAIN_HELP.format(command=command), end="")
        return 0
    _check_given(values, rest)
    from flaxllm.training import NonFiniteError, cluster, dry_run, evaluate, experiment, sweep, train

    if values.distributed and values.slurm is None:  # else it is the jobs that join each other
        cluster.start_distributed()
    loaded = experiment.load_experiment(values.config)
    config = _overridden(loaded.config, arguments)
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
            (evaluate if values.mode == "eval" else train)(config, workdir)
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
