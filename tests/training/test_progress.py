import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from flaxllm.training.progress import Progress, format_loss, format_time, peak_flops, watched


class Clock:
    """A clock that stands still unless moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def pipe():
    return Console(file=io.StringIO())


def terminal(width):
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=24, color_system="truecolor")


def shown(console):
    """What was printed, without escape codes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def final_line(console):
    return shown(console).rstrip("\n").split("\r")[-1].split("\n")[-1]


def run(progress, clock, steps, seconds=1.0):
    for step in steps:
        clock.now += seconds
        progress.update(step, {"loss": 2.53125, "learning_rate": 3e-4, "other": 7.0})


def test_plain_lines_at_the_first_step_each_tenth_and_the_last():
    clock, console = Clock(), pipe()
    with Progress(40, 0, 1234, console=console, clock=clock) as progress:
        run(progress, clock, range(1, 41), seconds=0.5)
    lines = console.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/40" for step in [1, *range(4, 41, 4)]]
    assert lines[0] == "step 1/40  loss 2.531  lr 3.0e-04"
    assert lines[1] == "step 4/40  loss 2.531  lr 3.0e-04  2,468 tokens/s  0:00:18 left"
    assert lines[-1] == "step 40/40  loss 2.531  lr 3.0e-04  2,468 tokens/s"


def test_plain_lines_every_half_minute_of_a_slow_run():
    clock, console = Clock(), pipe()
    with Progress(1000, 100, 1, console=console, clock=clock) as progress:
        run(progress, clock, range(101, 112), seconds=10.0)
    assert re.findall(r"step (\d+)/", console.file.getvalue()) == ["101", "104", "107", "110"]


def test_plain_lines_are_not_wrapped_and_have_no_escape_codes():
    clock, console = Clock(), pipe()
    with Progress(10**9, 0, 10**9, 1.0, 1.0, console=console, clock=clock) as progress:
        run(progress, clock, [10**8, 2 * 10**8])
        progress.note("word " * 100)
    output = console.file.getvalue()
    assert len(output.splitlines()) == 3
    assert "\x1b" not in output and "\r" not in output


@pytest.mark.parametrize("resumed_at", [0, 500])
def test_speed_counts_from_the_first_step_of_this_session(resumed_at):
    clock, console = Clock(), terminal(140)
    with Progress(resumed_at + 10, resumed_at, 1000, 6e9, 1e10, console=console, clock=clock) as progress:
        clock.now += 300.0  # compilation
        run(progress, clock, range(resumed_at + 1, resumed_at + 6), seconds=2.0)
    assert final_line(console).endswith("  500 tokens/s  mfu 30%  0:00:10 left  0:05:10 elapsed")


def test_mfu_only_where_the_peak_is_known():
    for flops, peak in ((None, 1e10), (6e9, None), (None, None)):
        clock, console = Clock(), pipe()
        with Progress(10, 0, 1000, flops, peak, console=console, clock=clock) as progress:
            run(progress, clock, range(1, 6))
        assert "tokens/s" in console.file.getvalue()
        assert "mfu" not in console.file.getvalue()


def test_what_the_rate_counts_can_be_examples():
    clock, console = Clock(), pipe()
    with Progress(10, 0, 32, unit="examples", console=console, clock=clock) as progress:
        run(progress, clock, range(1, 6), seconds=0.5)
    assert console.file.getvalue().splitlines()[-1].endswith("  64 examples/s  0:00:02 left")


def rate_shown(console):
    return int(re.findall(r"([\d,]+) tokens/s", shown(console))[-1].replace(",", ""))


def test_rate_follows_a_change_smoothly():
    clock, console = Clock(), pipe()
    with Progress(10**6, 0, 10**6, console=console, clock=clock) as progress:
        run(progress, clock, range(1, 101), seconds=1.0)
        assert rate_shown(console) == 10**6
        run(progress, clock, range(101, 161), seconds=0.5)  # 30 seconds: a line is printed at the end
        assert 1.5e6 < rate_shown(console) < 1.95e6
        run(progress, clock, range(161, 1000), seconds=0.5)
        assert 1.99e6 < rate_shown(console) <= 2e6


