"""The parity checkpoints whose attention weights are compared with those of transformers, and where these are written."""

from pathlib import Path

FILE = Path(__file__).parent / "fixtures" / "attention.npz"
CASES = [
    ("bert", "masked_lm_tanh_gelu_left_padding"),
    ("bert", "distilbert_masked_lm_left_padding"),
    ("bert", "token_classification_four_types"),
    ("gpt", "lm_left_padding"),
    ("llama", "llama_right_padding"),
    ("llama", "mistral_window"),
    ("llama", "qwen3"),
    ("t5", "lm_left_padding"),
    ("t5", "encoder"),
    ("transformer", "lm_right_padding"),
    ("transformer", "lm_unlike_stacks"),
]
