"""GPT-3 175B (Brown et al. 2020, table 2.1), to see what it would take.

    python launch.py --config=experiments/gpt3_175b.py --dry_run
    python launch.py --config=experiments/gpt3_175b.py:tiny --workdir=runs/gpt3_tiny

The batch is 3.2 M tokens, on 1,024 devices by 8-way tensor and 128-way fully sharded data parallelism: the dry run prints
parameters, shardings, memory and operations on each, and allocates nothing.
"""

import flaxllm


def get_config(argument=None):
    if argument == "tiny":
        config = flaxllm.default_config("gpt3-small", max_len=64, num_layers=2, num_heads=2, head_dim=16, d_model=32, d_mlp=64)
        config.data.update(max_len=64, batch_size=8)
        config.optimizer.warmup_steps = 5
        config.train.update(num_steps=20, eval_every=20, sample_every=20, checkpoint_every=20)
        return config
    config = flaxllm.default_config("gpt3-175b")
    config.data.update(source="python-docs", tokenizer="bpe", vocab_size=50257, max_len=2048, batch_size=1536)
    config.optimizer.update(learning_rate=6e-5, warmup_steps=117, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
    config.train.update(num_steps=95_000, micro_batches=2)
    config.mesh, config.compute_dtype, config.remat = "fsdp:128,model:8", "bfloat16", "full"
    return config
