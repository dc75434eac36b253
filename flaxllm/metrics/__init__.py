"""How predictions are judged, by the field's definitions: `name(predictions, references)` gives figures by name.

Both are sequences of the same length, one entry an example. The libraries behind the functions load when they are first used.
"""

from flaxllm.metrics.classification import accuracy, f1, matthews, pearson, spearman
from flaxllm.metrics.entities import entities
from flaxllm.metrics.inputs import library
from flaxllm.metrics.squad import squad, squad_v2
from flaxllm.metrics.text import bleu, bleu_signature, chrf, rouge
