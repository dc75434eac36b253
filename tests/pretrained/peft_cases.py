"""Adapters that PEFT made on the models of the parity fixtures, each of another kind, with what they then compute."""

from pathlib import Path
from typing import Any, NamedTuple

FIXTURES = Path(__file__).parent / "fixtures" / "peft"


class Case(NamedTuple):
    base: str  # the folder in parity/fixtures
    config: dict[str, Any]  # of PEFT


CASES = {
    "llama_ranks_and_alphas": Case(
        "llama/llama",
        dict(
            task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules=["q_proj", "v_proj", "down_proj", "lm_head"],
            rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"v_proj": 7, "layers.0.mlp.down_proj": 2},
        ),
    ),
    "gpt_fused_stabilized": Case(
        "gpt/lm", dict(task_type="CAUSAL_LM", r=2, lora_alpha=3, target_modules=["c_attn", "mlp.c_proj"], use_rslora=True)
    ),
    "gpt_base": Case("gpt/base", dict(task_type="FEATURE_EXTRACTION", r=2, target_modules=["c_attn"], fan_in_fan_out=True)),
    "t5_decoder": Case("t5/lm", dict(task_type="SEQ_2_SEQ_LM", r=2, target_modules=r"decoder\..*\.(q|v|wo)")),
    "bert_classifier": Case(
        "bert/sequence_classification",
        dict(task_type="SEQ_CLS", r=2, target_modules=["query", "output.dense"], modules_to_save=["classifier"]),
    ),
    "marian": Case("transformer/lm", dict(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["k_proj", "fc1"])),
}  # fmt: skip
