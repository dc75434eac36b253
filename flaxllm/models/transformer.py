"""The Transformer: an encoder and a decoder with post-norm and sinusoidal positions (Vaswani et al. 2017).

    h = sqrt(d_model) tokens + positions
    encoder:  h = norm(h + attention(h));   h = norm(h + mlp(h))
    decoder:  the same, causal, with h = norm(h + attention(h, encoded)) between the two;   logits = h embedding^T

Marian's models (Junczys-Dowmunt et al. 2018), in which this architecture is published, have biases in attention and on the
logits, all sines before all cosines, and may have a table of source tokens of their own.
"""

import math
from dataclasses import dataclass
from functools import partial

from jaxtyping import Array, Bool, Float, Int

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models.checks import check_activations, check_at_least, check_rates
from flaxllm.models.heads import LABELS, Classifier
from flaxllm.models.output import Output
from flaxllm.nn import Context, Mask, constrain, tap
from flaxllm.nn.param import zeros

DEFAULT_HEAD = "seq2seq-lm"


@dataclass(frozen=True)
class StackSize:
    """The sizes of the encoder or of the decoder."""

    num_layers: int
    num_heads: int
    head_dim: int
    d_mlp: int


@dataclass(frozen=True)
class Config:
    """`vocab_size` is the target's, and the source's as well unless `source_vocab_size` gives it a table of its own; the
    logits are made of the target's table where `tied`. What is None of the decoder is as in the encoder; its heads span
    the same width. Sinusoids know no longest sequence: `max_len` is only what a training pipeline takes. Looking `pad_token`
    up trains nothing, as in Marian's models, whose targets begin with it and its vector of zeros.

    `dropout` acts on embeddings and on each sub-layer's output, `attention_dropout` on attention weights,
    `activation_dropout` inside the mlp.
    """

    vocab_size: int = 37000
    source_vocab_size: int | None = None
    max_len: int = 1024
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    num_decoder_heads: int | None = None
    head_dim: int = 64
    d_model: int = 512
    d_mlp: int = 2048
    d_decoder_mlp: int | None = None
    activation: str = "relu"
    attention_bias: bool = False
    output_bias: bool = False
    scale_embedding: bool = True
    interleaved_positions: bool = True
    tied: bool = True
    norm_eps: float = 1e-6
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    bos_token: int | None = None
    eos_token: int | tuple[int, ...] | None = None
    pad_token: int | None = None
    decoder_start_token: int = 0
    labels: tuple[str, ...] = LABELS

    @property
    def encoder(self) -> StackSize:
        return StackSize(self.num_layers, self.num_heads, self.head_dim, self.d_mlp)

    @property
    def decoder(self) -> StackSize:
        num_heads = self.num_heads if self.num_decoder_heads is None else self.num_decoder_heads
        return StackSize(
            self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers,
            num_heads,
            self.num_heads * self.head_dim // num_heads,
            self.d_mlp if self.d_decoder_mlp is None else self.d_decoder_mlp,
        )

    def __post_init__(self):
        sizes = ("vocab_size", "max_len", "num_layers", "num_heads", "head_dim", "d_model", "d_mlp")
        optional = ("source_vocab_size", "num_decoder_layers", "num_decoder_heads", "d_decoder_mlp")
        check_at_least(1, "transformer", self, *sizes, *optional)
        check_rates("transformer", self, "dropout", "attention_dropout", "activation_dropout")
        check_activations("transformer", self, "activation")
        if self.d_model % 2:
            raise InputError(f"the transformer config needs an even d_model for sines and cosines, got {self.d_model}")
        if self.num_heads * self.head_dim % self.decoder.num_heads:
            raise InputError(
                f"the transformer config has {self.num_decoder_heads} decoder heads, which do not divide the width of the "
                f"encoder's, {self.num_heads} of {self.head_dim}"
            )


PRESETS = {
    # Vaswani et al. 2017, table 3, with the joint vocabulary of its English-German data (section 5.1).
    "transformer-base": Config(),
    "transformer-big": Config(num_heads=16, d_model=1024, d_mlp=4096, dropout=0.3),
    # The text-only baseline of Wu et al. 2021 for small data (section 3), here with a joint vocabulary of 10000.
    "transformer-tiny": Config(
        vocab_size=10000, num_layers=4, num_heads=4, head_dim=32, d_model=128, d_mlp=256, dropout=0.3
    ),
}


def heads(config: Config) -> dict[str, Classifier | None]:
    """What can be put on this model; None for a vocabulary, whose logits `unembed` gives."""
    return {"seq2seq-lm": None}