def test_pauses_count_for_the_time_left_but_not_for_the_rate():
    clock, console = Clock(), pipe()
    with Progress(101, 0, 1000, console=console, clock=clock) as progress:
        run(progress, clock, range(1, 50))
        with progress.paused("evaluating"):
            clock.now += 50.0
        run(progress, clock, [50, 51])
    last = console.file.getvalue().splitlines()[-1]
    assert "evaluating" not in console.file.getvalue()
    assert last.startswith("step 51/101") and last.endswith("  1,000 tokens/s  0:01:40 left")


def test_steps_may_be_reported_in_strides():
    clock, console = Clock(), pipe()
    with Progress(100, 0, 1000, console=console, clock=clock) as progress:
        run(progress, clock, [10, 30, 50], seconds=4.0)
    assert console.file.getvalue().splitlines()[-1].endswith("  5,000 tokens/s  0:00:10 left")


def test_standing_clock_is_no_division_by_zero():
    clock, console = Clock(), pipe()
    with Progress(3, 0, 1000, console=console, clock=clock) as progress:
        run(progress, clock, [1, 2, 3], seconds=0.0)
    assert console.file.getvalue().splitlines()[-1] == "step 3/3  loss 2.531  lr 3.0e-04"


def test_wide_terminal_shows_everything_in_one_line():
    clock, console = Clock(), terminal(140)
    with Progress(2000, 0, 12345, 4.1e9, 1e10, console=console, clock=clock) as progress:
        run(progress, clock, range(1, 101))
    line = final_line(console)
    assert line.endswith(
        "  100/2000  loss 2.531  lr 3.0e-04  12,345 tokens/s  mfu 41%  0:31:40 left  0:01:40 elapsed"
    )
    assert line.startswith("━" * 2)


def test_80_columns_keep_what_matters():
    clock, console = Clock(), terminal(80)
    with Progress(20000, 0, 123456, 4.1e9, 1e10, console=console, clock=clock) as progress:
        run(progress, clock, range(1, 1001))
    line = final_line(console)
    assert line.endswith("  1000/20000  loss 2.531  123,456 tokens/s  mfu 41%  5:16:40 left")
    assert line.count("━") + line.count("╸") + line.count("╺") >= 10


@given(width=st.integers(14, 200), step=st.integers(0, 99))
def test_live_line_never_wraps(width, step):
    clock, console = Clock(), terminal(width)
    with Progress(100, 0, 10**6, 4.1e9, 1e10, console=console, clock=clock) as progress:
        run(progress, clock, range(1, step + 1), seconds=3600.0)
    assert shown(console).count("\n") == 1
    assert cell_len(final_line(console)) <= width
    assert f"{step}/100" in final_line(console)


def test_terminal_says_what_it_waits_for():
    clock, console = Clock(), terminal(80)
    with Progress(100, 0, 1, console=console, clock=clock):
        pass
    assert "0/100  compiling  0:00:00 elapsed" in shown(console)
    assert "compiling" not in final_line(console)
    clock, console = Clock(), terminal(80)
    with Progress(100, 0, 1, console=console, clock=clock) as progress:
        run(progress, clock, range(1, 3))
        with progress.paused("evaluating"):
            pass
        run(progress, clock, range(3, 5))
    assert "2/100  evaluating  loss" in shown(console)
    assert "evaluating" not in final_line(console) and "compiling" not in final_line(console)


@pytest.mark.parametrize("make_console", [pipe, lambda: terminal(80)])
def test_notes_are_kept_as_they_are_but_cannot_steer_the_terminal(make_console):
    clock, console = Clock(), make_console()
    with Progress(100, 0, 1, console=console, clock=clock) as progress:
        run(progress, clock, range(1, 3))
        progress.note("saved [bold]checkpoint[/bold] at step 2")
        progress.note("a\x1b[31mb\x07c\rd\n  e\ud800")
    lines = [line.split("\r")[-1] for line in shown(console).splitlines()]
    assert "saved [bold]checkpoint[/bold] at step 2" in lines
    assert "a\ufffd[31mb\ufffdc\ufffdd" in lines
    assert "  e\ufffd" in lines


