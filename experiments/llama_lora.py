"""The same as llama_sft, by an adapter of rank 8 (Hu et al. 2021): one in three hundred parameters is trained.

    python launch.py --config=experiments/llama_lora.py:path/to/checkpoint --workdir=runs/lora --config.data.source=chats.jsonl
    python launch.py --config=experiments/llama_lora.py:tiny --workdir=runs/lora_tiny

The workdir's folder `adapter` then has the adapter in PEFT's format, and `model` the model with the adapter in it. `tiny` puts
an adapter on parameters drawn at random, in a minute: it shows that the loss falls, and is of no other use.

No record yet.
"""

from pathlib import Path

from flaxllm.errors import InputError
from flaxllm.training.experiment import load_experiment


def get_config(checkpoint=None):
    if not checkpoint:
        raise InputError("llama_lora needs a checkpoint: --config=experiments/llama_lora.py:folder (or :tiny)")
    config = load_experiment(f"{Path(__file__).with_name('llama_sft.py')}:{checkpoint}").config
    config.lora.update(rank=8, alpha=16.0)
    config.optimizer.learning_rate = 1e-2 if checkpoint == "tiny" else 1e-3
    return config
