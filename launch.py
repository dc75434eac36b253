"""Trains what an experiment file describes: `python launch.py --help`."""

from flaxllm.cli import launch

if __name__ == "__main__":
    launch()
