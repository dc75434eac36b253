"""Experiment files: what they give, and the one sentence for each way in which they can be wrong."""

import os
import re
from pathlib import Path

import pytest

import flaxllm
from flaxllm.errors import InputError
from flaxllm.training.experiment import load_experiment, make_workdir

GOOD = """
import flaxllm

def get_config(steps="3"):
    config = flaxllm.default_config()
    config.train.num_steps = int(steps)
    return config
"""


def write(folder: Path, text: str, name: str = "try.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_gives_its_config_with_and_without_an_argument(tmp_path):
    path = write(tmp_path, GOOD)
    assert load_experiment(f"{path}").config.train.num_steps == 3
    assert load_experiment(f"{path}:5").config.train.num_steps == 5
    assert load_experiment(f"{path}").sweep is None


def test_an_argument_may_hold_colons(tmp_path):
    path = write(tmp_path, GOOD.replace("int(steps)", "len(steps)"))
    assert load_experiment(f"{path}:a:b").config.train.num_steps == 3


def test_the_sweep_of_a_file_is_found(tmp_path):
    added = []
    load_experiment(str(write(tmp_path, GOOD + "\ndef sweep(add):\n    add({'seed': 1})\n"))).sweep(added.append)
    assert added == [{"seed": 1}]


def test_a_run_of_its_own_is_found(tmp_path):
    loaded = load_experiment(str(write(tmp_path, GOOD + "\ndef run(config, workdir):\n    return config.train.num_steps\n")))
    assert loaded.run(loaded.config, tmp_path) == 3
    assert load_experiment(str(write(tmp_path, GOOD))).run is None


@pytest.mark.parametrize("wrong", ["def run():\n    pass\n", "def run(config, workdir, more):\n    pass\n", "run = 3\n"])
def test_a_run_that_cannot_be_called_is_refused(wrong, tmp_path):
    path = write(tmp_path, GOOD + wrong)
    with pytest.raises(InputError, match=re.escape(f"the run of {path} cannot be called as run(config, workdir): let it")):
        load_experiment(str(path))


def test_a_dataclass_in_a_file_can_resolve_its_annotations(tmp_path):
    start = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    path = write(tmp_path, start + "@dataclass\nclass A:\n    x: int = 4\n" + GOOD.replace("int(steps)", "A().x"))
    assert load_experiment(str(path)).config.train.num_steps == 4


@pytest.mark.parametrize(
    ("text", "argument", "sentence"),
    [
        ("def get_config(:\n", "", "try.py line 1 is no Python (invalid syntax): correct it"),
        ("x = 1\n\ny = undefined\n", "", "try.py line 3 raised NameError: name 'undefined' is not defined"),
        ("import nonexistent\n", "", "try.py line 1 raised ModuleNotFoundError: No module named 'nonexistent'"),
        ("def get_confg():\n    pass\n", "", "has no function get_config(), which makes the config: define it there"),
        ("get_config = 3\n", "", "has no function get_config()"),
        (GOOD.replace('steps="3"', "").replace("steps", "3"), ":7", "takes no argument, got '7': write --config="),
        (GOOD.replace('="3"', ""), "", "needs an argument: write --config="),
        (GOOD, ":many", "try.py line 6 raised ValueError: invalid literal for int() with base 10: 'many'"),
        (GOOD.replace("return config", "return {}"), "", "returned a dict, where a ConfigDict was expected"),
        (GOOD.replace("return config", "return config.train"), "", "lacks attention: start from flaxllm.default"),
        (GOOD.replace("return", "config.unlock().train.num_step = 1\n    return"), "",
         "has a key 'train.num_step' that nothing reads: did you mean 'train.num_steps'?"),
        (GOOD.replace("num_steps", "num_step"), "",
         'the config is locked. Did you mean "num_steps" instead of "num_step"?'),
        (GOOD.replace("config()\n", "config('gpt2-125m')\n"), "",
         "line 5: unknown model preset 'gpt2-125m': did you mean 'gpt2-124m'?"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence_with_file_and_line(text, argument, sentence, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=re.escape(sentence)) as caught:
        load_experiment(f"{path}{argument}")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_the_file_itself_refuses_is_said_in_its_own_words(tmp_path):
    path = write(tmp_path, "import flaxllm\ndef get_config():\n    raise flaxllm.InputError('give a path')\n")
    with pytest.raises(InputError, match="^give a path$"):
        load_experiment(str(path))


def test_a_path_that_leads_nowhere_names_the_nearest(tmp_path):
    path = write(tmp_path, GOOD, "quickstart.py")
    with pytest.raises(InputError, match=f"does not exist: did you mean '{path}'"):
        load_experiment(str(tmp_path / "quikstart.py"))
    with pytest.raises(InputError, match="does not exist: .*there is no folder"):
        load_experiment(str(tmp_path / "nowhere" / "quickstart.py"))
    with pytest.raises(InputError, match="is a folder: name a file in it"):
        load_experiment(str(tmp_path))


def test_the_experiments_of_the_repository_load():
    folder = Path(flaxllm.__file__).parents[1] / "experiments"
    assert load_experiment(str(folder / "quickstart.py")).config.data.tokenizer == "bpe"
    experiment = load_experiment(f"{folder / 'shakespeare_char.py'}:input.txt")
    assert experiment.config.data.source == "input.txt" and callable(experiment.sweep)


def test_a_workdir_is_made_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make_workdir("a/b") == tmp_path / "a" / "b"
    assert make_workdir("a/b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the workdir 'file' is a file: name a folder"):
        make_workdir("file")
    with pytest.raises(InputError, match=r"the workdir 'file/under' cannot be written \(Not a directory\)"):
        make_workdir("file/under")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        make_workdir(tmp_path)
