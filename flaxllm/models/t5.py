"""T5: an encoder and a decoder with pre-norm, relative position biases, RMS norm and no other biases (Raffel et al. 2020).

    encoder:  h = tokens;   h = h + attention(norm(h)) (scores: q k + bias of the distance);   h = h + mlp(norm(h));   norm(h)
    decoder:  the same, causal, with h = h + attention(norm(h), encoded) between the two (scores: q k)
    logits of 1.0: norm(h) / sqrt(d_model) embedding^T;   of 1.1, Flan-T5 and mT5: norm(h) head, with a gated GELU mlp

Scores are not scaled: the initial queries are smaller instead. Version 1.1 is Shazeer 2020's with a table of its own for
the logits; mT5 (Xue et al. 2021) is version 1.1 with a vocabulary of 101 languages.
"""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models.checks import check_activations, check_at_least, check_rates
from flaxllm.models.heads import LABELS, Classifier, head_specs
from flaxllm.models.output import Output
from flaxllm.nn import Context, Mask, constrain, tap

DEFAULT_HEAD = "seq2seq-lm"
ENCODER_HEADS = ("encoder", "token-classification")  # those of models without a decoder


@dataclass(frozen=True)
class Config:
    """`num_decoder_layers`: as many as the encoder's where None. `gated`, `tied` (the logits are made of the token
    embedding) and `scale_output` (of hidden states times `d_model ** -0.5`) tell the versions apart.

    `num_buckets` and `max_distance` are of the relative positions, which know no longest sequence: `max_len` is what the
    models were trained with, and only what a training pipeline takes. `dropout` acts on embeddings, inside the mlp, on
    each sub-layer's output and after the last norms; `attention_dropout` on attention weights; `classifier_dropout` in a
    classification head. `init_factor` scales all initial values. `labels` names the classes of a classification head.
    """

    vocab_size: int = 32128
    max_len: int = 512
    num_layers: int = 12
    num_decoder_layers: int | None = None
    num_heads: int = 12
    head_dim: int = 64
    d_model: int = 768
    d_mlp: int = 3072
    activation: str = "relu"
    gated: bool = False
    tied: bool = True
    scale_output: bool = True
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.0
    init_factor: float = 1.0
    bos_token: int | None = None
    eos_token: int | tuple[int, ...] | None = 1
    pad_token: int | None = 0
    decoder_start_token: int = 0
    labels: tuple[str, ...] = LABELS

    @property
    def decoder_depth(self) -> int:
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    def __post_init__(self):
        sizes = ("vocab_size", "max_len", "num_layers", "num_heads", "head_dim", "d_model", "d_mlp")
        check_at_least(1, "t5", self, *sizes, "num_decoder_layers")
        check_rates("t5", self, "dropout", "attention_dropout", "classifier_dropout")
        check_activations("t5", self, "activation")
        if self.num_buckets < 4 or self.max_distance <= self.num_buckets // 2:
            raise InputError(
                "the t5 config needs num_buckets of 4 or more and a max_distance beyond the half of them that hold one "
                f"distance each; got {self.num_buckets} buckets up to {self.max_distance}"
            )


def _v1(num_layers: int, num_heads: int, head_dim: int, d_model: int, d_mlp: int) -> Config:
    return Config(num_layers=num_layers, num_heads=num_heads, head_dim=head_dim, d_model=d_model, d_mlp=d_mlp)


def _v1_1(num_layers: int, num_heads: int, d_model: int, d_mlp: int, vocab_size: int = 32128) -> Config:
    return Config(
        vocab_size=vocab_size,
        num_layers=num_layers,
        num_heads=num_heads,
        d_model=d_model,
        d_mlp=d_mlp,
        activation="gelu_tanh",
        gated=True,
        tied=False,
        scale_output=False,
    )


