"""Small random models, prompts, and what is asked of them: the same for this package and for transformers."""

from typing import Any, NamedTuple

import numpy as np

from flaxllm import nn
from flaxllm.models import Model, build

VOCAB, NEW = 40, 20
N = 2  # texts of each prompt that beam search gives
_SIZES = dict(vocab_size=VOCAB, num_layers=2, num_heads=2, head_dim=8, d_model=16, d_mlp=24)

MARIAN = dict(attention_bias=True, interleaved_positions=False, norm_eps=1e-5, scale_embedding=False)


class Case(NamedTuple):
    """`gain` scales matrices and `spread` tables: where the first is large for the second a text wanders."""

    family: str
    config: dict[str, Any]
    num_beams: int
    gain: float = 2.0
    spread: float = 0.6
    seed: int = 0
    processed: bool = False  # the requests that need programs of their own are made too

    @property
    def model(self) -> Model:
        return build(self.family, _SIZES | self.config)


CASES = {
    "gpt": Case("gpt", dict(max_len=40), 3, seed=4, processed=True),
    "gpt-relu": Case("gpt", dict(max_len=40, activation="relu"), 4, gain=4.0, seed=6),
    "llama": Case(
        "llama", dict(num_heads=4, num_kv_heads=2, rope_scaling="llama3", rope_factor=4.0, rope_original_len=8), 4
    ),
    "llama-windowed": Case(
        "llama", dict(num_kv_heads=1, window=6, windowed=(False, True), head_norm=True, tied=True), 3, seed=2
    ),
    "t5": Case("t5", dict(num_buckets=8, max_distance=20), 4, gain=1.9, processed=True),
    "t5-gated": Case("t5", dict(gated=True, tied=False, scale_output=False), 3, gain=3.0, seed=2),
    "transformer": Case("transformer", MARIAN | dict(output_bias=True), 3, gain=0.62, spread=0.3),
    "transformer-two-tables": Case(
        "transformer", MARIAN | dict(num_decoder_layers=1, source_vocab_size=48, activation="silu"), 4, gain=0.5, spread=0.15, seed=2
    ),
}  # fmt: skip

GREEDY = {
    "plain": {},
    "repetition_penalty": dict(repetition_penalty=1.3),
    "min_new_tokens": dict(min_new_tokens=12),
    "no_repeat_ngram_size": dict(no_repeat_ngram_size=2),
}
BEAMS = {
    f"{length_penalty}, {early_stopping}": dict(length_penalty=length_penalty, early_stopping=early_stopping)
    for length_penalty in (0.6, 1.0, 2.0)
    for early_stopping in (False, True, "never")
} | {"processed": dict(repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=12)}
OWN_PROGRAMS = ("no_repeat_ngram_size", "processed")


def requests(case: Case, all_of_a_kind: dict[str, dict]) -> dict[str, dict]:
    return {name: options for name, options in all_of_a_kind.items() if case.processed or name not in OWN_PROGRAMS}


def prompts(case: Case) -> list[list[int]]:
    """Of several lengths, without the tokens that special ones are."""
    rng = np.random.default_rng(case.seed)
    return [rng.integers(3, VOCAB, length).tolist() for length in (9, 4, 12)]


def parameters(case: Case) -> dict:
    """Random ones that depend on the seed and each tensor's path."""
    return nn.unflatten({path: _draw(path, spec, case) for path, spec in nn.flatten(case.model.param_specs()).items()})


def _draw(path: str, spec: nn.Param, case: Case) -> np.ndarray:
    x = np.random.default_rng([case.seed, *path.encode()]).normal(size=spec.shape).astype(np.float32)
    if path.endswith("scale"):
        return 1.5 + 0.2 * x
    if spec.is_lookup:
        return np.float32(case.spread) * x
    return x * np.float32(case.gain / np.sqrt(spec.fan_in) if spec.is_matrix else 0.3)
