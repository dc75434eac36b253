"""Which of our families a checkpoint belongs to, and which head its config says it has."""

from types import ModuleType

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
    if model_type not in known:
        raise InputError(f"{keys.file} has model_type {model_type!r}, no model of flaxllm: {did_you_mean(model_type, known)}")
    return known[model_type]


def head_of(keys: Keys, family: str) -> str | None:
    """The head that a config.json's first architecture names; None where it names none.

    Raises:
      InputError: the architecture is not known.
    """
    architectures, known = keys.get("architectures", []), FAMILIES[family].ARCHITECTURES
    if not architectures:
        return None
    if not isinstance(architectures, list) or architectures[0] not in known:
        wrong = architectures[0] if isinstance(architectures, list) else architectures
        raise InputError(f"{keys.file} has the architecture {wrong!r}, which is not known: {did_you_mean(str(wrong), known)}")
    return known[architectures[0]]


def architecture_of(model_type: str, family: str, head: str | None) -> str:
    """The name of Hugging Face's class for a model with this head.

    Raises:
      InputError: there is none.
    """
    start = model_type.replace("-", "").lower()
    for name, its_head in FAMILIES[family].ARCHITECTURES.items():
        if its_head == head and name.lower().startswith(start):
            return name
    raise InputError(f"a {model_type} checkpoint cannot say that it has the head {head!r}: save the model with another head")
