"""A small GPT-2 pretrained on a text of your own.

    python launch.py --config=experiments/gpt2_pretrain.py:path/to/text --workdir=runs/gpt2_pretrain
    python launch.py --config=experiments/gpt2_pretrain.py:tiny --workdir=runs/gpt2_tiny

The path is that of a file, a folder or a glob. `tiny` takes Python's documentation, and a minute.

Record (2026-11-26, one core of an AMD EPYC with AVX-512, jax 0.10.2, seed 0), 13 MB of prose (Austen, the Bible, the Brown
corpus) with --config.train.num_steps=500, 2 million tokens: 29 min; eval loss 5.403, 2.165 bits per byte, and still falling
(5.661 and 2.268 after 250 steps).

It helps with another text: on 1.1 MB of Shakespeare, by this file with 120 steps at 1e-3, 20 of warm-up and the same tokenizer,
--config.init_from=runs/gpt2_pretrain/model comes to 2.443 bits per byte of the part that is held out, and a start from scratch to
2.633 (after 40 steps 2.527 and 2.871). It has not helped to tell sentiments (bert_classify, 10,000 texts of SST-2 at 3e-4):
accuracy 0.711 after 200 steps, from scratch 0.688 after 156 and 0.729 after 312.
"""

import flaxllm
from flaxllm.errors import InputError


def get_config(path=None):
    if not path:
        raise InputError("gpt2_pretrain needs a text: --config=experiments/gpt2_pretrain.py:text.txt (or :tiny)")
    if path == "tiny":
        config = flaxllm.default_config("gpt2-124m", max_len=64, num_layers=2, num_heads=2, head_dim=32, d_model=64, d_mlp=256)
        config.data.update(source="python-docs", tokenizer="bpe", vocab_size=512, max_len=64, batch_size=16)
        config.train.update(num_steps=150, eval_every=75, sample_every=150, checkpoint_every=75)
    else:
        config = flaxllm.default_config(
            "gpt2-124m", max_len=256, num_layers=6, num_heads=4, head_dim=64, d_model=256, d_mlp=1024, dropout=0.1
        )
        config.data.update(source=path, tokenizer="bpe", vocab_size=8192, max_len=256, batch_size=16)
        config.train.update(num_steps=4000, eval_every=500, sample_every=1000, checkpoint_every=500)
    config.data.update(holdout="tail", eval_fraction=0.05)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=50, b2=0.99)
    config.sample.update(prompt="It is", num_tokens=60)
    return config
