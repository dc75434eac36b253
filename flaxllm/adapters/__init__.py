"""Faces of a model for those who work with other libraries."""

from flaxllm.adapters.linen import LinenModel, as_linen