def param_specs(config: Config, head: str | None = DEFAULT_HEAD) -> dict:
    """Every tensor of the model. The paper leaves initial values open; as in its code (Tensor2Tensor), matrices have the
    variance of Glorot and Bengio 2010 (eq. 12), and embeddings that of `1 / d_model`."""
    init = nn.normal(config.d_model**-0.5)
    embedding = {"tokens": nn.embedding_specs("vocab", config.vocab_size, config.d_model, init)}
    if config.source_vocab_size is not None:
        embedding["source_tokens"] = nn.embedding_specs("vocab", config.source_vocab_size, config.d_model, init)
    specs = {
        "embedding": embedding,
        "encoder": {"layers": _layer_specs(config, config.encoder, crosses=False)},
        "decoder": {"layers": _layer_specs(config, config.decoder, crosses=True)},
    }
    if head != "seq2seq-lm":
        return specs
    vocabulary = {}
    if not config.tied:
        vocabulary["table"] = nn.Param((config.vocab_size, config.d_model), ("vocab", "embed"), init, inputs=("embed",))
    if config.output_bias:
        vocabulary["bias"] = nn.Param((config.vocab_size,), ("vocab",), zeros)
    return specs | {"head": vocabulary} if vocabulary else specs


def _layer_specs(config: Config, size: StackSize, crosses: bool) -> dict:
    d_model, norm = config.d_model, nn.layer_norm_specs(config.d_model)
    attention = nn.multi_head_specs(
        d_model, size.num_heads, size.head_dim, init=_glorot(d_model, size.num_heads * size.head_dim),
        bias=config.attention_bias,
    )  # fmt: skip
    layer = {
        "attention": attention,
        "attention_norm": norm,
        "mlp": nn.feed_forward_specs(d_model, size.d_mlp, _glorot(d_model, size.d_mlp)),
        "mlp_norm": norm,
    }
    crossing = {"cross_attention": attention, "cross_attention_norm": norm} if crosses else {}
    return nn.stack(layer | crossing, size.num_layers)


def _glorot(inputs: int, outputs: int) -> nn.Initializer:
    return nn.normal((2.0 / (inputs + outputs)) ** 0.5)


