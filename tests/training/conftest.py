import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from flaxllm.models import Model, build

VOCAB, LENGTH, ROWS = 40, 12, 16


@pytest.fixture
def optimizer_config() -> ConfigDict:
    return ConfigDict({
        "name": "adamw", "learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 0, "final_fraction": 0.1,
        "b1": 0.9, "b2": 0.95, "eps": 1e-8, "momentum": 0.95, "weight_decay": 0.1, "clip_norm": 0.0,
        "layer_decay": 1.0, "freeze": (),
    })  # fmt: skip


@pytest.fixture
def tiny_model() -> Model:
    return build("gpt", dict(vocab_size=VOCAB, max_len=LENGTH, num_layers=2, num_heads=4, head_dim=4, d_model=16,
                             d_mlp=32))  # fmt: skip


@pytest.fixture
def ragged_batch() -> dict[str, np.ndarray]:
    """Rows of 1 to 12 tokens, each row one document."""
    rng = np.random.default_rng(0)
    filled = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (ROWS, 1))
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
    return {
        "tokens": tokens[:, :-1] * filled,
        "targets": tokens[:, 1:] * filled,
        "weights": filled.astype(np.float32) * rng.uniform(0.1, 2.0, (ROWS, 1)).astype(np.float32),
        "segments": filled.astype(np.int32),
        "positions": np.arange(LENGTH, dtype=np.int32) * filled,
        "row": np.arange(ROWS, dtype=np.int32),
    }


def on_device(batch: dict[str, np.ndarray]) -> dict:
    return {name: jnp.asarray(value) for name, value in batch.items()}
