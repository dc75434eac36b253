"""Tokens a second that models write, against transformers, llama.cpp and CTranslate2 with the same weights on the same cores.

    pip install -e '.[parity]' llama-cpp-python ctranslate2 && python benchmarks/decode.py

GPT-2 124M (random weights) and SmolLM2-135M go on after prompts of 32 tokens, in batches of 1 to 32, and read longer ones;
T5-small and Transformer-base (random weights) write 32 tokens for a source of 32, greedy and by 4 beams. All is in float32
but where a contender's name says otherwise, and no text ends early. Each contender is a process of its own, with huge pages
from glibc (flaxllm/memory.py); in a round each takes a turn at every case that it can do. The float32 ones first show that
they write the same greedy tokens, up to where the two best logits are within 1e-3.

A turn is one token, not counted, which brings caches and memory back; one token, which is the time to the first; and all
of them, of which the others take the difference. "of bandwidth" is the rate at which flaxllm reads what a token must read
(all weights but positions, and the keys and values kept), against the best of numpy's threads, jax and torch at reading
1 GiB in the same rounds. llama.cpp takes batches of 1; it and CTranslate2 are left out where they are not installed.
"""

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from measure import conditions, report, spread
from processes import ask, serve, start
from writers import CONTENDERS, Writer, installed, make, read_bandwidth, seconds

CHECKED = 20  # so many tokens are compared
NEAR = 1e-3
PACKAGES = {"transformers": "transformers", "llama.cpp": "llama-cpp-python", "CTranslate2": "ctranslate2"}


class Case(NamedTuple):
    batch: int
    length: int  # of the prompt or the source
    num_new: int
    num_beams: int = 1


