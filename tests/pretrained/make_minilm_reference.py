"""What transformers makes of a few sentences with MiniLM, written to fixtures/minilm.npz.

    pip install -e '.[parity]' && python tests/pretrained/make_minilm_reference.py
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from real_weights import minilm_folder

# Ids of its own vocabulary: [CLS] hello , my dog is cute [SEP], and the cat sat on the mat because it was tired.
ROWS = [
    [101, 7592, 1010, 2026, 3899, 2003, 10140, 102],
    [101, 1996, 4937, 2938, 2006, 1996, 13523, 2138, 2009, 2001, 5458, 1012, 102],
]


def main() -> None:
    length = max(map(len, ROWS))
    tokens = np.array([row + [0] * (length - len(row)) for row in ROWS])
    valid = np.array([[i < len(row) for i in range(length)] for row in ROWS])
    model = AutoModel.from_pretrained(minilm_folder(), attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(valid).long())
    hidden = out.last_hidden_state.numpy()
    embeddings = (hidden * valid[..., None]).sum(1) / valid.sum(1, keepdims=True)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    arrays = {"tokens": tokens.astype(np.int32), "valid": valid, "hidden": hidden[:, :6], "embeddings": embeddings}
    np.savez_compressed(Path(__file__).parent / "fixtures" / "minilm.npz", **arrays, pooled=out.pooler_output.numpy())


if __name__ == "__main__":
    main()
