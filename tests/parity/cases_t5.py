"""T5: both versions and mT5, every head, bucket settings, padding on either side, packing, and the length where buckets end.

Its relative positions need no `tell_positions`; a classification head's decoder reads the padding on the left of a source in
transformers, so that these rows run alone.
"""

from parity.case import Case

TINY = dict(
    vocab_size=40, d_model=8, d_kv=6, d_ff=12, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=1,
    decoder_start_token_id=0,
)  # fmt: skip
V1_1 = {**TINY, "d_ff": 12, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
LM = "T5ForConditionalGeneration"

CASES = {
    "lm": Case(LM, TINY, target_length=9),
    "lm_left_padding": Case(LM, TINY, batch=3, target_length=9, padding="left"),
    "lm_right_padding": Case(LM, {**TINY, "num_layers": 1, "num_decoder_layers": 3, "d_kv": 4}, batch=3, target_length=9, padding="right"),
    "lm_packed": Case(
        LM, TINY, length=20, target_length=15, documents=((5, 7, 8), (9, 6)), target_documents=((4, 6, 5), (3, 7))
    ),
    "lm_length_512": Case(
        LM, {**TINY, "num_layers": 1, "d_kv": 4}, batch=1, length=512, target_length=512, weight_scale=0.4
    ),
    "lm_few_buckets_300": Case(
        LM,
        {**TINY, "num_layers": 1, "relative_attention_num_buckets": 10, "relative_attention_max_distance": 81},
        batch=1, length=300, target_length=200, weight_scale=0.4,
    ),
    "lm_exact_gelu_deep_encoder": Case(
        LM, {**TINY, "feed_forward_proj": "gelu", "num_layers": 3, "num_decoder_layers": 1, "d_kv": 8}, target_length=7
    ),
    "v1_1_own_table": Case(LM, V1_1, target_length=9, own_table=True, padding="right"),
    "v1_1_one_table": Case(LM, {**V1_1, "num_heads": 3, "d_kv": 4, "layer_norm_epsilon": 1e-2}, target_length=9),
    "v1_1_gated_silu": Case(LM, {**V1_1, "feed_forward_proj": "gated-silu"}, target_length=9, own_table=True),
    "v1_0_gated_relu": Case(LM, {**TINY, "feed_forward_proj": "gated-relu"}, target_length=9),
    "mt5": Case("MT5ForConditionalGeneration", {**TINY, "vocab_size": 60, "d_ff": 12}, target_length=9, own_table=True),
    "base": Case("T5Model", {**TINY, "feed_forward_proj": "silu"}, target_length=9),
    "encoder": Case("T5EncoderModel", {**V1_1, "num_heads": 1}, padding="left"),
    "sequence_classification": Case("T5ForSequenceClassification", {**TINY, "num_labels": 3}, batch=3, padding="right"),
    "sequence_classification_left_padding": Case(
        "T5ForSequenceClassification", V1_1, batch=3, padding="left", alone=True
    ),
    "token_classification": Case("T5ForTokenClassification", {**TINY, "num_labels": 5}, padding="left"),
    "question_answering": Case("T5ForQuestionAnswering", TINY, padding="right"),
}  # fmt: skip
