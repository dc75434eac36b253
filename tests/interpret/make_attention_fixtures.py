"""Write the attention weights that transformers returns (eager) for some of the parity checkpoints. Needs the [parity] extra;
to be run from `tests`:

    python -m interpret.make_attention_fixtures
"""

import json

import numpy as np
import torch
import transformers

from interpret.attention_cases import CASES, FILE
from parity.batch import source_side
from parity.case import FIXTURES, cases
from parity.frozen import read_arrays
from parity.reference import THEIR_NAMES


@torch.no_grad()
def reference(family: str, name: str) -> dict[str, np.ndarray]:
    """The weights `[layers, batch, heads, queries, keys]` by our names."""
    case, folder = cases(family)[name], FIXTURES / family / name
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(folder, attn_implementation="eager").eval()
    inputs = {THEIR_NAMES[ours]: torch.tensor(x).long() for ours, x in read_arrays(folder)["inputs"].items()}
    if case.tell_positions:
        inputs["position_ids"] = torch.tensor(source_side(case).positions(case.batch)).long()
    output = model(**inputs, output_attentions=True)
    if "encoder_attentions" in output:
        found = {ours: output[f"{ours}_attentions"] for ours in ("encoder", "decoder", "cross")}
    else:
        found = {"decoder" if family in ("gpt", "llama") else "encoder": output["attentions"]}
    return {ours: torch.stack(layers).numpy() for ours, layers in found.items()}


def main() -> None:
    arrays = {f"{family}/{name}/{ours}": x for family, name in CASES for ours, x in reference(family, name).items()}
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **arrays)
    for name, x in arrays.items():
        print(name, x.shape)
    print(f"{FILE.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
