"""A small BERT pretrained on a text of your own: masked tokens, and whether one text follows another.

    python launch.py --config=experiments/bert_pretrain.py:path/to/text --workdir=runs/bert_pretrain
    python launch.py --config=experiments/bert_pretrain.py:tiny --workdir=runs/bert_tiny

The path is that of a file, a folder or a glob. `tiny` takes Python's documentation, and a minute.

Record (2026-11-26, one core of an AMD EPYC with AVX-512, jax 0.10.2, seed 0), 13 MB of prose (Austen, the Bible, the Brown
corpus) with --config.train.num_steps=400, 1.6 million tokens: 12 min; the loss of masked tokens comes down to 6.40, which
is not much more than how often each comes, and the next sentence is at chance. That is too short to be of use: fine-tuned on
10,000 texts of SST-2 (bert_classify, 2 epochs at 3e-4) it has an accuracy of 0.745, and the same model from scratch 0.761. The
6,000 steps below were not run yet.
"""

import flaxllm
from flaxllm.errors import InputError


def get_config(path=None):
    if not path:
        raise InputError("bert_pretrain needs a text: --config=experiments/bert_pretrain.py:text.txt (or :tiny)")
    if path == "tiny":
        sizes = dict(max_len=64, num_layers=2, num_heads=2, head_dim=32, d_model=64, d_mlp=256)
        config = flaxllm.default_config("bert-base", objective="pretraining", **sizes)
        config.data.update(source="python-docs", tokenizer="wordpiece", vocab_size=1024, max_len=64, batch_size=16)
        config.train.update(num_steps=150, eval_every=75, checkpoint_every=75)
    else:
        sizes = dict(max_len=128, num_layers=4, num_heads=4, head_dim=64, d_model=256, d_mlp=1024)
        config = flaxllm.default_config("bert-base", objective="pretraining", **sizes)
        config.data.update(source=path, tokenizer="wordpiece", vocab_size=8192, max_len=128, batch_size=32)
        config.train.update(num_steps=6000, eval_every=1000, checkpoint_every=500)
    config.data.update(holdout="tail", eval_fraction=0.05)
    config.optimizer.update(learning_rate=1e-3, schedule="linear", final_fraction=0.0, warmup_steps=100)
    config.optimizer.update(weight_decay=0.01, b2=0.98)
    return config
