"""Whole tasks on a checkpoint: from text to text."""

from flaxllm.pipelines.writing import prompt_tokens, write
