"""Whole tasks on a checkpoint: from text to text, labels or features."""

from flaxllm.pipelines.tasks import TASKS, Pipeline, pipeline
from flaxllm.pipelines.writing import prompt_tokens, write
