"""GPT-2: every activation and head, padding on either side, packing, and the lengths at which attention changes form."""

from parity.case import Case

TINY = dict(
    vocab_size=48, n_positions=32, n_embd=8, n_layer=2, n_head=2, pad_token_id=0, bos_token_id=1, eos_token_id=2
)  # fmt: skip

CASES = {
    "lm": Case("GPT2LMHeadModel", TINY),
    "lm_left_padding": Case("GPT2LMHeadModel", TINY, padding="left", tell_positions=True),
    "lm_right_padding": Case("GPT2LMHeadModel", {**TINY, "n_layer": 3}, batch=3, padding="right"),
    "lm_packed": Case("GPT2LMHeadModel", TINY, length=20, documents=((5, 7, 8), (9, 6))),
    "lm_length_512": Case(
        "GPT2LMHeadModel", {**TINY, "vocab_size": 40, "n_positions": 512, "n_layer": 1}, batch=1, length=512
    ),
    "lm_relu_one_layer": Case("GPT2LMHeadModel", {**TINY, "activation_function": "relu", "n_layer": 1, "n_inner": 12}),
    "lm_silu_eps": Case("GPT2LMHeadModel", {**TINY, "activation_function": "silu", "layer_norm_epsilon": 1e-2}),
    "lm_exact_gelu_five_heads": Case(
        "GPT2LMHeadModel", {**TINY, "activation_function": "gelu", "n_embd": 10, "n_head": 5, "n_inner": 20}
    ),
    "base": Case("GPT2Model", {**TINY, "n_embd": 12, "n_head": 3, "n_inner": 20}),
    "base_left_padding": Case("GPT2Model", {**TINY, "n_head": 1}, padding="left", tell_positions=True),
    "sequence_classification": Case(
        "GPT2ForSequenceClassification", {**TINY, "num_labels": 3}, batch=3, padding="right"
    ),
    "sequence_classification_left_padding": Case(
        "GPT2ForSequenceClassification", TINY, batch=3, padding="left", tell_positions=True
    ),
    "token_classification": Case("GPT2ForTokenClassification", {**TINY, "num_labels": 5}, padding="right"),
    "question_answering": Case("GPT2ForQuestionAnswering", {**TINY, "n_layer": 3}),
}