def apply(
    params: dict,
    config: Config,
    tokens: Int[Array, "batch source"],
    decoder_tokens: Int[Array, "batch target"] | None = None,
    *,
    valid: Bool[Array, "batch source"] | None = None,
    decoder_valid: Bool[Array, "batch target"] | None = None,
    positions: Int[Array, "batch source"] | None = None,
    decoder_positions: Int[Array, "batch target"] | None = None,
    segments: Int[Array, "batch source"] | None = None,
    decoder_segments: Int[Array, "batch target"] | None = None,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Output:
    """Hidden states of the decoder, `[batch, target, d_model]`, and of the encoder; `unembed` makes logits of the former.

    `valid`, `positions` and `segments` are as for `encode`, those of the decoder as for `decode`.

    Raises:
      InputError: there are no decoder tokens, or a tap that this model does not have.
    """
    if decoder_tokens is None:
        raise InputError("a transformer needs decoder_tokens beside the tokens: the target, begun with decoder_start_token")
    ctx = nn.collecting(ctx)
    encoded = encode(params, config, tokens, valid, positions, segments, ctx)
    hidden = decode(
        params, config, decoder_tokens, encoded, valid=valid, decoder_valid=decoder_valid,
        decoder_positions=decoder_positions, segments=segments, decoder_segments=decoder_segments, ctx=ctx,
    )  # fmt: skip
    return Output(hidden=hidden, encoded=encoded, taps=nn.returned_taps(ctx))


def encode(
    params: dict,
    config: Config,
    tokens: Int[Array, "batch source"],
    valid: Bool[Array, "batch source"] | None = None,
    positions: Int[Array, "batch source"] | None = None,
    segments: Int[Array, "batch source"] | None = None,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Float[Array, "batch source embed"]:
    """The encoder's hidden states.

    `valid` is False at padding, on whichever side; `positions` count the valid tokens from 0 unless given; `segments`
    number the documents packed in a row (a token sees its own document only, and 0 is the usual number for padding).
    """
    ctx = (nn.collecting(ctx) if ctx.collected is None else ctx).within("encoder")
    table = params["embedding"]["tokens" if config.source_vocab_size is None else "source_tokens"]
    where = nn.token_positions(tokens.shape[1], valid) if positions is None else positions
    mask = Mask(query_segments=segments, key_segments=segments, key_valid=valid)
    layer = partial(_encoder_layer, config=config, mask=mask)
    x = nn.scan_layers((layer,), params["encoder"]["layers"], _embed(table, config, tokens, where, ctx), ctx)
    return tap(x, "hidden", ctx)


def decode(
    params: dict,
    config: Config,
    decoder_tokens: Int[Array, "batch target"],
    encoded: Float[Array, "batch source embed"] | nn.Layers,
    *,
    valid: Bool[Array, "sources source"] | None = None,
    decoder_valid: Bool[Array, "batch target"] | None = None,
    decoder_positions: Int[Array, "batch target"] | None = None,
    segments: Int[Array, "batch source"] | None = None,
    decoder_segments: Int[Array, "batch target"] | None = None,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Float[Array, "batch target embed"]:
    """The decoder's hidden states, given the encoder's (or what `nn.remember` made of them for each layer); `valid` and
    `segments` are the source's.

    Where rows hold several documents, a target's tokens see the source with their own number.
    """
    ctx = (nn.collecting(ctx) if ctx.collected is None else ctx).within("decoder")
    length = decoder_tokens.shape[1]
    where = nn.token_positions(length, decoder_valid) if decoder_positions is None else decoder_positions
    # Within a segment a token's place in the row orders it just as its position does.
    mask = Mask(causal=True, query_segments=decoder_segments, key_segments=decoder_segments, key_valid=decoder_valid)
    cross_mask = Mask(query_segments=decoder_segments, key_segments=segments, key_valid=valid)
    layer = partial(_decoder_layer, config=config, mask=mask, cross_mask=cross_mask, encoded=encoded)
    x = _embed(params["embedding"]["tokens"], config, decoder_tokens, where, ctx)
    return tap(nn.scan_layers((layer,), params["decoder"]["layers"], x, ctx), "hidden", ctx)


def _embed(table: nn.Weight, config: Config, tokens: Array, positions: Array, ctx: Context) -> Array:
    embedded = nn.embed(table, tokens, ctx, untrained=config.pad_token)
    if config.scale_embedding:
        embedded = embedded * math.sqrt(config.d_model)
    sinusoids = nn.sinusoids(positions, config.d_model, config.interleaved_positions)
    x = tap(embedded + sinusoids.astype(embedded.dtype), "embedding", ctx)
    return constrain(nn.dropout(x, config.dropout, "embedding", ctx), ctx, "batch", "length", None)


def _encoder_layer(params: dict, x: Array, ctx: Context, config: Config, mask: Mask) -> Array:
    x = _attention("attention", params, tap(x, "in", ctx), mask, config, ctx)
    return _mlp(params, tap(x, "middle", ctx), config, ctx)


def _decoder_layer(
    params: dict, x: Array, ctx: Context, config: Config, mask: Mask, cross_mask: Mask, encoded: Array | nn.Layers
) -> Array:
    x = _attention("attention", params, tap(x, "in", ctx), mask, config, ctx)
    x = _attention("cross_attention", params, tap(x, "middle", ctx), cross_mask, config, ctx, encoded)
    return _mlp(params, tap(x, "crossed", ctx), config, ctx)


def _attention(
    name: str, params: dict, x: Array, mask: Mask, config: Config, ctx: Context, memory: Array | nn.Layers | None = None
) -> Array:
    attended = nn.multi_head_attention(
        params[name], x, mask, ctx.within(name), memory=memory, dropout_rate=config.attention_dropout
    )
    attended = nn.dropout(attended, config.dropout, name, ctx)
    return nn.layer_norm(params[f"{name}_norm"], x + attended, config.norm_eps, ctx)


def _mlp(params: dict, x: Array, config: Config, ctx: Context) -> Array:
    transformed = nn.feed_forward(params["mlp"], x, config.activation, ctx, dropout_rate=config.activation_dropout)
    transformed = nn.dropout(transformed, config.dropout, "mlp", ctx)
    x = tap(nn.layer_norm(params["mlp_norm"], x + transformed, config.norm_eps, ctx), "out", ctx)
    return constrain(x, ctx, "batch", "length", None)


def unembed(
    params: dict,
    config: Config,
    hidden: Float[Array, "*batch embed"],
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Float[Array, "*batch vocab"]:
    """Logits over the vocabulary, in float32 at least: the hidden states times the head's table, or the (tied) embedding of
    the target's tokens, and the head's bias where it has one.

    Raises:
      InputError: the parameters are of a model without this head.
    """
    head = params.get("head", {})
    if not config.tied and "table" not in head:
        raise InputError("these parameters have no table for logits over the vocabulary: use the head 'seq2seq-lm'")
    logits = nn.unembed(params["embedding"]["tokens"] if config.tied else head["table"], hidden, ctx)
    return logits + head["bias"] if "bias" in head else logits


def matmul_flops(config: Config, tokens: int, length: int) -> int:
    """Operations (a multiply-add is two) of all matrix products of a forward pass over `tokens` of a target and as many of
    a source, both in rows of `length`. Attention is counted whole, hidden half included."""
    layers = 0
    for size, num_attentions in ((config.encoder, 1), (config.decoder, 2)):
        inner = size.num_heads * size.head_dim
        attention = 4 * config.d_model * inner + 2 * length * inner
        layers += size.num_layers * (num_attentions * attention + 2 * config.d_model * size.d_mlp)
    return 2 * tokens * (layers + config.d_model * config.vocab_size)
