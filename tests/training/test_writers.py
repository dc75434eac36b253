import json
import math
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event, SessionLog

from flaxllm.errors import InputError
from flaxllm.training import writers
from flaxllm.training.writers import MetricWriter, plot_loss, read_metrics


def write_steps(workdir, restored, steps, value=lambda step: 1.0 / step):
    with MetricWriter(workdir, restored) as writer:
        for step in steps:
            writer.write(step, {"loss": value(step)})


def tensorboard_events(path):
    """The events of one file, by the TFRecord format: length, its checksum, the bytes, their checksum."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def tensorboard_points(workdir):
    """{(tag, step): [values]} as TensorBoard shows them: a START drops all before it of its step or later."""
    points = {}
    for path in sorted(workdir.glob("events.*")):
        for event in tensorboard_events(path):
            if event.session_log.status == SessionLog.START:
                points = {key: values for key, values in points.items() if key[1] < event.step}
            for value in event.summary.value:
                points.setdefault((value.tag, event.step), []).append(value)
    return points


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_float32_reads_back_bit_for_bit(tmp_path_factory, bits):
    values = np.array(bits, np.uint32).view(np.float32)
    workdir = tmp_path_factory.mktemp("bits")
    with MetricWriter(workdir, -1) as writer:
        for step, value in enumerate(values):
            writer.write(step, {"x": float(value)})
    read = np.array([record["x"] for record in read_metrics(workdir / "metrics.jsonl")], np.float32)
    np.testing.assert_array_equal(np.isnan(read), np.isnan(values))
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(read.view(np.uint32)[finite], values.view(np.uint32)[finite])


def test_lines_are_strict_json_and_complete_before_close(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    with MetricWriter(tmp_path, -1) as writer:
        writer.write(1, {"loss": float(np.float32(0.1)), "eval/loss": math.nan})
        writer.write(5, {"loss": math.inf, "low": -math.inf})
        text = (tmp_path / "metrics.jsonl").read_text()
    records = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert records == [
        {"step": 1, "loss": float(np.float32(0.1)), "eval/loss": "NaN"},
        {"step": 5, "loss": "Infinity", "low": "-Infinity"},
    ]
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(first["eval/loss"])
    assert second == {"step": 5, "loss": math.inf, "low": -math.inf}


@pytest.mark.parametrize("tail", [b'{"step": 9, "lo', b"\x00\x00\x00", b'{"step": 9}', b""])
@pytest.mark.parametrize("restored", [-1, 0, 4, 6, 100])
def test_opening_cuts_back_to_the_restored_step(tmp_path, restored, tail):
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step":%d ,  "loss": 1e0}' % step for step in (2, 4, 6)]  # not as json.dumps would space them
    path.write_bytes(b"\n".join(lines) + b"\n" + tail)
    if tail.endswith(b"}"):
        lines.append(tail)
    MetricWriter(tmp_path, restored).close()
    expected = [line for line in lines if json.loads(line)["step"] <= restored]
    assert path.read_bytes() == b"".join(line + b"\n" for line in expected)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("events")) == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "broken",
    ["", "loss 3", "[1]", '{"loss": 1.0}', '{"step": true}', '{"step": 3, "loss": "x"}', '{"step": 2}'],
)
def test_broken_line_in_the_middle_is_named(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    content = f'{{"step": 2}}\n{broken}\n{{"step": 4}}\n'
    path.write_text(content)
    with pytest.raises(InputError, match=f"{path} line 2"):
        MetricWriter(tmp_path, 4)
    assert path.read_text() == content


def test_a_crash_while_cutting_leaves_the_old_file(tmp_path, monkeypatch):
    write_steps(tmp_path, -1, [1, 2, 3])
    content = (tmp_path / "metrics.jsonl").read_bytes()

    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        MetricWriter(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_resumed_file_equals_the_uninterrupted_one(tmp_path):
    write_steps(tmp_path / "whole", -1, range(1, 9))
    write_steps(tmp_path / "killed", -1, range(1, 7))
    write_steps(tmp_path / "killed", 4, range(5, 9))
    whole, killed = (tmp_path / name / "metrics.jsonl" for name in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()
    assert [record["step"] for record in read_metrics(whole)] == list(range(1, 9))


@pytest.mark.parametrize("workdir", [None, "run"])
def test_steps_only_grow(tmp_path, workdir):
    with MetricWriter(workdir and tmp_path / workdir, -1) as writer:
        writer.write(0, {})
        writer.write(3, {})
        for step in (3, 2):
            with pytest.raises(ValueError, match=f"step {step} .* step 3"):
                writer.write(step, {})


def test_steps_only_grow_across_a_restart(tmp_path):
    write_steps(tmp_path, -1, [1, 2, 3])
    with MetricWriter(tmp_path, 2) as writer:
        with pytest.raises(ValueError, match="step 2"):
            writer.write(2, {})
        writer.write(3, {})


def test_tensorboard_shows_what_the_file_has(tmp_path):
    write_steps(tmp_path, -1, range(1, 7), value=lambda step: 100.0)
    with MetricWriter(tmp_path, 4) as writer:
        for step in range(5, 9):
            writer.write(step, {"loss": step / 8, "eval/loss": step / 4})
    expected = {
        (name if "/" in name else f"train/{name}", record["step"]): [value]
        for record in read_metrics(tmp_path / "metrics.jsonl")
        for name, value in record.items()
        if name != "step"
    }
    shown = {key: [v.simple_value for v in values] for key, values in tensorboard_points(tmp_path).items()}
    assert len(expected) == 12
    assert shown == expected


def test_texts_go_to_files_and_tensorboard(tmp_path):
    with MetricWriter(tmp_path, -1) as writer:
        writer.write_text(20, "sample", "To be\r\n  *or* not \ud800")
        writer.write_text(20, "other", "x")
        writer.write_text(1234567, "sample", "y")
    assert (tmp_path / "samples/000020.txt").read_bytes() == (
        b"== sample ==\nTo be\r\n  *or* not \\ud800\n\n== other ==\nx\n\n"
    )
    texts = {key: values[0].tensor.string_val[0] for key, values in tensorboard_points(tmp_path).items()}
    assert texts == {
        ("sample/text_summary", 20): b"    To be\r\n      *or* not \\ud800\n",
        ("other/text_summary", 20): b"    x\n",
        ("sample/text_summary", 1234567): b"    y\n",
    }


def test_samples_after_the_restored_step_are_removed(tmp_path):
    with MetricWriter(tmp_path, -1) as writer:
        for step in (10, 20, 1234567):
            writer.write_text(step, "sample", "x")
    (tmp_path / "samples/notes.txt").touch()
    MetricWriter(tmp_path, 10).close()
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["000010.txt", "notes.txt"]


def test_no_workdir_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with MetricWriter(None, 7) as writer:
        writer.write(8, {"loss": 1.0})
        writer.write_text(8, "sample", "x")
    assert list(tmp_path.iterdir()) == []


def test_sigkill_loses_no_written_line(tmp_path):
    code = f"""
