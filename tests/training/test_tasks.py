"""Runs on labelled records: read, learnt, judged, resumed, and left behind as a model to use."""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

import flaxllm
from flaxllm.errors import InputError
from flaxllm.models.lora import merge
from flaxllm.nn import flatten
from flaxllm.pretrained.peft import load_adapter
from flaxllm.training import default_config, evaluate, progress
from flaxllm.training.reading import make_tokenizer, read_data

SIZES = dict(num_layers=1, num_heads=2, head_dim=8, d_model=16, d_mlp=32)
COLOURS = ("blue", "green", "red")


def write_records(path: Path, count: int, **more: object) -> Path:
    """Sentences whose label is the colour that they name."""
    rng = np.random.default_rng(count)
    rows = []
    for _ in range(count):
        colour = COLOURS[rng.integers(3)]
        words = rng.permutation([*rng.choice(["the", "old", "big", "dog", "cat", "sat"], 4), colour])
        rows.append({"said": " ".join(words), "label": colour, "upper": colour.upper()} | more)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    write_records(folder / "train.jsonl", 200)
    write_records(folder / "eval.jsonl", 21)
    return folder


def sized(config: ConfigDict, folder: Path, steps: int, **columns: str) -> ConfigDict:
    config.data.update(source=str(folder / "train.jsonl"), eval_source=str(folder / "eval.jsonl"), max_len=16, batch_size=8)
    config.data.columns = columns
    config.optimizer.update(schedule="constant", learning_rate=3e-2, warmup_steps=2, weight_decay=0.0)
    config.train.update(num_steps=steps, eval_every=steps // 2, sample_every=0, checkpoint_every=steps // 2)
    return config


def classifying(folder: Path, steps: int = 40) -> ConfigDict:
    config = default_config("bert-base", objective="classification", labels=COLOURS, max_len=16, dropout=0.0, **SIZES)
    config.data.update(tokenizer="wordpiece", vocab_size=44)
    return sized(config, folder, steps, text="said")


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def classified(folder, tmp_path_factory) -> Path:
    config = classifying(folder)
    config.train.best = "eval/accuracy"
    workdir = tmp_path_factory.mktemp("classified")
    flaxllm.train(config, workdir)
    return workdir


def test_the_model_that_is_left_behind_scores_what_its_run_says(classified, folder):
    """Every record of the evaluation set, through the files alone."""
    result = json.loads((classified / "result.json").read_text())
    model, params = flaxllm.from_pretrained(classified / "model")
    tokenizer = flaxllm.load_tokenizer(classified / "model")
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    logits = np.asarray(model.apply(params, **tokenizer([row["said"] for row in rows]).inputs).logits, np.float64)
    truth = np.array([COLOURS.index(row["label"]) for row in rows])
    assert model.config.labels == COLOURS
    assert result["eval/accuracy"] == pytest.approx(float((logits.argmax(-1) == truth).mean()))
    loss = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(rows)), truth]
    assert result["eval/loss"] == pytest.approx(float(loss.mean()), rel=1e-4)
    assert result["eval/accuracy"] > 0.6


def test_a_vocabulary_is_made_of_what_is_trained_on_alone(folder):
    config = classifying(folder)
    made = make_tokenizer(config).fingerprint
    config.data.eval_source = str(write_records(folder / "others.jsonl", 30, said="zebras yawn quietly"))
    assert read_data(config).tokenizer.fingerprint == made
    config.data.source = config.data.eval_source
    config.data.vocab_size = 30
    assert make_tokenizer(config).fingerprint != made


def test_rows_without_their_padding_give_the_same_losses(folder, tmp_path):
    config = classifying(folder, steps=6)
    config.data.max_len = config.model.max_len = 64
    config.model.attention_dropout = 0.0
    losses = []
    for multiple in (None, 4):
        config.data.pad_to_multiple_of = multiple
        flaxllm.train(config, tmp_path / str(multiple))
        losses.append([line["loss"] for line in metrics(tmp_path / str(multiple))])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_the_best_parameters_are_kept_and_judged_again(classified):
    lines = [line for line in metrics(classified) if "eval/accuracy" in line]
    best = max(lines, key=lambda line: line["eval/accuracy"])  # the first, if several are as good
    result = json.loads((classified / "result.json").read_text())
    assert result["parameters"].startswith(f"those of step {best['step']}, best by eval/accuracy")
    assert result["eval/accuracy"] == pytest.approx(best["eval/accuracy"])
    assert [path.name for path in (classified / "best").iterdir() if path.name.isdigit()] == [str(best["step"])]


