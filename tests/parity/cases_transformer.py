"""Marian: one table of tokens or a table for each language, every activation, a decoder unlike the encoder, padding, packing."""

from parity.case import Case

TINY = dict(
    vocab_size=40, d_model=8, max_position_embeddings=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, activation_function="swish", scale_embedding=True,
    pad_token_id=39, eos_token_id=0, decoder_start_token_id=39, forced_eos_token_id=0,
)  # fmt: skip
TWO_TABLES = {**TINY, "share_encoder_decoder_embeddings": False, "decoder_vocab_size": 50}
LM = "MarianMTModel"

CASES = {
    "lm": Case(LM, TINY, target_length=9),
    "lm_left_padding": Case(LM, TINY, batch=3, target_length=9, padding="left", alone=True),
    "lm_right_padding": Case(LM, {**TINY, "encoder_layers": 3, "decoder_layers": 1}, batch=3, target_length=9, padding="right"),
    "lm_packed": Case(LM, TINY, length=20, target_length=15, documents=((5, 7, 8), (9, 6)), target_documents=((4, 6, 5), (3, 7))),
    "lm_length_512": Case(
        LM,
        {**TINY, "max_position_embeddings": 512, "decoder_layers": 1},
        batch=1, length=512, target_length=512,
    ),
    "lm_unlike_stacks": Case(
        LM,
        {**TINY, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 1,
         "decoder_ffn_dim": 20},
        target_length=9,
    ),
    "lm_relu_unscaled": Case(LM, {**TINY, "activation_function": "relu", "scale_embedding": False}, target_length=9),
    "lm_gelu": Case(LM, {**TINY, "activation_function": "gelu", "d_model": 10}, target_length=9),
    "lm_two_tables": Case(LM, TWO_TABLES, target_length=9, padding="right"),
    "lm_three_tables": Case(LM, {**TWO_TABLES, "d_model": 12, "tie_word_embeddings": False}, target_length=9),
    "base": Case("MarianModel", TINY, target_length=9, padding="right"),
}  # fmt: skip