_V1_1_SIZES = {
    "small": (8, 6, 512, 1024),
    "base": (12, 12, 768, 2048),
    "large": (24, 16, 1024, 2816),
    "xl": (24, 32, 2048, 5120),
    "xxl": (24, 64, 4096, 10240),
}
PRESETS = {
    # Raffel et al. 2020, section 3.7.
    "t5-small": _v1(6, 8, 64, 512, 2048),
    "t5-base": _v1(12, 12, 64, 768, 3072),
    "t5-large": _v1(24, 16, 64, 1024, 4096),
    "t5-3b": _v1(24, 32, 128, 1024, 16384),
    "t5-11b": _v1(24, 128, 128, 1024, 65536),
    # The released models of version 1.1; Flan-T5 (Chung et al. 2022) has the same sizes, and mT5 (Xue et al. 2021) too.
    **{f"t5-v1.1-{name}": _v1_1(*sizes) for name, sizes in _V1_1_SIZES.items()},
    **{f"mt5-{name}": _v1_1(*sizes, vocab_size=250112) for name, sizes in _V1_1_SIZES.items()},
}


def heads(config: Config) -> dict[str, Classifier | None]:
    """What can be put on this model; None for a vocabulary, whose logits `unembed` gives, and for the encoder alone."""
    rate = config.classifier_dropout
    return {
        "seq2seq-lm": None,
        "encoder": None,
        "sequence-classification": Classifier(reads="pooled", inner="tanh", dropout=rate, inner_dropout=rate),
        "token-classification": Classifier(dropout=rate),
        "question-answering": Classifier(dropout=0.0),
    }


def param_specs(config: Config, head: str | None = DEFAULT_HEAD) -> dict:
    """Every tensor of the model. Initial values are those of the paper's code (Mesh TensorFlow): of deviation 1 over the
    root of the inputs, queries smaller by that of `head_dim` too, and 1 for the token embedding."""
    d_model = config.d_model
    specs = {
        "embedding": {"tokens": nn.embedding_specs("vocab", config.vocab_size, d_model, nn.normal(config.init_factor))},
        "encoder": _stack_specs(config, config.num_layers, crosses=False),
    }
    if head not in ENCODER_HEADS:
        specs["decoder"] = _stack_specs(config, config.decoder_depth, crosses=True)
    init = _inverse_root(config, d_model)
    if head == "seq2seq-lm" and not config.tied:
        table = nn.Param((config.vocab_size, d_model), ("vocab", "embed"), init, inputs=("embed",))
        return specs | {"head": {"table": table}}
    return specs | head_specs(heads(config), head, d_model, config.labels, init)


def _stack_specs(config: Config, num_layers: int, crosses: bool) -> dict:
    into, out = (_inverse_root(config, size) for size in (config.d_model, config.d_mlp))
    norm = nn.rms_norm_specs(config.d_model)
    layer = {
        "attention_norm": norm,
        "attention": _attention_specs(config),
        "mlp_norm": norm,
        "mlp": nn.feed_forward_specs(config.d_model, config.d_mlp, into, out, bias=False, gated=config.gated),
    }
    if crosses:
        layer |= {"cross_attention_norm": norm, "cross_attention": _attention_specs(config)}
    return {
        "relative_bias": nn.relative_bias_specs(config.num_buckets, config.num_heads, into),
        "layers": nn.stack(layer, num_layers),
        "final_norm": norm,
    }


def _attention_specs(config: Config) -> dict[str, dict]:
    d_model, num_heads, head_dim = config.d_model, config.num_heads, config.head_dim
    init, out_init = _inverse_root(config, d_model), _inverse_root(config, num_heads * head_dim)
    specs = nn.multi_head_specs(d_model, num_heads, head_dim, init=init, out_init=out_init, bias=False)
    heads = {"heads": num_heads, "head_dim": head_dim}
    return specs | {"query": nn.dense_specs({"embed": d_model}, heads, _inverse_root(config, d_model * head_dim), bias=False)}


