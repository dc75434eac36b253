"""A BERT fine-tuned to find the answers to questions in a text (SQuAD 1.1 and 2.0).

    python launch.py --config=experiments/bert_qa.py:path/to/checkpoint --workdir=runs/squad \\
        --config.data.source=squad/train-v2.0.json --config.data.eval_source=squad/dev-v2.0.json
    python launch.py --config=experiments/bert_qa.py:tiny --workdir=runs/qa_tiny

The checkpoint is a Hugging Face folder or a hub id. `tiny` answers questions about functions, in a minute.

Record (2026-11-26, one core of an AMD EPYC with AVX-512, jax 0.10.2, seed 0), MiniLM-L6 (the six layers of all-MiniLM-L6-v2),
--config.data.max_len=256 --config.train.num_steps=160, on what could be had of SQuAD's development sets: 1,820 questions of 36
articles to learn from (33 of 1.1, 3 of 2.0) and 457 of two other articles of 2.0, 225 without an answer. 16 min: exact match
34.8, F1 37.4; of the questions with an answer 11.2 and 16.4, of those without 59.1. So few questions and steps teach little:
after 80 steps it answers none, which is worth 49.2 by either measure. With dropout off the first 50 losses are those of
transformers in torch within 1.0e-5 (benchmarks/learning.py).
"""

import flaxllm
from flaxllm.errors import InputError


def get_config(checkpoint=None):
    if not checkpoint:
        raise InputError("bert_qa needs a checkpoint: --config=experiments/bert_qa.py:folder (or :tiny)")
    if checkpoint == "tiny":
        sizes = dict(max_len=128, num_layers=2, num_heads=2, head_dim=32, d_model=64, d_mlp=128)
        config = flaxllm.default_config("bert-base", objective="question-answering", **sizes)
        config.data.update(source="python-questions:train", eval_source="python-questions:eval", max_len=128, batch_size=16)
        config.data.update(tokenizer="wordpiece", vocab_size=2000)
        config.objective.update(doc_stride=32, max_question_len=32)
        config.train.update(num_steps=150, eval_every=150, checkpoint_every=150)
        config.eval.max_items = 200
        config.optimizer.learning_rate = 1e-3
    else:
        config = flaxllm.default_config(objective="question-answering", checkpoint=checkpoint)
        config.data.update(source="squad/train-v2.0.json", eval_source="squad/dev-v2.0.json", format="squad", max_len=384)
        config.data.batch_size = 16
        config.train.update(num_steps=600, eval_every=200, checkpoint_every=200, best="eval/f1")
        config.optimizer.learning_rate = 1e-4
    config.optimizer.update(schedule="linear", final_fraction=0.0, warmup_steps=50, weight_decay=0.01, b2=0.999)
    return config
