"""BERT, RoBERTa and DistilBERT: every activation and head, padding on either side, packing, token types, tied and untied."""

from parity.case import Case

BERT = dict(
    vocab_size=48,
    max_position_embeddings=32,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    pad_token_id=0,
)
ROBERTA = {**BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
DISTILBERT = dict(
    vocab_size=48, max_position_embeddings=32, dim=8, n_layers=2, n_heads=2, hidden_dim=12, pad_token_id=0
)  # fmt: skip
LONG = {**BERT, "vocab_size": 40, "num_hidden_layers": 1, "max_position_embeddings": 512}

CASES = {
    "masked_lm": Case("BertForMaskedLM", BERT, token_types=True),
    "masked_lm_tanh_gelu_left_padding": Case(
        "BertForMaskedLM", {**BERT, "hidden_act": "gelu_new"}, padding="left", tell_positions=True
    ),
    "masked_lm_relu_packed": Case(
        "BertForMaskedLM", {**BERT, "hidden_act": "relu"}, length=20, documents=((5, 7, 8), (9, 6)), token_types=True
    ),
    "masked_lm_length_512": Case("BertForMaskedLM", LONG, batch=1, length=512),
    "pretraining_silu": Case("BertForPreTraining", {**BERT, "hidden_act": "silu"}, padding="right", token_types=True),
    "next_sentence": Case("BertForNextSentencePrediction", {**BERT, "num_hidden_layers": 3}, batch=3, token_types=True),
    "base_five_heads_eps": Case(
        "BertModel", {**BERT, "hidden_size": 10, "num_attention_heads": 5, "layer_norm_eps": 1e-2}, padding="right"
    ),
    # Its pooler reads the first place of a row, where left padding would stand.
    "base_left_padding": Case("BertModel", {**BERT, "num_attention_heads": 1}, batch=3, padding="left", alone=True),
    "sequence_classification": Case(
        "BertForSequenceClassification", {**BERT, "num_labels": 3}, batch=3, padding="right", token_types=True
    ),
    "token_classification_four_types": Case(
        "BertForTokenClassification", {**BERT, "num_labels": 5, "type_vocab_size": 4}, token_types=True
    ),
    "question_answering": Case("BertForQuestionAnswering", {**BERT, "hidden_act": "tanh"}, padding="right", token_types=True),
    "roberta_masked_lm_relu_left_padding": Case("RobertaForMaskedLM", {**ROBERTA, "hidden_act": "relu"}, padding="left"),
    "roberta_masked_lm_packed": Case("RobertaForMaskedLM", ROBERTA, length=20, documents=((5, 7, 8), (9, 6))),
    "roberta_base_pad_token_3": Case("RobertaModel", {**ROBERTA, "pad_token_id": 3}, batch=3, padding="right"),
    "xlm_roberta_sequence_classification_left_padding": Case(
        "XLMRobertaForSequenceClassification", {**ROBERTA, "num_labels": 3}, batch=3, padding="left", alone=True
    ),
    "xlm_roberta_question_answering": Case("XLMRobertaForQuestionAnswering", ROBERTA),
    "camembert_token_classification": Case("CamembertForTokenClassification", {**ROBERTA, "num_labels": 3}),
    "distilbert_masked_lm_left_padding": Case("DistilBertForMaskedLM", DISTILBERT, padding="left", tell_positions=True),
    "distilbert_masked_lm_relu_untied_packed": Case(
        "DistilBertForMaskedLM",
        {**DISTILBERT, "activation": "relu", "tie_word_embeddings": False},
        length=20,
        documents=((5, 7, 8), (9, 6)),
    ),
    "distilbert_base_sinusoidal": Case("DistilBertModel", {**DISTILBERT, "sinusoidal_pos_embds": True}, padding="right"),
    "distilbert_sequence_classification": Case(
        "DistilBertForSequenceClassification", {**DISTILBERT, "num_labels": 3}, batch=3, padding="right"
    ),
    "distilbert_token_classification": Case("DistilBertForTokenClassification", {**DISTILBERT, "num_labels": 4}),
    "distilbert_question_answering": Case("DistilBertForQuestionAnswering", DISTILBERT, padding="right"),
}
