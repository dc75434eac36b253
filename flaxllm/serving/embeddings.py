"""`/v1/embeddings`: a vector for each text, the normalised mean of an encoder's hidden states (Reimers and Gurevych 2019)."""

import base64
import threading
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxllm import nn
from flaxllm.decoding.buckets import Inputs, in_buckets, in_parts
from flaxllm.models import Model
from flaxllm.nn import Context
from flaxllm.serving.fields import one_of, text, texts_or_tokens

MAX_TEXTS = 2048
FIELDS = {
    "model": text(),
    "input": texts_or_tokens(None),
    "encoding_format": one_of("float", "float", "base64"),
    "user": text(),
}
REFUSED = {"dimensions": "the vectors have the dimensions that the model gives them"}


class Encoder:
    """A model whose hidden states are made into one vector a text. The parameters given are used up."""

    def __init__(self, model: Model, params: dict, ctx: Context = Context()):  # noqa: B008 (frozen)
        self.model, self.max_len, self._ctx = model, model.config.max_len, ctx
        self._params = nn.unstack(params)
        self._alone = threading.Lock()  # more at once would not be faster

    def __call__(self, rows: list[np.ndarray]) -> Float[np.ndarray, "row width"]:
        """The vectors of texts, each of a token or more."""

        def encode(inputs: Inputs) -> Array:
            return _encode(self.model, self._params, inputs, self._ctx)

        with self._alone:
            return np.stack(in_buckets(encode, [{"tokens": row} for row in rows], self.max_len))


@partial(jax.jit, static_argnames="model")
def _encode(model: Model, params: dict, inputs: Inputs, ctx: Context) -> Float[Array, "row width"]:
    def encode_part(part: dict[str, Array]) -> Array:
        hidden, valid = model.apply(params, **part, ctx=ctx).hidden.astype(jnp.float32), part["valid"]
        mean = jnp.einsum("btd,bt->bd", hidden, valid.astype(jnp.float32)) / valid.sum(1)[:, None]
        return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)

    return in_parts(encode_part, inputs)


def response(vectors: Float[np.ndarray, "row width"], name: str, encoding: str, num_tokens: int) -> dict[str, Any]:
    """OpenAI's form of vectors; in base64 they are little-endian float32."""

    def written(vector: np.ndarray) -> list[float] | str:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()

    data = [{"object": "embedding", "index": index, "embedding": written(vector)} for index, vector in enumerate(vectors)]
    return {"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}}