def test_a_run_can_be_judged_alone(classified, folder, capsys):
    config = classifying(folder)
    config.train.best = "eval/accuracy"
    before = {path: path.read_bytes() for path in (classified / "checkpoints").rglob("*") if path.is_file()}
    expected = json.loads((classified / "result.json").read_text())
    found = evaluate(config, classified)
    assert found == pytest.approx({name: value for name, value in expected.items() if name != "parameters"})
    assert "accuracy" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in (classified / "checkpoints").rglob("*") if path.is_file()}


def test_a_workdir_without_a_checkpoint_cannot_be_judged(folder, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint to evaluate: train first"):
        evaluate(classifying(folder), tmp_path)


def test_a_metric_that_is_not_measured_cannot_choose(folder, tmp_path):
    config = classifying(folder, steps=2)
    config.train.best = "eval/acuracy"
    with pytest.raises(InputError, match="train.best is 'eval/acuracy', which was not measured: did you mean 'eval/accuracy'"):
        flaxllm.train(config, tmp_path)


def test_a_measure_that_is_not_installed_is_missed_before_the_training(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"this metric needs sklearn, which is not installed: pip install 'flaxllm\[eval\]'"):
        flaxllm.train(classifying(folder), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_malformed_records_stop_the_run_or_are_counted(folder, tmp_path, capsys):
    config = classifying(folder, steps=2)
    lines = (folder / "train.jsonl").read_text().splitlines()
    lines[3:5] = ['{"said": ', json.dumps({"said": "the dog", "label": "purple"})]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    config.data.source = str(tmp_path / "train.jsonl")
    with pytest.raises(InputError, match=r"train.jsonl:4 is not JSON"):
        flaxllm.train(config, tmp_path / "run")
    config.data.malformed = "skip"
    flaxllm.train(config, tmp_path / "run")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert len(said) == 2 and "train.jsonl:4 is not JSON" in said[0]
    assert "record 3 has 'purple' in its 'label', which is no label" in said[1]


def test_the_mean_of_the_last_checkpoints_is_what_is_left(folder, tmp_path):
    config = classifying(folder, steps=6)
    config.train.update(checkpoint_every=2, keep_checkpoints=3, average=3)
    flaxllm.train(config, tmp_path)
    held = [
        ocp.PyTreeCheckpointer().restore(tmp_path / "checkpoints" / step / "state")["params"]["embedding"]["tokens"]
        for step in ("2", "4", "6")
    ]
    _, params = flaxllm.from_pretrained(tmp_path / "model")
    np.testing.assert_allclose(params["embedding"]["tokens"], np.mean(held, axis=0), atol=1e-6)
    assert json.loads((tmp_path / "result.json").read_text())["parameters"] == "the mean of those of steps 2, 4, 6"


def test_the_best_of_a_run_under_pmap_is_kept_too(folder, tmp_path):
    config = classifying(folder, steps=2)
    config.placement, config.train.best = "pmap", "eval/loss"
    flaxllm.train(config, tmp_path)
    best = min((line for line in metrics(tmp_path)), key=lambda line: line["eval/loss"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["eval/loss"] == pytest.approx(best["eval/loss"], rel=1e-5)


def test_what_is_frozen_stays_and_no_gradient_counts_it(folder, tmp_path, capsys):
    config = classifying(folder, steps=2)
    config.optimizer.freeze = ("embedding/*", "layers/*", "pooler/*")
    flaxllm.train(config, tmp_path)
    told = re.search(r"training ([\d,]+) parameters, ([\d.]+)% of the model's ([\d,]+)\n", capsys.readouterr().out)
    sizes = {path: weight.size for path, weight in flatten(flaxllm.from_pretrained(tmp_path / "model")[1]).items()}
    trained, total = (int(number.replace(",", "")) for number in told.group(1, 3))
    assert total == sum(sizes.values()) and trained == sum(n for path, n in sizes.items() if path.startswith("head/"))
    assert float(told[2]) == pytest.approx(100 * trained / total, abs=0.005)
    before, after = (
        ocp.PyTreeCheckpointer().restore(tmp_path / "checkpoints" / step / "state")["params"] for step in ("1", "2")
    )
    np.testing.assert_array_equal(before["embedding"]["tokens"], after["embedding"]["tokens"])
    assert np.abs(before["head"]["out"]["kernel"] - after["head"]["out"]["kernel"]).max() > 0
    config.optimizer.freeze = ()
    flaxllm.train(config, tmp_path / "free")
    assert "training" not in capsys.readouterr().out
    frozen, free = (metrics(workdir)[0] for workdir in (tmp_path, tmp_path / "free"))
    assert frozen["loss"] == pytest.approx(free["loss"]) and frozen["gradient_norm"] < 0.99 * free["gradient_norm"]


def test_a_column_for_a_field_that_is_not_read_is_refused(folder, tmp_path):
    config = classifying(folder, steps=2)
    config.data.columns = {"txt": "said"}
    with pytest.raises(InputError, match="data.columns has a field 'txt', which classification does not read: did you mean 'text'"):
        flaxllm.train(config, tmp_path)


def adapting(folder: Path, base: Path, steps: int) -> ConfigDict:
    config = default_config(objective="classification", checkpoint=str(base), labels=COLOURS)
    config.lora.update(rank=2, alpha=4.0, whole=("head/*",))
    return sized(config, folder, steps, text="said")


@pytest.mark.slow
def test_an_adapter_trains_alone_resumes_and_is_left_behind(classified, folder, tmp_path):
    base = classified / "model"
    flaxllm.train(adapting(folder, base, steps=4), tmp_path / "whole")
    flaxllm.train(adapting(folder, base, steps=4), tmp_path / "cut")
    state = ocp.PyTreeCheckpointer().restore(tmp_path / "whole" / "checkpoints" / "4" / "state")
    assert set(state["params"]) == {"layers", "head"} and set(state["params"]["layers"]["attention"]) == {"query", "value"}

    model, params = flaxllm.from_pretrained(base)
    adapter, alpha = load_adapter(tmp_path / "whole" / "adapter", model)
    _, left = flaxllm.from_pretrained(tmp_path / "whole" / "model")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merge(model, params, adapter, alpha), left)
    np.testing.assert_array_equal(left["embedding"]["tokens"], params["embedding"]["tokens"])
    assert np.abs(np.asarray(left["layers"]["attention"]["query"]["kernel"] - params["layers"]["attention"]["query"]["kernel"])).max() > 0

    longer = adapting(folder, base, steps=8)
    flaxllm.train(longer, tmp_path / "cut")
    flaxllm.train(longer, tmp_path / "straight")
    assert [line["loss"] for line in metrics(tmp_path / "cut")] == [line["loss"] for line in metrics(tmp_path / "straight")]


def test_an_adapters_base_may_not_change(classified, folder, tmp_path):
    base = tmp_path / "base"
    model, params = flaxllm.from_pretrained(classified / "model")
    tokenizer = flaxllm.load_tokenizer(classified / "model")
    flaxllm.save_pretrained(base, model, params, tokenizer)
    flaxllm.train(adapting(folder, base, steps=2), tmp_path / "run")
    params["layers"]["mlp"]["up"]["kernel"] = params["layers"]["mlp"]["up"]["kernel"] + 1
    flaxllm.save_pretrained(base, model, params, tokenizer)
    with pytest.raises(InputError, match="init_from .* changed since this workdir's checkpoint"):
        flaxllm.train(adapting(folder, base, steps=4), tmp_path / "run")


def test_a_checkpoint_of_another_size_is_refused(classified, folder, tmp_path):
    config = adapting(folder, classified / "model", steps=2)
    config.model.d_mlp = 64
    with pytest.raises(InputError, match=r"holds another model: layers/mlp/down/kernel is \[1, 32, 16\] there, \(1, 64, 16\) here"):
        flaxllm.train(config, tmp_path)


def translating(folder: Path, steps: int) -> ConfigDict:
    config = default_config("t5-small", objective="seq2seq", num_decoder_layers=1, dropout=0.0, attention_dropout=0.0, **SIZES)
    config.data.update(tokenizer="chars", max_len=32)
    config = sized(config, folder, steps, source="label", target="upper")
    config.data.max_len = 16
    config.objective.update(metric="exact-match", max_target_len=8)
    config.eval.update(max_new_tokens=8, batch_size=8)
    return config


@pytest.mark.slow
def test_what_a_model_writes_is_judged(folder, tmp_path):
    config = translating(folder, steps=120)
    config.train.sample_every = 120
    config.sample.prompt = "green"
    flaxllm.train(config, tmp_path)
    last = metrics(tmp_path)[-1]
    assert last["eval/loss"] < 0.3
    model, params = flaxllm.from_pretrained(tmp_path / "model")
    tokenizer = flaxllm.load_tokenizer(tmp_path / "model")
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    texts = flaxllm.generate(model, params, [tokenizer(c).tokens[0] for c in COLOURS], 8, temperature=0, tokenizer=tokenizer).texts
    right = np.mean([texts[COLOURS.index(row["label"])] == row["upper"] for row in rows])
    assert last["eval/exact_match"] == pytest.approx(right) and right > 0.5
    assert (tmp_path / "samples" / "000120.txt").exists()


def test_a_model_without_a_hugging_face_form_says_so_and_keeps_its_run(folder, tmp_path, capsys):
    """The Transformer as its paper has it: no biases in attention, which Marian's form cannot say."""
    config = default_config("transformer-base", objective="seq2seq", num_decoder_layers=1, **SIZES)
    config.data.tokenizer = "chars"
    config = sized(config, folder, 2, source="label", target="upper")
    config.objective.update(metric="loss", max_target_len=8)
    flaxllm.train(config, tmp_path)
    assert "not written as a Hugging Face checkpoint: " in capsys.readouterr().out
    assert len(metrics(tmp_path)) == 2 and not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_mixture_is_trained_by_its_rates_and_judged_part_by_part(folder, tmp_path):
    config = translating(folder, steps=4)
    path = str(folder / "train.jsonl")
    config.data.mixture = {
        "upper": dict(prefix="up: ", rate=3.0),
        "same": dict(prefix="me: ", rate=1.0, source=path, columns=dict(source="label", target="label"), metric="chrf"),
    }
    flaxllm.train(config, tmp_path)
    last = metrics(tmp_path)[-1]
    assert {"eval/upper/exact_match", "eval/same/chrf", "eval/upper/loss", "eval/same/loss"} <= set(last)
    config.data.mixture = {"upper": dict(prefix="up: "), "wrong": dict(sources=path)}
    with pytest.raises(InputError, match="data.mixture.wrong has a key 'sources' that nothing reads: did you mean 'source'"):
        flaxllm.train(config, tmp_path / "other")


@pytest.mark.slow
def test_preferences_are_learnt_against_the_start(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PLAIN_LINE_EVERY", 0.0)
    config = default_config("smollm2-135m", objective="dpo", max_len=32, num_kv_heads=1, **SIZES)
    config.data.update(tokenizer="bytes")
    config = sized(config, folder, 10, prompt="label", chosen="upper", rejected="said")
    config.data.update(max_len=32)
    flaxllm.train(config, tmp_path)
    assert "batches seen by the model that training starts from: 1 of " in capsys.readouterr().out
    lines = metrics(tmp_path)
    assert lines[0]["loss"] == pytest.approx(np.log(2), rel=1e-5) and lines[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert lines[-1]["eval/loss"] < 0.5 and lines[-1]["eval/margin"] > 0.1
