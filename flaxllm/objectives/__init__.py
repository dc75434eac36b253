"""What is learned: from parameters and a batch to named (sum, weight) terms, and how an example is made."""

from flaxllm.objectives.causal_lm import causal_lm
from flaxllm.objectives.chat_tuning import sft
from flaxllm.objectives.classification import classification
from flaxllm.objectives.masked_lm import masked_lm
from flaxllm.objectives.objective import Judge, Objective, Term, add_terms, means
from flaxllm.objectives.preferences import add_references, dpo
from flaxllm.objectives.prefix_lm import prefix_lm
from flaxllm.objectives.pretraining import pretraining
from flaxllm.objectives.question_answering import question_answering
from flaxllm.objectives.registry import OBJECTIVES, default_settings, objective_kind
from flaxllm.objectives.seq2seq import seq2seq
from flaxllm.objectives.span_corruption import span_corruption
from flaxllm.objectives.token_classification import token_classification
