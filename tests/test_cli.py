"""The command line as it is met: real processes for exit codes and output, calls in this one for the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import flaxllm
from flaxllm import cli, training
from flaxllm.training import cluster, sweep
from pipelines.folders import gpt_folder
from pretrained import gpt2

ROOT = Path(flaxllm.__file__).parents[1]
EXPERIMENT = """
import flaxllm

def get_config(source="python-docs"):
    config = flaxllm.default_config(
        "gpt2-124m", max_len=16, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=32
    )
    config.data.update(source=source, max_len=16, batch_size=8)
    config.optimizer.update(warmup_steps=1)
    config.train.update(num_steps=2, eval_every=0, sample_every=0, checkpoint_every=0)
    config.unlock().train.flag = False
    return config

def sweep(add):
    add({"seed": 1})
    add({"seed": 2})
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with an experiment file and a text."""
    monkeypatch.setenv("FLAXLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(EXPERIMENT.replace("    config.unlock().train.flag = False\n", ""))
    Path("text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 200)
    return tmp_path


def in_process(*arguments: str, face=cli.launch) -> int:
    """The exit code of a call here."""
    with pytest.raises(SystemExit) as left:
        face(arguments)
    return left.value.code or 0


def launch(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--confg=tiny.py"], "there is no flag --confg: did you mean '--config'?"),
        (["--config=tiny.py", "--workdir=text.txt"], "the workdir 'text.txt' is a file: name a folder"),
        (["--config=tny.py", "--workdir=w"], "the config file 'tny.py' does not exist: did you mean 'tiny.py'?"),
        (["--config=tiny.py:txt.txt", "--workdir=w"], "there is no source 'txt.txt': did you mean 'text.txt'?"),
        (["--config=tiny.py", "--dry_run", "--config.mesh=data:2,fsdp:-1,modl:2"], "did you mean 'model'?"),
    ],
)
def test_what_a_person_did_wrong_is_one_line_and_code_2(arguments, sentence):
    left = launch(*arguments)
    assert (left.returncode, left.stdout) == (2, "")
    assert left.stderr.startswith("error: ") and sentence in left.stderr
    assert left.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_run_in_a_process_of_its_own(folder):
    left = launch("--config=tiny.py:text.txt", "--workdir=w", "--config.train.num_steps", "1")
    assert (left.returncode, left.stderr) == (0, "")
    assert left.stdout.startswith("step 1/1  loss ")
    assert (folder / "w" / "metrics.jsonl").read_text().count("\n") == 1


def test_help_is_quick_and_short():
    script = "import sys; from flaxllm import cli\ntry: cli.launch(['--help'])\nfinally: print('jax' in sys.modules)"
    left = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    *text, imported = left.stdout.splitlines()
    assert imported == "False"
    assert text[0].startswith("Trains ") and len(text) < 30 and max(map(len, text)) <= 88
    for name in (*cli.TEXTS, *cli.SWITCHES):
        assert f"  --{name}" in left.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--config is missing: name an experiment file, such as --config=experiments/quickstart.py"),
        (["--config=", "--workdir=w"], "--config is missing"),
        (["--config=tiny.py"], "--workdir is missing: name the run's folder"),
        (["--config=tiny.py", "--config.seed", "-3"], "--workdir is missing: name the run's folder"),
        (["--config=tiny.py", "--work_dir=w"], "there is no flag --work_dir: did you mean '--workdir'?"),
        (["--config=tiny.py", "--workdir=w", "--dryrun"], "there is no flag --dryrun: did you mean '--dry_run'?"),
        (["--config=tiny.py", "--workdir=w", "--zzz"], "there is no flag --zzz: --help shows all flags"),
        (["--config=tiny.py", "--dry_run", "--optimizer.learning_rate=1"], "mean '--config.optimizer.learning_rate'?"),
        (["--config=tiny.py", "--workdir"], "Missing value for flag --workdir (--help shows all flags)"),
        (["--workdir", "--config=tiny.py"], "--workdir needs a value: it is followed by --config=tiny.py"),
        (["--config=tiny.py", "--workdir=w", "extra"], "'extra' belongs to no flag: write --name=value"),
        (["--config=tiny.py", "--dry_run=maybe"], "flag --dry_run=maybe cannot be: expected true or false"),
        (["--config=tiny.py", "--nodry_run=1"], "--nodry_run=1 does not take an argument"),
        (["--config=tiny.py", "--dry_run", "--config.optimizer=1"], "config.optimizer is a section: set one of"),
        (["--config=tiny.py", "--dry_run", "--config.sed", "1"], "there is no config.sed: did you mean 'config.seed'?"),
        (["--config=tiny.py", "--dry_run", "--config.seed=x"], "config.seed takes a whole number, not 'x'"),
        (["--config=tiny.py", "--dry_run", "--noconfig.seed"], "config.seed is no switch: write --config.seed=VALUE"),
        (["--config=tiny.py", "--dry_run", "--noconfig.sed"], "there is no config.sed: did you mean 'config.seed'?"),
        (["--config=tiny.py", "--workdir=w", "--slurm=partion:x"], "--slurm has no option 'partion'"),
        (["--config=tiny.py", "--workdir=w", "--slurm="], "--slurm needs the minutes that a job may take"),
        (["--config=tiny.py", "--workdir=tiny.py", "--sweep"], "the workdir 'tiny.py' is a file"),
    ],
)
def test_every_wrong_flag_has_its_sentence(arguments, sentence, capsys):
    assert in_process(*arguments) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and printed.out == ""


@pytest.fixture
def trained(monkeypatch) -> list[tuple]:
    """What training was called with, in its place."""
    calls = []
    monkeypatch.setattr(training, "train", lambda config, workdir: calls.append((config, workdir)))
    return calls


def test_overrides_reach_the_run_in_every_form(folder, trained):
    code = in_process(
        "--config.sample.temperature", "1", "--workdir", "w", "--config.optimizer.learning_rate=2e-3",
        "--config=tiny.py:text.txt", "-config.seed", "-3", "--config.sample.prompt=a=b c", "--config.remat=full",
        "--config.remat=None",
    )  # fmt: skip
    ((config, workdir),) = trained
    assert code == 0 and workdir == folder / "w" and workdir.is_dir()
    assert (config.optimizer.learning_rate, config.seed, config.sample.prompt) == (2e-3, -3, "a=b c")
    assert config.remat is None and config.sample.temperature == 1.0 and config.data.source == "text.txt"


@pytest.mark.parametrize(
    ("given", "value"),
    [("--config.train.flag", True), ("--noconfig.train.flag", False), ("--config.train.flag=true", True)],
)
def test_a_switch_in_the_config_needs_no_value(given, value, trained, monkeypatch):
    monkeypatch.setattr("flaxllm.training.experiment._check_config", lambda config, path: None)
    Path("flags.py").write_text(EXPERIMENT.replace("flag = False", f"flag = {not value}"))
    assert in_process("--config=flags.py", "--workdir=w", given, "--nosweep") == 0
    assert trained[0][0].train.flag is value


RUN = """
def run(config, workdir):
    (workdir / "ran").write_text(str(config.seed))
