"""Parameter specifications and pure layers: arrays in, arrays out."""

from flaxllm.nn.attention import IMPLEMENTATIONS, attention
from flaxllm.nn.context import Context, Replacement, Rules, Taps, collecting, constrain, returned_taps, tap
from flaxllm.nn.layers import (
    ACTIVATIONS,
    dense,
    dense_specs,
    dropout,
    embed,
    embedding_specs,
    feed_forward,
    feed_forward_specs,
    gelu_tanh,
    layer_norm,
    layer_norm_specs,
)
from flaxllm.nn.mask import Mask
from flaxllm.nn.param import LAYERS, Key, Param, abstract, count, flatten, init, map_specs, normal, stack, unflatten
from flaxllm.nn.scan import REMAT_POLICIES, scan_layers, stack_layers, unstack