def test_what_takes_long_says_every_half_minute_what_is_left():
    times, lines = iter([0.0, *(12.0 * number for number in range(10))]), []
    assert list(watched("abcdefghij", 10, "letters", lines.append, clock=lambda: next(times))) == list("abcdefghij")
    times = iter([0.0, 60.0, 61.0])  # nothing is known when the first one is late
    assert list(watched("ab", 2, "letters", lines.append, clock=lambda: next(times))) == list("ab")
    assert lines.pop() == "letters: 1 of 2, 0:01:01 left"
    assert lines == ["letters: 3 of 10, 0:01:24 left", "letters: 6 of 10, 0:00:48 left", "letters: 9 of 10, 0:00:12 left"]


def test_quiet_console_shows_nothing_and_lets_others_print(capsys):
    clock = Clock()
    console = Console(file=io.StringIO(), quiet=True, force_terminal=True)
    with Progress(2, 0, 1, console=console, clock=clock) as progress:
        run(progress, clock, range(1, 3))
        progress.note("note")
        print("a message")
    assert console.file.getvalue() == ""
    assert capsys.readouterr().out == "a message\n"


@pytest.mark.parametrize(
    "loss, text",
    [(2.5, "2.500"), (10.8249, "10.82"), (0.123456, "0.1235"), (1234.4, "1234"), (math.nan, "nan")],
)
def test_loss_has_four_significant_digits(loss, text):
    assert format_loss(loss) == text


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00:00"), (59.6, "0:01:00"), (3599, "0:59:59"), (3600, "1:00:00"), (360061, "100:01:01")],
)
def test_time_is_hours_minutes_seconds(seconds, text):
    assert format_time(seconds) == text


# Multiply-adds a clock of one processor (the tensor cores of an NVIDIA multiprocessor, or the matrix
# units of 128 x 128 or 256 x 256 in a TPU core), processors in a jax device, and the boost clock in GHz.
ARCHITECTURES = {
    ("Tesla V100-SXM2-16GB", "float16"): (512, 80, 1.53),
    ("Tesla T4", "float16"): (512, 40, 1.59),
    ("NVIDIA A100-SXM4-80GB", "bfloat16"): (1024, 108, 1.41),
    ("NVIDIA A100-SXM4-40GB", "float32"): (512, 108, 1.41),
    ("NVIDIA A100 80GB PCIe", "bfloat16"): (1024, 108, 1.41),
    ("NVIDIA L4", "bfloat16"): (512, 58, 2.04),
    ("NVIDIA L40S", "bfloat16"): (512, 142, 2.52),
    ("NVIDIA H100 80GB HBM3", "bfloat16"): (2048, 132, 1.83),
    ("NVIDIA H100 80GB HBM3", "float32"): (1024, 132, 1.83),
    ("NVIDIA H100 PCIe", "bfloat16"): (2048, 114, 1.62),
    ("NVIDIA H200", "bfloat16"): (2048, 132, 1.83),
    ("NVIDIA B200", "bfloat16"): (4096, 148, 1.86),
    ("TPU v2", "bfloat16"): (128**2, 1, 0.7),
    ("TPU v3", "bfloat16"): (2 * 128**2, 1, 0.94),
    ("TPU v4", "bfloat16"): (4 * 128**2, 2, 1.05),
    ("TPU v5 lite", "bfloat16"): (4 * 128**2, 1, 1.5),
    ("TPU v5", "bfloat16"): (4 * 128**2, 2, 1.75),
    ("TPU v5p", "float32"): (4 * 128**2, 2, 1.75),
    ("TPU v6 lite", "bfloat16"): (4 * 256**2, 1, 1.75),
}


@pytest.mark.parametrize("device_kind, dtype", ARCHITECTURES)
def test_peak_is_what_the_architecture_gives(device_kind, dtype):
    multiply_adds, processors, gigahertz = ARCHITECTURES[device_kind, dtype]
    expected = 2 * multiply_adds * processors * gigahertz * 1e9
    assert peak_flops(device_kind, dtype) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    "device_kind, dtype",
    [
        ("cpu", "float32"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16"),
        ("NVIDIA GeForce RTX 9999", "bfloat16"),
        ("Tesla T4", "bfloat16"),  # computed in float32
        ("NVIDIA H100 80GB HBM3", "float64"),
    ],
)
def test_peak_of_the_unknown_is_none(device_kind, dtype):
    assert peak_flops(device_kind, dtype) is None
