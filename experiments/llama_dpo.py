"""A Llama that learns which of two answers is better (Rafailov et al. 2023).

    python launch.py --config=experiments/llama_dpo.py:path/to/checkpoint --workdir=runs/dpo --config.data.source=pairs.jsonl
    python launch.py --config=experiments/llama_dpo.py:tiny --workdir=runs/dpo_tiny

The checkpoint is a Hugging Face folder, a hub id or a GGUF file; the records of the source have `prompt`, `chosen` and
`rejected`. `tiny` starts from parameters drawn at random, in a minute: it shows that all of it runs, and is of no other use.

No record yet.
"""

import flaxllm
from flaxllm.errors import InputError


def get_config(checkpoint=None):
    if not checkpoint:
        raise InputError("llama_dpo needs a checkpoint: --config=experiments/llama_dpo.py:folder (or :tiny)")
    if checkpoint == "tiny":
        sizes = dict(max_len=96, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=32, d_model=64, d_mlp=128)
        config = flaxllm.default_config("smollm2-135m", objective="dpo", **sizes)
        config.data.update(tokenizer="bpe", vocab_size=1000, max_len=96, batch_size=16)
        config.train.update(num_steps=100, eval_every=50, sample_every=0, checkpoint_every=50)
        config.optimizer.learning_rate = 1e-3
    else:
        config = flaxllm.default_config(objective="dpo", checkpoint=checkpoint)
        config.data.update(max_len=256, batch_size=8)
        config.train.update(num_steps=200, eval_every=50, sample_every=100, checkpoint_every=100)
        config.optimizer.learning_rate = 5e-6
    config.data.update(source="python-preferences:train", eval_source="python-preferences:eval")
    config.optimizer.update(warmup_steps=10, weight_decay=0.0, b2=0.999)
    config.sample.update(prompt="What does os.path.join do?", num_tokens=40, temperature=0.7)
    return config