def _inverse_root(config: Config, size: int) -> nn.Initializer:
    return nn.normal(config.init_factor * size**-0.5)


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

    A model with a classification head needs no `decoder_tokens`: its decoder reads the source itself, one place late, and
    what it makes of each source's last end-of-text token is `pooled`. A model that is an encoder alone takes none.
    `valid`, `positions` and `segments` are as for `encode`, those of the decoder as for `decode`.

    Raises:
      InputError: decoder tokens that are missing, or too many; packed sources without positions where they are read twice;
        or a tap that this model does not have.
    """
    ctx = nn.collecting(ctx)
    encoded = encode(params, config, tokens, valid, positions, segments, ctx)
    if "decoder" not in params:
        if decoder_tokens is not None:
            raise InputError("this t5 model is an encoder alone: leave decoder_tokens out, or load it with another head")
        return Output(hidden=encoded, encoded=encoded, taps=nn.returned_taps(ctx))
    ends = None
    if decoder_tokens is None:
        if "out" not in params.get("head", {}):
            raise InputError("a t5 model needs decoder_tokens beside the tokens: the target, begun with decoder_start_token")
        if segments is not None and positions is None:
            raise InputError(
                "a t5 model that reads packed sources a second time needs positions beside the segments: they say where each "
                "begins"
            )
        ends = last_ends(tokens, config.eos_token, valid)
        start_positions = nn.token_positions(tokens.shape[1], valid) if positions is None else positions
        decoder_tokens = nn.shift_right(tokens, start_positions, config.decoder_start_token)
        decoder_valid, decoder_positions, decoder_segments = valid, positions, segments
    hidden = decode(
        params, config, decoder_tokens, encoded, valid=valid, decoder_valid=decoder_valid,
        decoder_positions=decoder_positions, segments=segments, decoder_segments=decoder_segments, ctx=ctx,
    )  # fmt: skip
    pooled = None if ends is None else hidden[jnp.arange(hidden.shape[0]), ends]
    return Output(hidden=hidden, pooled=pooled, encoded=encoded, taps=nn.returned_taps(ctx))


def last_ends(
    tokens: Int[Array, "batch length"], end: int | tuple[int, ...] | None, valid: Bool[Array, "batch length"] | None
) -> Int[Array, "batch"]:
    """Where each row's last end-of-text token is; its last valid token where it has none, as if cut off."""
    place = jnp.arange(tokens.shape[1])
    is_end = jnp.isin(tokens, jnp.asarray(() if end is None else end, tokens.dtype))
    is_valid = jnp.ones_like(is_end) if valid is None else valid
    return (place * is_valid + tokens.shape[1] * is_end).argmax(-1)


