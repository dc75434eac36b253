"""Write what transformers generates for each case. Needs the [parity] extra; to be run from `tests`:

    python -m decoding.make_generation_fixtures

Nothing may hang on rounding, or tokens could differ rightly. So the two best tokens of each greedy step must be 1e-3 apart, and
a model whose weights are all changed by about 1e-5 of themselves must still write every text, else another seed is needed.
"""

import json
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig

from decoding.generation_cases import BEAMS, CASES, GREEDY, NEW, Case, N, parameters, prompts, requests
from flaxllm.pretrained.save import save_pretrained

FILE = Path(__file__).parent / "fixtures" / "generation.json"
APART = 1e-3


def reference(case: Case) -> dict:
    """The texts of all requests, without padding, and the scores of those of beam search.

    `end`, by which a text ends, is a token in the middle of what greedy search writes with no such token.
    """
    model = torch_model(case)
    end = generated(model, case, None)[0][0][NEW // 4]
    greedy = {name: generated(model, case, end, **options)[0] for name, options in requests(case, GREEDY).items()}
    beams = {name: beam_searched(model, case, end, **options) for name, options in requests(case, BEAMS).items()}
    return {"end": end, "greedy": greedy, "beams": beams}


def beam_searched(model: transformers.PreTrainedModel, case: Case, end: int, **options) -> dict:
    rows, output = generated(model, case, end, num_beams=case.num_beams, num_return_sequences=N, **options)
    return {"rows": rows, "scores": [round(score, 6) for score in output.sequences_scores.tolist()]}


def torch_model(case: Case) -> transformers.PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, case.model, parameters(case))
        architecture = json.loads((Path(folder) / "config.json").read_text())["architectures"][0]
        model = getattr(transformers, architecture).from_pretrained(folder, attn_implementation="eager").eval()
    model.generation_config = GenerationConfig()  # nothing but what is asked for
    return model


@torch.no_grad()
def generated(model: transformers.PreTrainedModel, case: Case, end: int | None, **options) -> tuple[list[list[int]], object]:
    """The rows after the prompts, which are padded on the left where there is no encoder."""
    rows, encodes, pad = prompts(case), model.config.is_encoder_decoder, end or 0
    width = max(map(len, rows))
    places = [slice(0, len(row)) if encodes else slice(width - len(row), width) for row in rows]
    tokens, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for number, (row, place) in enumerate(zip(rows, places)):
        tokens[number, place], mask[number, place] = torch.tensor(row), 1
    config = GenerationConfig(
        max_new_tokens=NEW, do_sample=False, pad_token_id=pad, eos_token_id=end, return_dict_in_generate=True,
        output_scores=True, decoder_start_token_id=case.model.config.decoder_start_token if encodes else None, **options,
    )  # fmt: skip
    output = model.generate(tokens, attention_mask=mask, generation_config=config)
    new = output.sequences[:, 1 if encodes else width :].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in new], output


def check_no_ties(case: Case, expected: dict) -> None:
    model = torch_model(case)
    for name, options in requests(case, GREEDY).items():
        rows, output = generated(model, case, expected["end"], **options)
        best = torch.stack(output.scores, 1).topk(2).values
        for row, texts in enumerate(rows):
            gap = float((best[row, : len(texts), 0] - best[row, : len(texts), 1]).min())
            if gap < APART:
                raise SystemExit(f"{name}: two best tokens are {gap:.1e} apart: change the seed")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(1 + 1e-5 * torch.randn(tensor.shape, generator=generator))
    for name, options in requests(case, BEAMS).items():
        found = beam_searched(model, case, expected["end"], **options)
        if found["rows"] != expected["beams"][name]["rows"]:
            raise SystemExit(f"beams {name}: the texts hang on rounding: change the seed")


def main() -> None:
    texts = {}
    for name, case in CASES.items():
        texts[name] = reference(case)
        print(name, *(" ".join(map(str, row)) for row in texts[name]["greedy"]["plain"]), sep="\n    ", flush=True)
        check_no_ties(case, texts[name])
    FILE.write_text(json.dumps(texts, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
