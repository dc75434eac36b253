"""What every family's config must hold: sizes, rates of dropout, and an activation that there is."""

from typing import Any

from flaxllm import nn
from flaxllm.errors import InputError, did_you_mean


def check_at_least(least: int, family: str, config: Any, *names: str) -> None:
    """Raise InputError where one of these fields is below `least`; None is left alone."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"the {family} config needs {name} of {least} or more, got {value}")


def check_rates(family: str, config: Any, *names: str) -> None:
    """Raise InputError where one of these fields is no rate of dropout; None is left alone."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0.0 <= value < 1.0:
            raise InputError(f"the {family} config needs {name} in [0, 1), got {value}")


def check_activations(family: str, config: Any, *names: str) -> None:
    """Raise InputError where one of these fields names no activation; None is left alone."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value not in nn.ACTIVATIONS:
            known = did_you_mean(value, nn.ACTIVATIONS)
            raise InputError(f"the {family} config has an unknown {name} {value!r}: {known}")
