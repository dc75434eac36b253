"""Looking inside a model: what attends to what, what each depth knows, and what changes when one part is changed."""

from flaxllm.interpret.attention import HeadSummaries, attention_maps, attention_rollout, head_summaries
from flaxllm.interpret.attribution import Attribution, direct_logit_attribution
from flaxllm.interpret.lens import Lens, logit_lens
from flaxllm.interpret.metrics import logit_difference
from flaxllm.interpret.names import show_taps, tap_axes, tap_shapes
from flaxllm.interpret.neighbours import Neighbours, nearest_tokens
from flaxllm.interpret.patching import patch
from flaxllm.interpret.probes import Probes, linear_probes
from flaxllm.interpret.saliency import gradient_times_input, tap_gradients
from flaxllm.interpret.texts import token_texts
