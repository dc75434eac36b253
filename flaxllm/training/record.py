"""What a run writes beside its numbers, so that it can be run again, and what it compares when it is resumed."""

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from flaxllm.errors import InputError

# What the parameters and the stream of batches are made of: a run with other ones is another run.
FIXED_SECTIONS = ("model", "data", "objective")
JUDGING_KEYS = ("objective.metric",)  # of these sections, but trains nothing
FIXED_KEYS = ("seed", "optimizer.name")


def write_record(workdir: Path, config: ConfigDict, data_fingerprint: str) -> None:
    """`config.json`, the resolved config, and `run.json`, the versions, devices, commit and data it ran with."""
    packages = ("flaxllm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")
    record = {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changes": bool(_git("status", "--porcelain")),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "data_fingerprint": data_fingerprint,
    }
    (workdir / "config.json").write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")
    (workdir / "run.json").write_text(json.dumps(record, indent=2) + "\n")


def compare_configs(saved: dict, current: dict) -> list[str]:
    """The keys that differ between a checkpoint's config and this run's, as lines to show.

    Raises:
      InputError: a key of the model, the data or the objective differs that training reads, or the seed, or the optimizer's name.
    """
    before, now = (_plain(config) for config in (saved, current))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    lines = {key: f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed}
    for key in changed:
        if key in FIXED_KEYS or key.split(".")[0] in FIXED_SECTIONS and key not in JUDGING_KEYS:
            raise InputError(
                f"this workdir's checkpoint was made with another config ({lines[key]}): "
                "change it back, or use another --workdir"
            )
    return list(lines.values())


def check_fingerprint(saved: str, current: str) -> None:
    """Raise InputError if a checkpoint was trained on other data than what the config now names."""
    if saved != current:
        raise InputError(
            f"the data changed since this workdir's checkpoint (fingerprint {saved[:12]}, now {current[:12]}): "
            "restore the data it was trained on, or use another --workdir"
        )


def _plain(config: dict) -> dict:
    return flatten_dict(json.loads(json.dumps(config)), sep=".")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
