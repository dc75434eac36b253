"""Training: the state, the optimizer, the step, the loop, checkpoints and what is written down."""

from flaxllm.training.config import default_config
from flaxllm.training.loop import evaluate, train
from flaxllm.training.stopping import NonFiniteError
