"""Write what transformers' pipelines give for each case. Needs the [parity] extra; to be run from `tests`:

    python -m pipelines.make_pipeline_fixtures

Nothing may hang on rounding: a model whose weights are all changed by about 1e-6 of themselves must write the same texts.
"""

import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from pipelines.pipeline_cases import CASES, FIXTURES, Case, asked, write
from real_weights import minilm_folder

SENTENCES = ["The house is wonderful.", "My name is Wolfgang and I live in Berlin."]


def answers(case: Case, pipe: transformers.Pipeline) -> list:
    found = []
    for call in case.calls:
        inputs, options = asked(call, case.task)
        found.append(plain(pipe(*copy.deepcopy(inputs), **options)))
    return found


def plain(value: object) -> object:
    """As JSON has it, with numbers of seven digits."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return float(f"{value:.7g}") if isinstance(value, float | np.floating) else value


def main() -> None:
    frozen = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            pipe = transformers.pipeline(case.task, str(write(case, Path(folder))), dtype="float32", device="cpu")
        frozen[name] = answers(case, pipe)
        if case.task == "text-generation":
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for tensor in pipe.model.parameters():
                    tensor.mul_(1 + 1e-6 * torch.randn(tensor.shape, generator=generator))
            if answers(case, pipe) != frozen[name]:
                raise SystemExit(f"{name}: the texts hang on rounding: change the gain")
        print(name, str(frozen[name])[:300], flush=True)
    extract = transformers.pipeline("feature-extraction", str(minilm_folder()), dtype="float32", device="cpu")
    features = [np.array(extract(sentence))[0, ::3, :6].tolist() for sentence in SENTENCES]
    frozen["MiniLM"] = {"sentences": SENTENCES, "features": plain(features)}
    FIXTURES.write_text(json.dumps(frozen, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
