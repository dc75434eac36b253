"""200 greedy tokens of SmolLM2-135M against transformers. `pytest -m parity`, with the [parity] extra."""

import numpy as np
import pytest

from flaxllm.decoding import generate
from flaxllm.pretrained.load import from_pretrained
from flaxllm.pretrained.save import save_pretrained
from real_weights import smollm2_gguf

PROMPT = [504, 2632, 282, 260, 905, 1390, 314]
COUNT, APART = 200, 1e-3


@pytest.mark.parity
def test_smollm2_writes_the_same_greedily(tmp_path):
    """Up to the first token whose two best logits are so near to each other that rounding may choose."""
    torch = pytest.importorskip("torch", reason="needs the [parity] extra")
    transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")
    model, params = from_pretrained(smollm2_gguf(), dtype="float32")
    save_pretrained(tmp_path, model, params)
    ours = generate(model, params, [PROMPT], COUNT, temperature=0, stop_tokens=()).rows()[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    theirs.generation_config = transformers.GenerationConfig()
    config = transformers.GenerationConfig(
        max_new_tokens=COUNT, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0
    )
    with torch.no_grad():
        output = theirs.generate(
            torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long), generation_config=config
        )
    best = torch.cat(output.logits).topk(2).values.numpy()
    near = np.flatnonzero(best[:, 0] - best[:, 1] < APART)
    sure = int(near[0]) if len(near) else COUNT
    print(f"compared {sure} tokens; the nearest two best logits among them are {np.min(-np.diff(best[:sure])):.4f} apart")
    assert ours[:sure] == output.sequences[0, len(PROMPT) :].tolist()[:sure]
    assert sure > 50