import itertools
from flaxllm.training.writers import MetricWriter
writer = MetricWriter({str(tmp_path)!r}, -1)
for step in itertools.count(1):
    writer.write(step, {{"loss": 1.0 / step}})
    print(step, flush=True)
"""
    root = Path(writers.__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root) as child:
        acknowledged = [int(next(child.stdout)) for _ in range(50)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout]
    MetricWriter(tmp_path, 10**9).close()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records][: len(acknowledged)] == acknowledged
    assert all(record["loss"] == 1.0 / record["step"] for record in records)


def test_reading_no_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_metrics(tmp_path / "metrics.jsonl")


def share_of_width(picture, red, green, blue):
    """How much of the picture's width has a pixel of this colour: most for a curve, little for a legend."""
    pixels = matplotlib.image.imread(picture)[..., :3] * 255
    return (np.abs(pixels - [red, green, blue]).max(axis=-1) < 2).any(axis=0).mean()


TRAIN_BLUE, EVAL_ORANGE = (31, 119, 180), (255, 127, 14)


@pytest.mark.parametrize("num_steps", [30, 150])
@pytest.mark.parametrize("names", [("loss",), ("eval/loss",), ("loss", "eval/loss")])
def test_plot_draws_the_losses_that_there_are(tmp_path, names, num_steps):
    heights = {"loss": 3.0, "eval/loss": 4.0}
    with MetricWriter(tmp_path, -1) as writer:
        for step in range(1, num_steps + 1):
            writer.write(step, {name: heights[name] + 1.0 / step for name in names})
    picture = plot_loss(tmp_path)
    assert picture == tmp_path / "loss.png"
    for name, color in (("loss", TRAIN_BLUE), ("eval/loss", EVAL_ORANGE)):
        share = share_of_width(picture, *color)
        assert share > 0.5 if name in names else share == 0.0


def test_plot_of_nothing_finite_is_none(tmp_path):
    assert plot_loss(tmp_path) is None
    with MetricWriter(tmp_path, -1) as writer:
        writer.write(1, {"loss": math.nan, "learning_rate": 1.0})
        writer.write(2, {"loss": math.inf})
    assert plot_loss(tmp_path) is None
    assert not (tmp_path / "loss.png").exists()


def test_smoothing_is_the_mean_around_each_value():
    values = np.random.default_rng(0).normal(size=250)
    expected = [np.mean([values[j] for j in range(250) if abs(i - j) <= 2]) for i in range(250)]
    np.testing.assert_allclose(writers._smooth(values), expected, atol=1e-12)
