"""What is learned: from parameters and a batch to named (sum, weight) terms, and how an example is made."""

from flaxllm.objectives.causal_lm import causal_lm
from flaxllm.objectives.objective import Objective, Term, add_terms, means

OBJECTIVES = {"causal-lm": causal_lm}
