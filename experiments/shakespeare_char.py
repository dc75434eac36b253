"""nanoGPT's small CPU setting: a character-level GPT on the works of Shakespeare.

    python launch.py --config=experiments/shakespeare_char.py:path/to/input.txt --workdir=runs/shakespeare_char

The setting is that of nanoGPT's README: 4 layers, 4 heads, 128 wide, context 64, batch 12, 2000 steps, no dropout, the
first 90% of the characters for training and the last 10% held out; it publishes a validation loss of 1.88.

Record (2026-11-25, two cores of an AMD EPYC with AVX-512, jax 0.10.2): 140 s in all; eval loss 1.7774 over the whole
validation split. With nanoGPT's own peak learning rate of 1e-3 it is 1.9100; here it is 3e-3.
"""

import flaxllm
from flaxllm.errors import InputError


def get_config(path=None):
    if not path:
        raise InputError("shakespeare_char needs the text's path: --config=experiments/shakespeare_char.py:input.txt")
    config = flaxllm.default_config(
        "gpt2-124m", max_len=64, num_layers=4, num_heads=4, head_dim=32, d_model=128, d_mlp=512
    )
    config.data.update(source=path, tokenizer="chars", holdout="tail", eval_fraction=0.1, max_len=64, batch_size=12)
    config.optimizer.update(learning_rate=3e-3, warmup_steps=100, final_fraction=0.1, b2=0.99)
    config.train.update(num_steps=2000, eval_every=250, sample_every=1000, checkpoint_every=500)
    return config


def sweep(add):
    for learning_rate in (1e-3, 3e-3, 1e-2):
        add({"optimizer.learning_rate": learning_rate})
