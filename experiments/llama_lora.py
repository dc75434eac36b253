"""The same as llama_sft, by an adapter of rank 8 (Hu et al. 2021): a thousandth of the parameters is trained.

    python launch.py --config=experiments/llama_lora.py:path/to/checkpoint --workdir=runs/lora --config.data.source=chats.jsonl
    python launch.py --config=experiments/llama_lora.py:tiny --workdir=runs/lora_tiny

The workdir's folder `adapter` then has the adapter in PEFT's format, and `model` the model with the adapter in it. `tiny` puts
an adapter on parameters drawn at random, in a minute: it shows that the loss falls, and is of no other use.

No record yet.
"""

import flaxllm
from flaxllm.errors import InputError


def get_config(checkpoint=None):
    if not checkpoint:
        raise InputError("llama_lora needs a checkpoint: --config=experiments/llama_lora.py:folder (or :tiny)")
    if checkpoint == "tiny":
        sizes = dict(max_len=128, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=32, d_model=64, d_mlp=128)
        config = flaxllm.default_config("smollm2-135m", objective="sft", **sizes)
        config.data.update(source="python-functions:train", eval_source="python-functions:eval")
        config.data.update(columns=dict(prompt="source", completion="target"), tokenizer="bpe", vocab_size=1000, max_len=128)
        config.data.malformed = "skip"  # a few signatures are longer
        config.train.update(num_steps=100, eval_every=50, sample_every=0, checkpoint_every=50)
    else:
        config = flaxllm.default_config(objective="sft", checkpoint=checkpoint)
        config.data.update(source="python-chat:train", eval_source="python-chat:eval", max_len=256)
        config.train.update(num_steps=200, eval_every=50, sample_every=100, checkpoint_every=100)
    config.data.batch_size = 8
    config.lora.update(rank=8, alpha=16.0)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=10, weight_decay=0.0, b2=0.999)
    config.sample.update(prompt="What does os.path.join do?", num_tokens=40, temperature=0.7)
    return config
