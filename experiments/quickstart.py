"""A small GPT on the interpreter's own documentation: no download, a few minutes on a laptop.

    python launch.py --config=experiments/quickstart.py --workdir=runs/quickstart

Record (2026-11-25, two cores of an AMD EPYC with AVX-512, Python 3.11.7, jax 0.10.2): 124 s in all, 11,000 tokens/s; eval
loss 3.8467, 1.961 bits per byte. The text is that of the interpreter, so that other Pythons give other numbers.
"""

import flaxllm


def get_config():
    config = flaxllm.default_config(
        "gpt2-124m", max_len=128, num_layers=4, num_heads=4, head_dim=32, d_model=128, d_mlp=512
    )
    config.data.update(source="python-docs", tokenizer="bpe", vocab_size=1024, holdout="documents", max_len=128,
                       batch_size=16)
    config.optimizer.update(learning_rate=3e-3, warmup_steps=50)
    config.train.update(num_steps=600, eval_every=200, sample_every=600, checkpoint_every=200)
    config.sample.update(prompt="The for statement", num_tokens=80, temperature=0.7)
    return config
