"""What transformers makes of a prompt with SmolLM2, dequantized by its own GGUF reader, written to fixtures/smollm2.npz.

    pip install -e '.[parity]' accelerate && python tests/pretrained/make_smollm2_reference.py
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from real_weights import smollm2_gguf

PROMPT = "The capital of France is"
BEST, OTHERS = 50, 200


def main() -> None:
    where = {"pretrained_model_name_or_path": smollm2_gguf().parent, "gguf_file": smollm2_gguf().name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokens = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(tokens).logits[0, -1].numpy()
        text = tokenizer.decode(model.generate(tokens, max_new_tokens=6, do_sample=False)[0])
    best = np.argsort(-logits)[:BEST]
    kept = np.concatenate([best, np.random.default_rng(0).choice(len(logits), OTHERS, replace=False)])
    arrays = {"tokens": tokens.numpy().astype(np.int32), "kept": kept.astype(np.int32), "logits": logits[kept]}
    np.savez_compressed(Path(__file__).parent / "fixtures" / "smollm2.npz", **arrays, prompt=PROMPT, text=text)


if __name__ == "__main__":
    main()
