"""Which of our families a checkpoint belongs to, and which head its config says it has."""

from collections.abc import Iterable
from types import ModuleType

from flaxllm.data.json_file import brief
from flaxllm.errors import InputError, did_you_mean
from flaxllm.pretrained import bert, gpt, llama, t5, transformer
from flaxllm.pretrained.config_file import Keys

# Each has MODEL_TYPES, ARCHITECTURES, read_config, write_config and names.
FAMILIES: dict[str, ModuleType] = {"bert": bert, "gpt": gpt, "llama": llama, "t5": t5, "transformer": transformer}


def family_of(keys: Keys) -> str:
    """The family of a config.json, by its model_type.

    Raises:
      InputError: none of ours computes it.
    """
    model_type = keys.get("model_type")
    known = {name: family for family, module in FAMILIES.items() for name in module.MODEL_TYPES}
    if not isinstance(model_type, str) or model_type not in known:
        hint = did_you_mean(str(model_type), known)
        raise InputError(f"{keys.file} has model_type {brief(model_type)}, no model of flaxllm: {hint}")
    return known[model_type]


def head_of(keys: Keys, family: str) -> str | None:
    """The head that a config.json's first architecture names; None where it names none.

    Raises:
      InputError: the architecture is not known.
    """
    architectures, known = keys.get("architectures", []), FAMILIES[family].ARCHITECTURES
    if not architectures:
        return None
    name = architectures[0] if isinstance(architectures, list) else architectures
    if not isinstance(name, str) or name not in known:
        hint = did_you_mean(str(name), _of_type(keys.get("model_type"), known))
        raise InputError(f"{keys.file} has the architecture {brief(name)}, which is not known: {hint}")
    return known[name]


def architecture_of(model_type: str, family: str, head: str | None) -> str:
    """The name of Hugging Face's class for a model with this head.

    Raises:
      InputError: there is none.
    """
    architectures = FAMILIES[family].ARCHITECTURES
    for name in _of_type(model_type, architectures):
        if architectures[name] == head:
            return name
    raise InputError(f"a {model_type} checkpoint cannot say that it has the head {head!r}: save the model with another head")


def _of_type(model_type: str, architectures: Iterable[str]) -> list[str]:
    start = model_type.replace("-", "").lower()
    return [name for name in architectures if name.lower().startswith(start)]
