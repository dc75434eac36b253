"""Checkpoints people already have: names, files, tokenizers; read into our parameters and written back."""

from flaxllm.pretrained.inspection import inspect
from flaxllm.pretrained.load import BASE, from_pretrained
from flaxllm.pretrained.save import convert, save_pretrained
