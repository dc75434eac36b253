"""Contenders that each live in a process of their own and answer one question at a time, a line of JSON each way."""

import json
import subprocess
import sys
from collections.abc import Callable


def start(script: str, name: str, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """The process of a contender: the script again, told by `--contender` which it is, where it calls `serve`."""
    return subprocess.Popen(
        [sys.executable, script, f"--contender={name}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ask(process: subprocess.Popen, *question: object) -> object:
    process.stdin.write(f"{json.dumps(question)}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"{process.args[-1]} broke down")
    return json.loads(answer)


def serve(answer: Callable[..., object]) -> None:
    """Answer each question that comes in, until there are no more."""
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)
