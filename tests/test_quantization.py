"""What is printed of the cost of quantized weights."""

import io

import jax
from rich.console import Console

from flaxllm import quantization
from flaxllm.data import byte_level
from flaxllm.models import build


def test_memory_and_perplexity_are_shown_before_and_after(tmp_path, monkeypatch):
    model = build("gpt", dict(vocab_size=300, max_len=512, num_layers=1, num_heads=1, head_dim=32, d_model=32, d_mlp=32))
    params = jax.tree.map(lambda x: 5 * x, model.init(jax.random.PRNGKey(0)))
    monkeypatch.setattr(quantization, "load_tokenizer", lambda path: byte_level())
    monkeypatch.setattr(quantization, "from_pretrained", lambda path: (model, params))
    (tmp_path / "text.txt").write_text("some words. " * 20)
    monkeypatch.setenv("FLAXLLM_CACHE", str(tmp_path / "cache"))
    console = Console(file=io.StringIO(), force_terminal=False)
    quantization.show_quantized("anywhere", "int8", str(tmp_path / "text.txt"), console)
    head, before, after = (line.split() for line in console.file.getvalue().splitlines() if line.strip())
    assert head[:3] == ["weights", "memory", "perplexity"]
    assert (before[0], after[0]) == ("float32", "int8")
    assert float(before[1]) > 1.5 * float(after[1])  # positions stay
    assert before[-1] != after[-1] and abs(float(before[-1]) / float(after[-1]) - 1) < 0.05
