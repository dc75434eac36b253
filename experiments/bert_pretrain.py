"""A small BERT pretrained on a text of your own: masked tokens, and whether one text follows another.

    python launch.py --config=experiments/bert_pretrain.py:path/to/text --workdir=runs/bert_pretrain
    python launch.py --config=experiments/bert_pretrain.py:tiny --workdir=runs/bert_tiny

The path is that of a file, a folder or a glob. `tiny` takes Python's documentation, and a minute.

Record (2026-11-26, one core of an AMD EPYC with AVX-512, jax 0.10.2, seed 0), 13 MB of prose (Austen, the Bible, the Brown
corpus), made smaller than below to fit these cores: --config.model.num_layers=2 --config.model.num_heads=2
--config.model.d_model=128 --config.model.d_mlp=512 --config.model.dropout=0.0 --config.model.attention_dropout=0.0
--config.data.vocab_size=2048 --config.data.max_len=64 --config.data.batch_size=64 --config.optimizer.learning_rate=1.5e-3: 27 min
for 25 million tokens. The loss of the held-out masked tokens falls to 5.648, their accuracy is 0.142, and the next sentence is
guessed right in 0.563 of the pairs: little more than how often each token comes was learnt.

It helps to find names: one epoch of CoNLL-2003 from it (bert_ner, 439 steps at 5e-4, seeds 0 to 2) has F1 0.374, 0.366 and
0.364, from scratch 0.341, 0.343 and 0.342. Shakespeare's masked tokens, 300 steps of this file at 1e-3, have a loss of 5.509
from it, and of 5.845 from scratch. It does not help to tell sentiments (bert_classify, 10,000 texts of SST-2, 624 steps at
5e-4): accuracy 0.722, 0.725 and 0.718, from scratch 0.732, 0.716 and 0.725.

As the file has it (4 layers), 400 steps come to 6.40 (12 min), and 2,000 on texts of 64 tokens to 6.21. Other
rates (5e-4, 2e-3), no dropout, and a wider initialisation were no better in their first 300 to 500 steps.
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
