"""What PEFT makes of its own adapters, written to fixtures/peft. Needs the [parity] extra; to be run from `tests`:

    pip install peft && python -m pretrained.make_peft_fixtures
"""

import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

from parity.case import FIXTURES as BASES
from parity.case import cases
from parity.frozen import at_kept, read_arrays
from parity.reference import outputs_of
from pretrained.peft_cases import CASES, FIXTURES, Case


def main() -> None:
    shutil.rmtree(FIXTURES, ignore_errors=True)
    for name, case in CASES.items():
        write(case, FIXTURES / name)
        print(f"{name}: {sum(file.stat().st_size for file in (FIXTURES / name).iterdir()) / 1024:.0f} KiB")


def write(case: Case, folder: Path) -> None:
    family, name = case.base.split("/")
    base = cases(family)[name]
    model = getattr(transformers, base.architecture).from_pretrained(BASES / case.base, attn_implementation="eager")
    model = get_peft_model(model, LoraConfig(**case.config)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (p for p in model.parameters() if p.requires_grad):
            tensor.normal_(0.0, 0.4, generator=generator)
    model.peft_config["default"].base_model_name_or_path = case.base
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    np.savez_compressed(folder / "outputs.npz", **computed(case, model.get_base_model()))


def computed(case: Case, model: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    family, name = case.base.split("/")
    arrays = read_arrays(BASES / case.base)
    with torch.no_grad():
        outputs = outputs_of(cases(family)[name], model, arrays["inputs"])
    return {name: at_kept(outputs[name].numpy(), name, arrays["kept"]) for name in arrays["outputs"]}


if __name__ == "__main__":
    main()
