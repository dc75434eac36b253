"""Text out of a model."""

from flaxllm.decoding.generate import generate