"""


def test_an_experiments_own_run_takes_the_place_of_training(folder, trained):
    Path("own.py").write_text(Path("tiny.py").read_text() + RUN)
    assert in_process("--config=own.py", "--workdir=w", "--config.seed=5") == 0
    assert (folder / "w" / "ran").read_text() == "5" and trained == []


def test_it_is_planned_as_any_other(folder, capsys):
    Path("own.py").write_text(Path("tiny.py").read_text() + RUN)
    assert in_process("--config=own.py", "--dry_run") == 0
    assert "memory on a device" in capsys.readouterr().out and not Path("w").exists()


@pytest.mark.parametrize("flag", ["--mode=eval", "--sweep", "--slurm=timeout_min:9"])
def test_what_an_own_run_cannot_be_done_with_is_said(flag, capsys, trained):
    Path("own.py").write_text(Path("tiny.py").read_text() + RUN)
    assert in_process("--config=own.py", "--workdir=w", flag) == 2
    assert capsys.readouterr().err == "error: own.py has a run of its own: leave --mode=eval, --sweep and --slurm out\n"
    assert trained == [] and not Path("w").exists()


def raising(error: BaseException):
    def train(config, workdir):
        raise error

    return train


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (training.NonFiniteError("step 3: the loss is nan"), 1, "error: step 3: the loss is nan\n"),
        (flaxllm.InputError("no such\nthing"), 2, "error: no such thing\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (SystemExit(143), 143, ""),
    ],
)
def test_how_a_run_ends_is_its_exit_code(error, code, line, monkeypatch, capsys):
    monkeypatch.setattr(training, "train", raising(error))
    assert in_process("--config=tiny.py", "--workdir=w") == code
    assert capsys.readouterr().err == line


def test_what_we_did_wrong_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(training, "train", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.launch(["--config=tiny.py", "--workdir=w"])


def test_a_dry_run_trains_nothing_and_needs_no_workdir(trained, capsys):
    assert in_process("--config=tiny.py:/nowhere", "--dry_run", "--sweep") == 0
    printed = capsys.readouterr().out
    assert trained == [] and not Path("w").exists()
    assert "layers/mlp/up/kernel" in printed and "memory on a device" in printed
    assert printed.splitlines()[-2:] == ["run 1 of 2: seed=1", "run 2 of 2: seed=2"]


@pytest.mark.parametrize(("done", "code"), [(True, 0), (False, 1)])
def test_a_sweep_is_handed_over_and_tells_whether_it_got_through(done, code, folder, monkeypatch):
    calls = []
    monkeypatch.setattr(sweep, "run_sweep", lambda trials, workdir: calls.append((trials, workdir)) or done)
    assert in_process("--config=tiny.py", "--workdir=w", "--sweep", "--config.train.num_steps=7") == code
    ((trials, workdir),) = calls
    assert workdir == folder / "w"
    assert [(trial.config.seed, trial.config.train.num_steps) for trial in trials] == [(1, 7), (2, 7)]


def test_jobs_are_handed_over_with_their_options(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(sweep, "run_on_slurm", lambda *arguments: calls.append(arguments) or True)
    monkeypatch.setattr(cluster, "start_distributed", lambda: calls.append("joined here"))
    assert in_process("--config=tiny.py", "--workdir=w", "--slurm=timeout_min:9", "--distributed") == 0
    ((trials, config, workdir, options, distributed),) = calls
    assert (trials, config.seed, workdir, options, distributed) == ([], 0, folder / "w", {"timeout_min": 9}, True)


def test_processes_join_before_the_file_is_loaded(monkeypatch, trained):
    Path("late.py").write_text(EXPERIMENT.replace("import flaxllm\n", "import flaxllm\nraise RuntimeError('loaded')\n"))
    order = []
    monkeypatch.setattr(cluster, "start_distributed", lambda: order.append("joined"))
    assert in_process("--config=late.py", "--workdir=w", "--distributed") == 2
    assert order == ["joined"] and trained == []


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_the_console_script_says_what_it_can(arguments, capsys):
    assert in_process(*arguments, face=cli.main) == 0
    assert "  train  " in capsys.readouterr().out


def test_the_console_script_trains_and_tells_its_version(trained, capsys):
    assert in_process("train", "--config=tiny.py", "--workdir=w", face=cli.main) == 0 and len(trained) == 1
    assert in_process("--version", face=cli.main) == 0
    assert capsys.readouterr().out == f"flaxllm {flaxllm.__version__}\n"
    assert in_process("train", "--help", face=cli.main) == 0
    assert "usage: flaxllm train --config" in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys):
    assert in_process("trian", face=cli.main) == 2
    assert capsys.readouterr().err == "error: flaxllm has no command 'trian': did you mean 'train'?\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inspect"], "expected PATH, got nothing (--help shows more)"),
        (["inspect", "a", "b"], "expected PATH, got 'a' and 'b'"),
        (["convert", "gpt2"], "expected SOURCE and FOLDER, got 'gpt2'"),
        (["inspect", "gpt2", "--heads=base"], "there is no flag --heads: did you mean '--head'?"),
        (["convert", "gpt2", "out", "--dtype=int8"], "parameters cannot be int8"),
        (["inspect", "gpt2", "--head=masked-lm"], "this model has no head 'masked-lm'"),
        (["inspect", "gpt2", "--text=text.txt"], "--text is what --quantize is measured on"),
        (["inspect", "gpt2", "--quantize=int8", "--head=base"], "leave --head out"),
        (["generate", "gpt2"], "expected PATH and PROMPT, got 'gpt2'"),
        (["generate", "gpt2", "x", "--temperature=hot"], "flag --temperature=hot cannot be: "),
        (["generate", "gpt2", "x", "--top_q=1"], "there is no flag --top_q: did you mean '--top_p'?"),
        (["generate", "nowhere", "x"], "nowhere"),
        (["inspct", "gpt2"], "flaxllm has no command 'inspct': did you mean 'inspect'?"),
    ],
)
def test_a_wrong_word_about_checkpoints_is_one_sentence(arguments, sentence, folder, capsys):
    gpt2.write(folder / "gpt2")
    assert in_process(*arguments, face=cli.main) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_inspect_and_convert_from_the_command_line(folder, capsys):
    gpt2.write(folder / "gpt2")
    assert in_process("convert", "gpt2", "half", "--dtype=bfloat16", face=cli.main) == 0
    assert in_process("inspect", "half", face=cli.main) == 0
    shown = capsys.readouterr().out
    assert "GPT2LMHeadModel" in shown and "bfloat16" in shown and "float32 " not in shown


def test_text_is_generated_in_a_pipe(folder):
    gpt_folder(folder / "model")
    command = [Path(sys.executable).with_name("flaxllm"), "generate", "model", "-", "--max_new_tokens=5", "--temperature=0"]
    done = subprocess.run(command, input=b"Once", capture_output=True, timeout=300, check=False)
    assert done.returncode == 0 and done.stdout.endswith(b"\n") and b"tokens" in done.stderr


@pytest.mark.parametrize("command", ["inspect", "convert", "generate", "pipeline", "serve"])
def test_each_command_says_what_it_takes(command, capsys):
    assert in_process(command, "--help", face=cli.main) == 0
    assert f"usage: flaxllm {command} " in capsys.readouterr().out
