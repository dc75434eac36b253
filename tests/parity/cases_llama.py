"""Llama, Mistral, Qwen2 and Qwen3: grouped heads, biases, norms of heads, windows, every scaling of the rotation, and heads."""

from parity.case import Case

TINY = dict(
    vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
WINDOW = {**TINY, "use_sliding_window": True, "sliding_window": 5}


def rope(**parameters) -> dict:
    return {"rope_parameters": {"rope_theta": 1000.0, **parameters}}


CASES = {
    "llama": Case("LlamaForCausalLM", TINY),
    "llama_tied_one_key_head": Case("LlamaForCausalLM", {**TINY, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama_left_padding": Case("LlamaForCausalLM", TINY, batch=3, padding="left", tell_positions=True),
    "llama_right_padding": Case("LlamaForCausalLM", {**TINY, "num_hidden_layers": 3}, batch=3, padding="right"),
    "llama_packed": Case("LlamaForCausalLM", TINY, length=20, documents=((5, 7, 8), (9, 6))),
    "llama_biases_gelu_eps": Case(
        "LlamaForCausalLM",
        {**TINY, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "rms_norm_eps": 1e-2},
    ),
    "llama_wide_heads": Case("LlamaForCausalLM", {**TINY, "head_dim": 10, "num_key_value_heads": 4, **rope()}),
    "llama_linear_scaling": Case("LlamaForCausalLM", {**TINY, **rope(rope_type="linear", factor=2.5)}, length=40),
    "llama_llama3_scaling": Case(
        "LlamaForCausalLM",
        {
            **TINY, "head_dim": 16, "tie_word_embeddings": True,
            **rope(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=32),
        },
        batch=1,
        length=64,
    ),
    "llama_yarn_scaling": Case(
        "LlamaForCausalLM",
        {**TINY, "head_dim": 16, **rope(rope_type="yarn", factor=2.0, beta_fast=8.0, original_max_position_embeddings=32)},
        batch=1,
        length=64,
    ),
    "llama_length_512": Case(
        "LlamaForCausalLM", {**TINY, "num_hidden_layers": 1, "max_position_embeddings": 512}, batch=1, length=512
    ),
    "mistral_window": Case("MistralForCausalLM", {**TINY, "sliding_window": 5}, length=20),
    "mistral_window_left_padding": Case(
        "MistralForCausalLM", {**TINY, "sliding_window": 4}, batch=3, padding="left", tell_positions=True
    ),
    "mistral_window_packed": Case("MistralForCausalLM", {**TINY, "sliding_window": 3}, length=20, documents=((5, 7, 8), (9, 6))),
    "mistral_length_512": Case(
        "MistralForCausalLM",
        {**TINY, "num_hidden_layers": 1, "max_position_embeddings": 512, "sliding_window": 100},
        batch=1,
        length=512,
    ),
    "mistral_no_window": Case("MistralForCausalLM", {**TINY, "sliding_window": None, "hidden_size": 18, "head_dim": 6}),
    "qwen2_tied": Case("Qwen2ForCausalLM", {**TINY, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen2_window_of_later_layers": Case(
        "Qwen2ForCausalLM", {**WINDOW, "num_hidden_layers": 3, "max_window_layers": 1}, length=20, padding="right"
    ),
    "qwen3": Case("Qwen3ForCausalLM", {**TINY, "head_dim": 8}),
    "qwen3_biases_left_padding": Case(
        "Qwen3ForCausalLM", {**TINY, "head_dim": 4, "attention_bias": True}, batch=3, padding="left", tell_positions=True
    ),
    "qwen3_window_of_every_second_layer": Case(
        "Qwen3ForCausalLM",
        {
            **WINDOW, "num_hidden_layers": 4, "head_dim": 6, "tie_word_embeddings": True,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
        length=20,
    ),
    "base": Case("LlamaModel", TINY, padding="right"),
    "base_qwen3": Case("Qwen3Model", {**TINY, "head_dim": 8}, batch=3, padding="left", tell_positions=True),
    "sequence_classification": Case("LlamaForSequenceClassification", {**TINY, "num_labels": 3}, batch=3, padding="right"),
    "sequence_classification_left_padding": Case(
        "Qwen2ForSequenceClassification", TINY, batch=3, padding="left", tell_positions=True
    ),
    "token_classification": Case("LlamaForTokenClassification", {**TINY, "num_labels": 5}, padding="right"),
    "question_answering": Case("LlamaForQuestionAnswering", TINY),
    "question_answering_mistral": Case("MistralForQuestionAnswering", {**TINY, "sliding_window": 5}),
}  # fmt: skip
