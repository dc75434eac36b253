"""A BERT fine-tuned to find the answers to questions in a text (SQuAD 1.1 and 2.0).

    python launch.py --config=experiments/bert_qa.py:path/to/checkpoint --workdir=runs/squad \\
        --config.data.source=squad/train-v2.0.json --config.data.eval_source=squad/dev-v2.0.json
    python launch.py --config=experiments/bert_qa.py:tiny --workdir=runs/qa_tiny

The checkpoint is a Hugging Face folder or a hub id. `tiny` answers questions about functions, in a minute.

No record yet.
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
