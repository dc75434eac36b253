"""An experiment of seconds, for the tests that run launch.py in processes of their own."""

import flaxllm


def get_config(source):
    config = flaxllm.default_config(
        "gpt2-124m", max_len=16, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=32, dropout=0.1,
        attention_dropout=0.1,
    )  # fmt: skip
    config.data.update(source=source, max_len=16, batch_size=8, shards=2)
    config.optimizer.update(schedule="constant", learning_rate=3e-3, warmup_steps=5)
    config.train.update(num_steps=30, eval_every=10, sample_every=10, checkpoint_every=4, keep_checkpoints=3)
    config.sample.update(prompt="t", num_tokens=5)
    return config