def encode(
    params: dict,
    config: Config,
    tokens: Int[Array, "batch source"],
    valid: Bool[Array, "batch source"] | None = None,
    positions: Int[Array, "batch source"] | None = None,
    segments: Int[Array, "batch source"] | None = None,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Float[Array, "batch source embed"]:
    """The encoder's hidden states after its final norm.

    `valid` is False at padding, on whichever side; `positions` are the places in the row unless given (only differences
    count); `segments` number the documents packed in a row (a token sees its own document only).
    """
    mask = Mask(query_segments=segments, key_segments=segments, key_valid=valid)
    layer = partial(_encoder_layer, config=config, mask=mask)
    return _run_stack("encoder", params, config, tokens, positions, layer, ctx)


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
    """The decoder's hidden states after its final norm, given the encoder's (or what `nn.remember` made of them for each
    layer); `valid` and `segments` are the source's.

    Where rows hold several documents, a target's tokens see the source with their own number.
    """
    # Within a segment a token's place in the row orders it just as its position does.
    mask = Mask(causal=True, query_segments=decoder_segments, key_segments=decoder_segments, key_valid=decoder_valid)
    cross_mask = Mask(query_segments=decoder_segments, key_segments=segments, key_valid=valid)
    layer = partial(_decoder_layer, config=config, mask=mask, cross_mask=cross_mask, encoded=encoded)
    return _run_stack("decoder", params, config, decoder_tokens, decoder_positions, layer, ctx)


def _run_stack(
    name: str, params: dict, config: Config, tokens: Array, positions: Array | None, layer: partial, ctx: Context
) -> Array:
    ctx = (nn.collecting(ctx) if ctx.collected is None else ctx).within(name)
    stack = params[name]
    where = jnp.arange(tokens.shape[1])[None] if positions is None else positions
    seen = nn.seen_positions(where, ctx)
    bias = nn.relative_bias(stack["relative_bias"], where, seen, config.max_distance, name == "encoder", ctx)
    x = tap(nn.embed(params["embedding"]["tokens"], tokens, ctx), "embedding", ctx)
    x = constrain(nn.dropout(x, config.dropout, "embedding", ctx), ctx, "batch", "length", None)
    x = nn.scan_layers((partial(layer, bias=tap(bias, "relative_bias", ctx)),), stack["layers"], x, ctx)
    x = tap(final_norm(stack, config, x, ctx), "hidden", ctx)
    return nn.dropout(x, config.dropout, "hidden", ctx)


def _encoder_layer(params: dict, x: Array, ctx: Context, config: Config, mask: Mask, bias: Array) -> Array:
    x = tap(x, "in", ctx)
    x = tap(_add_attention("attention", params, x, mask, config, ctx, bias=bias), "middle", ctx)
    return tap(_add_mlp(params, x, config, ctx), "out", ctx)


def _decoder_layer(
    params: dict, x: Array, ctx: Context, config: Config, mask: Mask, cross_mask: Mask, encoded: Array | nn.Layers, bias: Array
) -> Array:
    x = tap(x, "in", ctx)
    x = tap(_add_attention("attention", params, x, mask, config, ctx, bias=bias), "middle", ctx)
    x = tap(_add_attention("cross_attention", params, x, cross_mask, config, ctx, memory=encoded), "crossed", ctx)
    return tap(_add_mlp(params, x, config, ctx), "out", ctx)


def _add_attention(
    name: str, params: dict, x: Array, mask: Mask, config: Config, ctx: Context, **others: Array | nn.Layers
) -> Array:
    normed = tap(nn.rms_norm(params[f"{name}_norm"], x, config.norm_eps, ctx), f"{name}_norm", ctx)
    attended = nn.multi_head_attention(
        params[name], normed, mask, ctx.within(name), scale=1.0, dropout_rate=config.attention_dropout, **others
    )
    return x + nn.dropout(attended, config.dropout, name, ctx)


def _add_mlp(params: dict, x: Array, config: Config, ctx: Context) -> Array:
    normed = tap(nn.rms_norm(params["mlp_norm"], x, config.norm_eps, ctx), "mlp_norm", ctx)
    transformed = nn.feed_forward(params["mlp"], normed, config.activation, ctx, dropout_rate=config.dropout)
    return constrain(x + nn.dropout(transformed, config.dropout, "mlp", ctx), ctx, "batch", "length", None)


def final_norm(params: dict, config: Config, x: Float[Array, "*batch embed"], ctx: Context) -> Float[Array, "*batch embed"]:
    """What stands after the last layer of a stack: `params` are those of the encoder or the decoder."""
    return nn.rms_norm(params["final_norm"], x, config.norm_eps, ctx)


def unembed(
    params: dict,
    config: Config,
    hidden: Float[Array, "*batch embed"],
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Float[Array, "*batch vocab"]:
    """Logits over the vocabulary, in float32 at least: the hidden states times the head's table, or the token embedding.

    Raises:
      InputError: the parameters are of a model without this head.
    """
    hidden = hidden * config.d_model**-0.5 if config.scale_output else hidden
    if config.tied:
        return nn.unembed(params["embedding"]["tokens"], hidden, ctx)
    if "table" not in params.get("head", {}):
        raise InputError("these parameters have no table for logits over the vocabulary: use the head 'seq2seq-lm'")
    return nn.unembed(params["head"]["table"], hidden, ctx)


def matmul_flops(config: Config, tokens: int, length: int) -> int:
    """Operations (a multiply-add is two) of all matrix products of a forward pass over `tokens` of a target and as many of
    a source, both in rows of `length`. Attention is counted whole, hidden half included."""
    inner = config.num_heads * config.head_dim
    attention = 4 * config.d_model * inner + 2 * length * inner
    mlp = (3 if config.gated else 2) * config.d_model * config.d_mlp
    layers = config.num_layers * (attention + mlp) + config.decoder_depth * (2 * attention + mlp)
    return 2 * tokens * (layers + config.d_model * config.vocab_size)
