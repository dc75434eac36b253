"""Trains what an experiment file describes: `python launch.py --help`."""

from flaxllm.cli import launch
from flaxllm.memory import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()
    launch()
