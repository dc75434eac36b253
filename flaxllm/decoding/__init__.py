"""Text out of a model."""

from flaxllm.decoding.beam_search import beam_search
from flaxllm.decoding.generate import generate
from flaxllm.decoding.generated import Generated
from flaxllm.decoding.prepare import prepare
from flaxllm.decoding.sampling import sampling
