"""What is printed of a checkpoint."""

import io

import numpy as np
from rich.console import Console

from flaxllm.pretrained import inspect
from flaxllm.pretrained.checkpoint import Checkpoint, open_checkpoint
from pretrained import gpt2


def shown(path, head=None) -> list[list[str]]:
    """The words of each line that is printed."""
    console = Console(file=io.StringIO(), force_terminal=False)
    inspect(path, head, console)
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_the_architecture_and_every_parameter_are_shown(tmp_path):
    held = gpt2.write(tmp_path)
    lines = shown(tmp_path)
    assert ["architecture", "GPT2LMHeadModel"] in lines
    assert ["family", "gpt,", "head", "causal-lm"] in lines
    assert ["d_model", "8"] in lines
    query = next(line for line in lines if line[:1] == ["layers/attention/query/kernel"])
    assert query[-1] == str(gpt2.LAYERS * gpt2.WIDTH**2)
    assert "transformer.h.{layer}.attn.c_attn.weight" in query and "float32" in query
    total = sum(array.size for array in held.values())
    assert next(line for line in lines if line[:1] == ["all"])[-1] == f"{total:,}"


def test_what_does_not_fit_is_shown_and_not_raised(tmp_path):
    held = gpt2.tensors()
    changed = {
        "lm_head.weight": held["transformer.wte.weight"],
        "transformer.h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8),
        "score.weight": np.ones((2, 8), np.float32),
        "mystery": np.ones(3, np.float32),
        "ln_f.weight": held["transformer.ln_f.weight"],
    }
    gpt2.write(tmp_path, changed, without=("transformer.ln_f.bias",))
    lines = [" ".join(line) for line in shown(tmp_path)]
    assert "lm_head.weight tied to transformer.wte.weight" in lines
    assert "transformer.h.0.attn.bias a buffer, not needed" in lines
    assert "score.weight of another head, left out" in lines
    assert "mystery unmapped: no parameter of this model" in lines
    assert "transformer.ln_f.bias missing" in lines
    assert any(line.endswith("the same parameter as ln_f.weight") or "the same parameter as transformer.ln_f" in line for line in lines)


def test_a_narrow_terminal_has_each_name_whole_and_on_a_line_of_its_own(tmp_path):
    gpt2.write(tmp_path)
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=60)
    inspect(tmp_path, None, console)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    at = lines.index(["layers/attention/query/kernel", str(gpt2.LAYERS * gpt2.WIDTH**2)])
    assert lines[at + 1] == "layers 3, embed 8, heads 2, head_dim 4".split()
    assert lines[at + 2 : at + 4] == [["float32"], ["transformer.h.{layer}.attn.c_attn.weight"]]
    assert max(map(len, console.file.getvalue().splitlines())) <= 60


def test_no_tensor_is_read(tmp_path, monkeypatch):
    gpt2.write(tmp_path)

    def unreadable(path) -> Checkpoint:
        opened = open_checkpoint(path)
        return opened._replace(tensors={name: tensor._replace(read=None) for name, tensor in opened.tensors.items()})

    monkeypatch.setattr("flaxllm.pretrained.inspection.open_checkpoint", unreadable)
    assert len(shown(tmp_path)) > 20
