"""Whole runs in this process: what they write, what they refuse, and what they start from."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

import flaxllm
from flaxllm.errors import InputError
from flaxllm.training import NonFiniteError, default_config
from flaxllm.training.record import compare_configs


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAXLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "sheep.txt"
    path.write_text("".join(f"{n} sheep and {n * n % 97} goats went over the bridge.\n" for n in range(300)))
    return path


@pytest.fixture
def config(text) -> ConfigDict:
    config = default_config("gpt2-124m", max_len=16, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=32)
    config.data.update(source=str(text), max_len=16, batch_size=8)
    config.optimizer.update(schedule="constant", learning_rate=1e-2, warmup_steps=2)
    config.train.update(num_steps=6, eval_every=3, sample_every=6, checkpoint_every=2)
    config.sample.update(prompt="7 sheep", num_tokens=4)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder that runs are copied from, and that `run_once` fills."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def workdir(finished, config, tmp_path) -> Path:
    """The workdir of a finished run, to be spoilt."""
    if not finished.exists():
        flaxllm.train(config, finished)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def params(workdir: Path, step: int) -> dict:
    return ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")["params"]


def test_a_run_writes_what_design_promises(workdir, config):
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(config.to_dict()))
    record = json.loads((workdir / "run.json").read_text())
    assert record["packages"]["jax"] == jax.__version__ and len(record["data_fingerprint"]) == 64
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "eval/bits_per_byte" in line] == [3, 6]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["learning_rate"] == pytest.approx(5e-3) and lines[1]["learning_rate"] == pytest.approx(1e-2)
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "7 sheep" in (workdir / "samples" / "000006.txt").read_text()
    assert list(workdir.glob("events.out.tfevents*")) and (workdir / "tokenizer.json").exists()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["4", "6"]


def test_evaluation_counts_each_held_out_byte_but_the_first(workdir, text):
    held_out = text.read_bytes()[int(text.stat().st_size * 0.9) :]
    last = metrics(workdir)[-1]
    # One document and one token a byte: the loss is over all bytes of the tail but its first, and its end.
    assert last["eval/bits_per_byte"] == pytest.approx(last["eval/loss"] / np.log(2), rel=2 / len(held_out))


def test_the_loss_of_a_batch_and_of_what_is_held_out_is_that_of_all_its_parts(text, tmp_path):
    sizes = dict(max_len=16, num_layers=1, num_heads=1, head_dim=8, d_model=8, d_mlp=8)
    config = default_config("bert-base", objective="pretraining", **sizes)
    config.data.update(source=str(text), tokenizer="wordpiece", vocab_size=100, max_len=16, batch_size=8)
    config.optimizer.warmup_steps = 1
    config.train.update(num_steps=1, eval_every=1, checkpoint_every=1, export=False)
    last = flaxllm.train(config, tmp_path)
    for place in ("", "eval/"):
        assert last[f"{place}next_sentence"] > 0.5
        assert last[f"{place}loss"] == pytest.approx(last[f"{place}masked_lm"] + last[f"{place}next_sentence"])


def test_train_returns_the_last_metrics_also_of_a_finished_run(workdir, config):
    again = flaxllm.train(config, workdir)
    assert {"step": 6} | again == metrics(workdir)[-1]


def test_what_is_measured_of_the_parameters_is_a_metric(workdir, config):
    config.train.num_steps = 8

    def measure(model, params):
        return {"depth": float(model.config.num_layers), "shift": float(params["final_norm"]["bias"].sum())}

    last = flaxllm.train(config, workdir, measure)
    assert last == {name: value for name, value in metrics(workdir)[-1].items() if name != "step"}
    assert last["eval/depth"] == 2
    assert last["eval/shift"] == pytest.approx(float(params(workdir, 8)["final_norm"]["bias"].sum()), rel=1e-6)
    assert "eval/loss" in last and "eval/shift" in json.loads((workdir / "result.json").read_text())


def test_a_longer_run_goes_on_and_says_what_changed(workdir, config, capsys):
    config.train.num_steps = 8
    flaxllm.train(config, workdir)
    output = capsys.readouterr().out
    assert "resumed from step 6" in output and "changed since the checkpoint: train.num_steps: 6 -> 8" in output
    assert [line["step"] for line in metrics(workdir)] == list(range(1, 9))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.d_mlp", 24, r"another config \(model.d_mlp: 32 -> 24\): change it back, or use another --workdir"),
        ("seed", 1, r"seed: 0 -> 1"),
        ("optimizer.name", "lion", r"optimizer.name: 'adamw' -> 'lion'"),
        ("data.shards", 2, r"data.shards: 1 -> 2"),
        ("objective.z_loss", 0.1, r"objective.z_loss: 0.0 -> 0.1"),
    ],
)
def test_another_run_in_the_same_workdir_is_refused(key, value, message, workdir, config):
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    before = sorted(workdir.rglob("*"))
    with pytest.raises(InputError, match=message):
        flaxllm.train(config, workdir)
    assert sorted(workdir.rglob("*")) == before


def test_changed_data_is_refused(workdir, config, tmp_path):
    changed = tmp_path / "sheep.txt"
    changed.write_text(Path(config.data.source).read_text() + "And a dog.\n")
    original = Path(config.data.source).read_bytes()
    Path(config.data.source).write_bytes(changed.read_bytes())
    try:
        with pytest.raises(InputError, match="the data changed since this workdir's checkpoint"):
            flaxllm.train(config, workdir)
    finally:
        Path(config.data.source).write_bytes(original)


def test_a_run_can_start_from_anothers_parameters(workdir, config, tmp_path):
    config.init_from = str(workdir)
    config.optimizer.update(learning_rate=0.0, weight_decay=0.0, warmup_steps=0)
    config.train.update(num_steps=1)
    flaxllm.train(config, tmp_path / "new")
    jax.tree.map(np.testing.assert_array_equal, params(tmp_path / "new", 1), params(workdir, 6))


def test_what_init_from_cannot_give_is_refused(workdir, config, tmp_path):
    config.init_from = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="init_from: there is no path '.*nowhere'"):
        flaxllm.train(config, tmp_path / "new")
    config.init_from = str(workdir)
    config.data.tokenizer = "chars"
    with pytest.raises(InputError, match="was trained with another tokenizer.*set data.tokenizer to"):
        flaxllm.train(config, tmp_path / "new")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(workdir, config):
    config.train.update(num_steps=12, checkpoint_every=1)
    config.optimizer.update(learning_rate=1e30, clip_norm=0.0)
    with pytest.raises(NonFiniteError, match=r"step \d+: .*non-finite tensor is .*last good checkpoint is kept"):
        flaxllm.train(config, workdir)
    last = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params(workdir, last)))
    assert last >= 6 and all(np.isfinite(line["loss"]) for line in metrics(workdir))
    config.optimizer.learning_rate = 1e-2
    flaxllm.train(config, workdir)
    assert [line["step"] for line in metrics(workdir)] == list(range(1, 13))


def test_a_stop_at_a_step_of_evaluation_does_not_lose_it(config, tmp_path, monkeypatch):
    @contextmanager
    def asked_at_step_three():
        yield lambda step: step == 3

    monkeypatch.setattr("flaxllm.training.loop.stop_requests", asked_at_step_three)
    with pytest.raises(SystemExit, match="143"):
        flaxllm.train(config, tmp_path)
    assert [("eval/loss" in line) for line in metrics(tmp_path)] == [False, False, True]
    assert (tmp_path / "checkpoints" / "3").is_dir()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.batch_size", 0, "data.batch_size is 0, it must be 1 or more"),
        ("data.max_len", 17, "data.max_len 17 is more than model.max_len 16"),
        ("data.batch_size", 12, r"a batch of 12 rows cannot be split over .*\(8\): use a multiple of 8"),
        ("train.micro_batches", 3, "cannot be cut into train.micro_batches 3: use a divisor"),
        ("placement", "pmaap", "unknown placement 'pmaap': did you mean 'pmap'"),
        ("compute_dtype", "bf16", "unknown compute_dtype 'bf16': did you mean 'bfloat16'"),
        ("attention", "einsumm", "unknown attention 'einsumm': did you mean 'einsum'"),
        ("remat", "dot", "unknown remat 'dot': did you mean 'dots'"),
        ("precision", "hi", "unknown precision 'hi': did you mean 'high'"),
        ("objective.name", "causal", "unknown objective.name 'causal': did you mean 'causal-lm'"),
        ("data.eval_fraction", 1.5, r"data.eval_fraction is 1.5, it must lie in \[0, 1\)"),
        ("model.vocab_size", 100, "model.vocab_size is 100, but the tokenizer has 257 tokens"),
        ("train.eval_every", -1, r"train.eval_every is -1, it must be 0 \(never\) or more"),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_anything_is_written(key, value, message, config, tmp_path):
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=message):
        flaxllm.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


# The first 20 losses of the run below as it was on 2026-11-24, with jax 0.10.2 on an AMD EPYC with AVX-512.
GOLDEN = [
    5.549771, 5.418666, 5.216403, 5.000151, 4.782628, 4.507582, 4.288858, 4.050088, 3.867223, 3.781632,
    3.524504, 3.396390, 3.276155, 3.216774, 3.080621, 3.047348, 2.974135, 2.807452, 2.944763, 2.912961,
]  # fmt: skip


def test_the_first_twenty_losses_are_those_of_before(config, tmp_path):
    config.train.update(num_steps=20, eval_every=0, sample_every=0, checkpoint_every=0)
    flaxllm.train(config, tmp_path)
    np.testing.assert_allclose([line["loss"] for line in metrics(tmp_path)], GOLDEN, rtol=1e-3)


def test_what_goes_on_may_be_judged_by_another_metric():
    before, now = ({"objective": {"name": "seq2seq", "metric": metric}} for metric in ("loss", "bleu"))
    assert compare_configs(before, now) == ["objective.metric: 'loss' -> 'bleu'"]
    with pytest.raises(InputError, match="another config"):
        compare_configs(before, {"objective": {"name": "seq2seq", "metric": "loss", "prefix": "translate: "}})
