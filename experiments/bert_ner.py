"""A BERT fine-tuned to find the names in sentences (CoNLL-2003), or any other tags of words.

    python launch.py --config=experiments/bert_ner.py:path/to/checkpoint --workdir=runs/conll \\
        --config.data.source=conll2003/train.txt --config.data.eval_source=conll2003/validation.txt
    python launch.py --config=experiments/bert_ner.py:tiny --workdir=runs/ner_tiny

The checkpoint is a Hugging Face folder or a hub id; the sources are CoNLL files with IOB2 tags. `tiny` finds names, strings,
numbers and keywords in statements of Python, in a minute.

Record (2026-11-26, one core of an AMD EPYC with AVX-512, jax 0.10.2, seed 0), MiniLM-L6 (the six layers of all-MiniLM-L6-v2,
which is of lower case) and one epoch of CoNLL-2003 (--config.train.num_steps=439): 18 min; F1 0.878 of entities by their exact
bounds, precision 0.869, recall 0.888, on the 3,250 sentences of the validation set. With dropout off the first 50 losses
are those of transformers in torch within 7.0e-6; with it, the same recipe in torch (one seed too, both cores, 8 min) comes to
F1 0.875, precision 0.863, recall 0.888 (benchmarks/learning.py).
"""

import flaxllm
from flaxllm.errors import InputError

NAMES = ("PER", "ORG", "LOC", "MISC")
PYTHON = ("NAME", "STRING", "NUMBER", "KEYWORD")


def get_config(checkpoint=None):
    if not checkpoint:
        raise InputError("bert_ner needs a checkpoint: --config=experiments/bert_ner.py:folder (or :tiny)")
    kinds = PYTHON if checkpoint == "tiny" else NAMES
    labels = ("O", *(f"{place}-{kind}" for kind in kinds for place in "BI"))
    if checkpoint == "tiny":
        sizes = dict(max_len=64, num_layers=2, num_heads=2, head_dim=32, d_model=64, d_mlp=128)
        config = flaxllm.default_config("bert-base", objective="token-classification", labels=labels, **sizes)
        config.data.update(source="python-tokens:train", eval_source="python-tokens:eval", max_len=64)
        config.data.update(tokenizer="wordpiece", vocab_size=2000)
        config.train.update(num_steps=200, eval_every=100, checkpoint_every=100)
        config.optimizer.learning_rate = 1e-3
    else:
        config = flaxllm.default_config(objective="token-classification", checkpoint=checkpoint, labels=labels)
        config.data.update(source="conll2003/train.txt", eval_source="conll2003/validation.txt", format="conll", max_len=96)
        config.train.update(num_steps=1317, eval_every=439, checkpoint_every=439, best="eval/f1")
        config.optimizer.learning_rate = 1e-4
    config.data.update(batch_size=32, pad_to_multiple_of=16)
    config.optimizer.update(schedule="linear", final_fraction=0.0, warmup_steps=100, weight_decay=0.01, b2=0.999)
    return config
