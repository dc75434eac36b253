"""The names of a model's inner values, and their axes."""

from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from flaxllm.console import lead_console, show_table, text_table
from flaxllm.decoding.reading import TEXT_HEADS, has_encoder
from flaxllm.models import Model
from flaxllm.nn import LAYERS, Context, Taps
from flaxllm.nn.param import abstract
from flaxllm.pretrained.checkpoint import open_checkpoint
from flaxllm.pretrained.load import model_of

_HEADS = ("batch", "length", "heads", "head_dim")
_SHARED = ("batch", "length", "kv_heads", "head_dim")
_PAIRS = ("batch", "heads", "queries", "keys")
_INNER = ("batch", "length", "mlp")
_AXES = {
    "query": _HEADS, "rotated_query": _HEADS, "mixed": _HEADS,
    "key": _SHARED, "rotated_key": _SHARED, "value": _SHARED,
    "scores": _PAIRS, "weights": _PAIRS, "relative_bias": _PAIRS,
    "up": _INNER, "gate": _INNER, "activation": _INNER,
    "pooled": ("batch", "embed"),
}  # fmt: skip
_FROM_INPUTS = ("batch", "length", "queries", "keys")


def tap_axes(name: str) -> tuple[str, ...]:
    """The axes of a tapped value: "layers" first inside the layers, and then those of one layer. Keys and values of
    cross-attention are as long as the source."""
    *scopes, last = name.split("/")
    axes = _AXES.get(last, ("batch", "length", "embed"))
    return ("layers", *axes) if LAYERS in scopes else axes


def tap_shapes(model: Model, batch: int = 1, length: int = 1, decoder_length: int = 1) -> dict[str, tuple[int, ...]]:
    """Every name that `flaxllm.Taps` takes for this model, in the order in which the values are made, and the shape that comes
    back for tokens `[batch, length]` (and, of an encoder-decoder, `[batch, decoder_length]`). Nothing is computed."""
    tokens = jnp.zeros((batch, length), jnp.int32)
    inputs = {}
    if has_encoder(model) and model.head in (*TEXT_HEADS, None):
        inputs["decoder_tokens"] = jnp.zeros((batch, decoder_length), jnp.int32)
    order = []

    def taps(params: dict) -> dict:
        returned = model.apply(params, tokens, ctx=Context(taps=Taps(returned=("*",))), **inputs).taps
        order.extend(returned)  # which a pytree sorts
        return returned

    shapes = jax.eval_shape(taps, abstract(model.param_specs()))
    return {name: shapes[name].shape for name in order}


def show_taps(path: str | Path, head: str | None = None, console: Console | None = None) -> None:
    """Print the names of the inner values of a checkpoint's model, with their axes and those sizes that do not depend on the
    inputs. Its tensors are not read.

    Raises:
      InputError: the path or the config is not what it must be.
    """
    table = text_table("tap", "axes and sizes")
    for name, shape in tap_shapes(model_of(open_checkpoint(path), head)).items():
        axes = zip(tap_axes(name), shape, strict=True)
        table.add_row(name, ", ".join(axis if axis in _FROM_INPUTS else f"{axis} {size}" for axis, size in axes))
    show_table(console or lead_console(), table)
