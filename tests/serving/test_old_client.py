"""Programs written for the `openai` package of 2023 run unchanged, but for the address."""

import json
import os
import subprocess
import sys

import pytest

from real_weights import environment
from serving.live import decoded, offline, tokens_of

PROGRAM = """
import json, sys
import openai
openai.api_key, openai.api_base = "none", sys.argv[1]

completion = openai.Completion.create(engine="text-davinci-003", prompt=sys.argv[2], max_tokens=100, temperature=float(sys.argv[3]))
print(json.dumps(completion))
"""


@pytest.fixture(scope="module")
def run(live):
    site = environment("openai==0.28.1")

    def run(prompt: str, temperature: float) -> dict:
        arguments = [sys.executable, "-c", PROGRAM, f"{live.url}/v1", prompt, str(temperature)]
        done = subprocess.run(arguments, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return run


@pytest.mark.slow
def test_the_classic_program_gets_the_text_of_generate(run):
    completion = run("Hello there, how", 0.0)
    (expected,) = offline([tokens_of("Hello there, how")], 100, temperature=0, stop_tokens=[500])
    assert completion["object"] == "text_completion" and completion["model"] == "text-davinci-003"
    assert completion["choices"][0]["text"] == decoded(expected)


@pytest.mark.slow
def test_an_empty_prompt_starts_from_the_end_of_text(run):
    completion = run("", 0.6)
    assert completion["usage"]["completion_tokens"] == 100 or completion["choices"][0]["finish_reason"] == "stop"
    assert completion["usage"]["prompt_tokens"] == 1
