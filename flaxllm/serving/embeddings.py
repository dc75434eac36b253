"""`/v1/embeddings`: a vector for each text, the normalised mean of an encoder's hidden states (Reimers and Gurevych 2019)."""

import base64
import threading
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flaxllm import nn
from flaxllm.decoding.engine import bucket
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
_TOKENS_AT_A_TIME = 1024  # what the layers make of so many stays in a core's cache


class Encoder:
    """A model whose hidden states are made into one vector a text. The parameters given are used up."""

    def __init__(self, model: Model, params: dict, ctx: Context = Context()):  # noqa: B008 (frozen)
        self.model, self.max_len, self._ctx = model, model.config.max_len, ctx
        self._params = nn.unstack(params)
        self._alone = threading.Lock()  # more at once would not be faster

    def __call__(self, rows: list[np.ndarray]) -> Float[np.ndarray, "row width"]:
        """The vectors of texts, each of a token or more. Texts of about the same length go together."""
        vectors = np.zeros((len(rows), self.model.config.d_model), np.float32)
        widths = np.array([min(bucket(len(row)), self.max_len) for row in rows])
        with self._alone:
            for width in np.unique(widths):
                numbers = np.flatnonzero(widths == width)
                count = 1 << (len(numbers) - 1).bit_length()  # so that few programs are compiled
                tokens, valid = np.zeros((count, width), np.int32), np.zeros((count, width), bool)
                valid[:, 0] = True  # no row has none
                for place, number in enumerate(numbers):
                    tokens[place, : len(rows[number])], valid[place, : len(rows[number])] = rows[number], True
                encoded = _encode(self.model, self._params, tokens, valid, self._ctx)
                vectors[numbers] = np.asarray(encoded)[: len(numbers)]
        return vectors


@partial(jax.jit, static_argnames="model")
def _encode(
    model: Model,
    params: dict,
    tokens: Int[Array | np.ndarray, "row token"],
    valid: Bool[Array | np.ndarray, "row token"],
    ctx: Context,
) -> Float[Array, "row width"]:
    def encode_part(part: tuple[Array, Array]) -> Array:
        tokens, valid = part
        hidden = model.apply(params, tokens, valid=valid, ctx=ctx).hidden.astype(jnp.float32)
        mean = jnp.einsum("btd,bt->bd", hidden, valid.astype(jnp.float32)) / valid.sum(1)[:, None]
        return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)

    return nn.map_parts(encode_part, (tokens, valid), max(1, _TOKENS_AT_A_TIME // tokens.shape[1]))


def response(vectors: Float[np.ndarray, "row width"], name: str, encoding: str, num_tokens: int) -> dict[str, Any]:
    """OpenAI's form of vectors; in base64 they are little-endian float32."""

    def written(vector: np.ndarray) -> list[float] | str:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()

    data = [{"object": "embedding", "index": index, "embedding": written(vector)} for index, vector in enumerate(vectors)]
    return {"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}}
