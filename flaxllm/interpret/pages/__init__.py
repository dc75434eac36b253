"""Pages that show what is inside a model: each one file that asks for nothing, on whatever machine it is opened."""

from flaxllm.interpret.pages.page import MOST_BYTES, check_size, pack, render
