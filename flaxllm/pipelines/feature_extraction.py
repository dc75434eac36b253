"""The hidden states of an encoder, or of a decoder alone, as features of a text's tokens."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxllm.decoding.buckets import Inputs, in_parts
from flaxllm.decoding.reading import has_encoder
from flaxllm.models import Model, family
from flaxllm.pipelines.loaded import Loaded, encode, listed, run


def feature_extraction(
    at: Loaded, inputs: str | Sequence[str], *, return_tensors: bool = False, truncation: bool = False
) -> list | np.ndarray:
    """The model's last hidden states of each text, `[1, token, d_model]`, as nested lists or, with `return_tensors`, as a numpy
    array in float32. Of an encoder-decoder they are the encoder's."""
    texts = listed(inputs)
    encoded = [encode(at, text, None, number, truncation) for number, text in enumerate(texts)]
    arrays = [row[None, : each.tokens.shape[1]] for each, (row,) in zip(encoded, run(at, _hidden, encoded))]
    results = arrays if return_tensors else [array.tolist() for array in arrays]
    return results[0] if isinstance(inputs, str) else results


@partial(jax.jit, static_argnames="model")
def _hidden(model: Model, params: dict, inputs: Inputs) -> Float[Array, "row token width"]:
    def hidden(inputs: Inputs) -> Array:
        if has_encoder(model):
            return family(model.family).encode(params, model.config, inputs["tokens"], inputs["valid"]).astype(jnp.float32)
        return model.apply(params, **inputs).hidden.astype(jnp.float32)

    return in_parts(hidden, inputs)
