"""Heads with few classes, the same for every family: what they read of a model's output, and the layers on it."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flaxllm import nn
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models.output import Output
from flaxllm.nn import Context

SPAN_ENDS = 2  # question answering scores each token as the start and as the end
IS_NEXT = 2  # next-sentence prediction: the second sentence follows, or is a random one
LABELS = ("LABEL_0", "LABEL_1")  # the names that checkpoints give to labels that nobody named


@dataclass(frozen=True)
class Classifier:
    """The shape of a head: it reads "hidden" (every token), "pooled", or the "first" or "last" token of a sequence;
    `inner` is the activation of a layer as wide as the model that comes before, if one does. `dropout` is the rate on
    what it reads, `inner_dropout` that on the inner layer's output; the model's own where they are None."""

    reads: str = "hidden"
    inner: str | None = None
    bias: bool = True
    dropout: float | None = None
    inner_dropout: float | None = None


def head_specs(
    heads: dict[str, Classifier | None], head: str | None, width: int, labels: tuple[str, ...], init: nn.Initializer
) -> dict[str, dict]:
    """The specifications of a classifying head under the name "head"; nothing for none, or for a vocabulary's."""
    shape = head_shape(heads, head)
    return {} if shape is None else {"head": _classifier_specs(shape, width, num_classes(head, labels), init)}


def head_shape(heads: dict[str, Classifier | None], head: str | None) -> Classifier | None:
    """The shape of the head of that name, one of a family's `heads`.

    Raises:
      InputError: the family has no such head.
    """
    if head is None:
        return None
    if head not in heads:
        raise InputError(f"this model has no head {head!r}: {did_you_mean(head, [*heads, 'base'])}")
    return heads[head]


def has_labels(head: str | None) -> bool:
    """Whether the config's labels name the classes of this head."""
    return head in ("sequence-classification", "token-classification")


def num_classes(head: str, labels: tuple[str, ...]) -> int:
    return {"question-answering": SPAN_ENDS, "next-sentence": IS_NEXT, "pretraining": IS_NEXT}.get(head, len(labels))


def _classifier_specs(shape: Classifier, width: int, classes: int, init: nn.Initializer) -> dict[str, dict]:
    specs = {"out": nn.dense_specs({"embed": width}, {"classes": classes}, init, shape.bias)}
    return specs | {"inner": nn.dense_specs({"embed": width}, {"inner": width}, init)} if shape.inner else specs


def classify(
    params: dict,
    shape: Classifier,
    output: Output,
    valid: Bool[Array, "batch length"] | None,
    dropout_rate: float,
    ctx: Context,
) -> Float[Array, "batch *length classes"]:
    """The logits of a head. `valid` marks the tokens that are no padding: it tells which is the first, and the last."""
    ctx = ctx.within("head")
    in_rate, inner_rate = (dropout_rate if rate is None else rate for rate in (shape.dropout, shape.inner_dropout))
    x = nn.dropout(_read(shape.reads, output, valid), in_rate, "in", ctx)
    if shape.inner:
        x = nn.ACTIVATIONS[shape.inner](nn.dense(params["inner"], x, "...d,de->...e", ctx))
        x = nn.dropout(x, inner_rate, "inner", ctx)
    return nn.dense(params["out"], x, "...d,dc->...c", ctx)


def _read(reads: str, output: Output, valid: Array | None) -> Array:
    if reads == "pooled":
        if output.pooled is None:
            raise InputError(
                "this head reads the pooled output, and the model gave none: set pooler in its config, or leave "
                "decoder_tokens out where t5 has this head"
            )
        return output.pooled
    if reads == "first":
        return first_token(output.hidden, valid)
    if reads == "last":
        length = output.hidden.shape[1]
        last = length - 1 if valid is None else (jnp.arange(length) * valid).argmax(-1)
        return output.hidden[jnp.arange(output.hidden.shape[0]), last]
    return output.hidden


def first_token(
    hidden: Float[Array, "batch length embed"], valid: Bool[Array, "batch length"] | None
) -> Float[Array, "batch embed"]:
    """What the model made of the first token of each sequence that is no padding."""
    if valid is None:
        return hidden[:, 0]
    return hidden[jnp.arange(hidden.shape[0]), valid.argmax(-1)]