TEXTS = [Case(batch, 32, 33) for batch in (1, 8, 32)] + [Case(1, 512, 1)]
TRANSLATIONS = [Case(batch, 32, 32, beams) for batch in (1, 8) for beams in (1, 4)]
CASES = {
    "gpt2-124m": TEXTS,
    "smollm2-135m": [*TEXTS, Case(1, 2048, 1)],
    "t5-small": TRANSLATIONS,
    "transformer-base": TRANSLATIONS,
}
QUICK_TEXTS, QUICK_TRANSLATIONS = [Case(1, 32, 5), Case(2, 32, 5), Case(1, 64, 1)], [Case(1, 32, 5), Case(2, 32, 5, 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--quick", action="store_true", help="one round of small cases, to see that all works")
    parser.add_argument("--out", help="path of the JSON (default: benchmarks/results/decode.json)")
    parser.add_argument("--contender", choices=[*CONTENDERS, *HELPERS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        serve(HELPERS.get(arguments.contender) or _answers(CONTENDERS[arguments.contender]))
        return
    rounds, rows = 1 if arguments.quick else arguments.rounds, []
    for model in arguments.models:
        cases = CASES[model]
        if arguments.quick:
            cases = QUICK_TRANSLATIONS if cases is TRANSLATIONS else QUICK_TEXTS
        with tempfile.TemporaryDirectory() as folder:
            maker = _start("maker")
            ask(maker, model, folder)
            _stop([maker])
            rows += [{"model": model} | row for row in _compare(model, folder, cases, rounds)]
    packages = ["torch", *filter(installed, PACKAGES.values())]
    where = conditions() | {package: version(package) for package in packages}
    report("decode", where | {"rounds": rounds, "huge_pages": True}, rows, arguments.out)


def _compare(model: str, folder: str, cases: list[Case], rounds: int) -> list[dict]:
    names = [name for name in CONTENDERS if _takes(name, model, cases[0])]
    processes = {name: _start(name) for name in [*names, "memory"]}
    weights = {name: ask(processes[name], "load", folder) for name in names}
    for case in cases:
        _check({name: processes[name] for name in names if _takes(name, model, case)}, case)
    turns = {(case, name): [] for case in cases for name in names if _takes(name, model, case)}
    bandwidths = []
    for number in range(rounds):
        bandwidths.append(ask(processes["memory"]))
        for case in cases:
            for name in names[number % len(names) :] + names[: number % len(names)]:
                if (case, name) in turns:
                    turns[case, name].append(ask(processes[name], "turn", case))
    rows = []
    for (case, name), times in turns.items():
        row = _row(case, name, times, turns[case, "flaxllm"]) | {"weights MB": weights[name] / 1e6}
        if name.startswith("flaxllm") and case in TEXTS + QUICK_TEXTS and case.batch == 1 < case.num_new:
            rate = ask(processes[name], "read", case) * row["tokens/s"]
            row |= {"GB/s": rate / 1e9, "bandwidth": max(bandwidths) / 1e9, "of bandwidth": rate / max(bandwidths)}
        rows.append(row)
    _stop(processes.values())
    return rows


def _takes(name: str, model: str, case: Case) -> bool:
    """Whether a contender is there and can do this; those with few bits only write."""
    library, _, bits = name.partition(" ")
    if not installed(PACKAGES.get(library, "flaxllm")):
        return False
    if library == "llama.cpp" or bits:
        return model == "smollm2-135m" and case.batch == 1 and (case.num_new > 1 or not bits)
    return library != "CTranslate2" or CASES[model] is TRANSLATIONS


def _check(processes: dict[str, subprocess.Popen], case: Case) -> None:
    """Let each write, which compiles what there is to compile, and compare what was greedy."""
    tokens = {name: np.array(ask(process, "tokens", case)) for name, process in processes.items()}
    for name, rows in tokens.items():
        assert rows.shape == (case.batch, case.num_new), f"{name} wrote {rows.shape} at {case}"
    if case.num_beams > 1:
        return
    near = np.array(ask(processes["flaxllm"], "gaps", case, tokens["flaxllm"].tolist())) < NEAR
    sure = (np.cumsum(near, axis=1) == 0) & (np.arange(case.num_new) < CHECKED)
    for name in (name for name in tokens if " " not in name):
        np.testing.assert_array_equal(tokens[name][sure], tokens["flaxllm"][sure], err_msg=f"{name} at {case}")


def _row(case: Case, name: str, turns: list[tuple[float, float]], ours: list[tuple[float, float]]) -> dict:
    first, our_first = (spread([first for first, _ in times])["median"] for times in (turns, ours))
    row = {"batch": case.batch, "prompt": case.length, "beams": case.num_beams, "contender": name}
    if case.num_new > 1:
        each, our_each = (spread([(whole - first) / (case.num_new - 1) for first, whole in times]) for times in (turns, ours))
        row |= {
            "tokens/s": case.batch / each["median"],
            "flaxllm / it": each["median"] / our_each["median"],
            "slowest / fastest turn": each["max"] / each["min"],
        }
    return row | {"first token s": first, "its first / flaxllm's": first / our_first}


def _answers(make_writer: Callable[[Path], Writer]) -> Callable[..., object]:
    writer: Writer | None = None

    def answer(question: str, *details: object) -> object:
        nonlocal writer
        if question == "load":
            writer = make_writer(Path(details[0]))
            return writer.weights
        case = Case(*details[0])
        prompts = np.random.default_rng(0).integers(100, 30000, (case.batch, case.length))
        if question == "tokens":
            return np.asarray(writer.write(prompts, case.num_new, case.num_beams)).tolist()
        if question == "gaps":
            return writer.gaps(prompts, np.array(details[1])).tolist()
        if question == "read":
            return writer.read(case.length + case.num_new / 2)
        writer.write(prompts[:, :32], 1, case.num_beams)
        first = seconds(lambda: writer.write(prompts, 1, case.num_beams))
        return first, seconds(lambda: writer.write(prompts, case.num_new, case.num_beams)) if case.num_new > 1 else first

    return answer


def _start(name: str) -> subprocess.Popen:
    return start(__file__, name, os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"})


def _stop(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()


HELPERS = {"maker": make, "memory": read_bandwidth}

if __name__ == "__main__":
    main()
