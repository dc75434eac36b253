"""Parameter specifications and pure layers: arrays in, arrays out."""

from flaxllm.nn.attention import IMPLEMENTATIONS, attention
from flaxllm.nn.cache import Cache, KeyValues, Layers, new_positions, reading, seen_positions, written
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
    rms_norm,
    rms_norm_specs,
    unembed,
)
from flaxllm.nn.mask import Mask
from flaxllm.nn.multi_head import multi_head_attention, multi_head_specs, remember
from flaxllm.nn.param import LAYERS, Initializer, Key, Param, abstract, count, flatten, init, map_specs, normal, stack, unflatten
from flaxllm.nn.parts import map_parts
from flaxllm.nn.positions import token_positions
from flaxllm.nn.relative import relative_bias, relative_bias_specs
from flaxllm.nn.rotary import RotaryScaling, Rotation, rotary_frequencies, rotary_magnitude, rotate, rotation
from flaxllm.nn.scan import REMAT_POLICIES, scan_layers, stack_layers, unstack
from flaxllm.nn.shift import shift_right
from flaxllm.nn.sinusoids import sinusoids
from flaxllm.nn.weights import OutputsFirst, Weight
