"""BERT: an encoder with post-norm, learned positions and GELU (Devlin et al. 2019), and those that differ by config only.

    h = norm(tokens + positions + token types);   h = norm(h + attention(h));   h = norm(h + mlp(h))
    pooled = tanh(dense(h of [CLS]));   vocabulary: norm(gelu(dense(h))) embedding^T + bias

RoBERTa (Liu et al. 2019) has its positions further down the table and one token type; DistilBERT (Sanh et al. 2019) has no
token types; both classify sequences by a layer of the head's own, where BERT uses the pooler.
"""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxllm import nn
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models.checks import check_activations, check_at_least, check_rates
from flaxllm.models.heads import LABELS, Classifier, first_token, head_specs
from flaxllm.models.output import Output
from flaxllm.nn import Context, Mask, constrain, tap
from flaxllm.nn.weights import product

DEFAULT_HEAD = "masked-lm"
VOCABULARY_HEADS = ("masked-lm", "pretraining")
VARIANTS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")


@dataclass(frozen=True)
class Config:
    """`variant` says whose heads and checkpoints these are, as Hugging Face's model_type does; it changes no hidden state.

    `max_len` counts tokens: the table of positions has `position_offset` rows more, which come first. `num_token_types`
    is 0 where there are none. `pooler`: the model has one whatever its head; a head that reads it brings it along.
    `transform_activation` is that of the vocabulary's head (None: `activation`), and `tied` says that this head uses
    the token embedding. `dropout` acts on the embedding and on each sub-layer's output, `attention_dropout` on attention
    weights, `classifier_dropout` in a classification head (None: `dropout`), `span_dropout` before question answering.
    `labels` names the classes of a classification head.
    """

    variant: str = "bert"
    vocab_size: int = 30522
    max_len: int = 512
    num_layers: int = 12
    num_heads: int = 12
    head_dim: int = 64
    d_model: int = 768
    d_mlp: int = 3072
    position_offset: int = 0
    num_token_types: int = 2
    pooler: bool = True
    activation: str = "gelu"
    transform_activation: str | None = None
    tied: bool = True
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    span_dropout: float = 0.0
    init_stddev: float = 0.02
    bos_token: int | None = None
    eos_token: int | tuple[int, ...] | None = None
    pad_token: int | None = 0
    labels: tuple[str, ...] = LABELS

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise InputError(f"the bert config has an unknown variant {self.variant!r}: {did_you_mean(self.variant, VARIANTS)}")
        sizes = ("vocab_size", "max_len", "num_layers", "num_heads", "head_dim", "d_model", "d_mlp")
        check_at_least(1, "bert", self, *sizes)
        check_at_least(0, "bert", self, "position_offset", "num_token_types")
        check_rates("bert", self, "dropout", "attention_dropout", "classifier_dropout", "span_dropout")
        check_activations("bert", self, "activation", "transform_activation")


_LARGE = dict(num_layers=24, num_heads=16, d_model=1024, d_mlp=4096)
_ROBERTA = dict(
    variant="roberta", vocab_size=50265, position_offset=2, num_token_types=1, pooler=False, norm_eps=1e-5,
    bos_token=0, eos_token=2, pad_token=1,
)  # fmt: skip

PRESETS = {
    # Devlin et al. 2019, section 3, with the vocabulary of the uncased models.
    "bert-base": Config(),
    "bert-large": Config(**_LARGE),
    # Liu et al. 2019, table 9; pretrained without next-sentence prediction (section 4.2), so without a pooler.
    "roberta-base": Config(**_ROBERTA),
    "roberta-large": Config(**_ROBERTA, **_LARGE),
    # Sanh et al. 2019, section 3; the rates of its heads are those of the released models.
    "distilbert-base": Config(
        variant="distilbert", num_layers=6, num_token_types=0, pooler=False, classifier_dropout=0.2, span_dropout=0.1
    ),
}


def heads(config: Config) -> dict[str, Classifier | None]:
    """What can be put on this model; None for a vocabulary, whose logits `unembed` gives. "pretraining" has both: its logits
    are those of the next sentence, and `unembed` gives the vocabulary's."""
    rate = config.dropout if config.classifier_dropout is None else config.classifier_dropout
    own_layer = Classifier(reads="first", inner="tanh", dropout=rate, inner_dropout=rate)
    sequence = {
        "bert": Classifier(reads="pooled", dropout=rate),
        "distilbert": Classifier(reads="first", inner="relu", dropout=0.0, inner_dropout=rate),
    }.get(config.variant, own_layer)
    next_sentence = Classifier(reads="pooled", dropout=0.0)
    pairs = {"pretraining": next_sentence, "next-sentence": next_sentence} if config.variant == "bert" else {}
    return {
        "masked-lm": None,
        **pairs,
        "sequence-classification": sequence,
        "token-classification": Classifier(dropout=config.dropout if config.variant == "distilbert" else rate),
        "question-answering": Classifier(dropout=config.span_dropout),
    }


def has_pooler(config: Config, head: str | None) -> bool:
    """Whether the model has a pooler with this head."""
    shape = heads(config).get(head)
    return config.pooler or (shape is not None and shape.reads == "pooled")


def param_specs(config: Config, head: str | None = DEFAULT_HEAD) -> dict:
    """Every tensor of the model."""
    init = nn.normal(config.init_stddev)
    embedding = {
        "tokens": nn.embedding_specs("vocab", config.vocab_size, config.d_model, init),
        "positions": nn.embedding_specs("positions", config.position_offset + config.max_len, config.d_model, init),
        "norm": nn.layer_norm_specs(config.d_model),
    }
    if config.num_token_types:
        embedding["token_types"] = nn.embedding_specs("token_types", config.num_token_types, config.d_model, init)
    layer = {
        "attention": nn.multi_head_specs(config.d_model, config.num_heads, config.head_dim, init=init),
        "attention_norm": nn.layer_norm_specs(config.d_model),
        "mlp": nn.feed_forward_specs(config.d_model, config.d_mlp, init),
        "mlp_norm": nn.layer_norm_specs(config.d_model),
    }
    specs = {"embedding": embedding, "layers": nn.stack(layer, config.num_layers)}
    if has_pooler(config, head):
        specs["pooler"] = nn.dense_specs({"embed": config.d_model}, {"inner": config.d_model}, init)
    specs |= head_specs(heads(config), head, config.d_model, config.labels, init)
    if head in VOCABULARY_HEADS:
        specs["head"] = specs.get("head", {}) | _vocabulary_specs(config, init)
    return specs


def _vocabulary_specs(config: Config, init: nn.Initializer) -> dict[str, dict]:
    vocabulary = nn.dense_specs({"embed": config.d_model}, {"vocab": config.vocab_size}, init)
    return {
        "transform": nn.dense_specs({"embed": config.d_model}, {"inner": config.d_model}, init),
        "norm": nn.layer_norm_specs(config.d_model),
        "vocabulary": {"bias": vocabulary["bias"]} if config.tied else vocabulary,
    }


def apply(
    params: dict,
    config: Config,
    tokens: Int[Array, "batch length"],
    token_types: Int[Array, "batch length"] | None = None,
    valid: Bool[Array, "batch length"] | None = None,
    positions: Int[Array, "batch length"] | None = None,
    segments: Int[Array, "batch length"] | None = None,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Output:
    """Hidden states `[batch, length, d_model]` and, where there is a pooler, what it makes of each row's first token.

    `token_types` are all 0 unless given. `valid` is False at padding, on whichever side; `positions` count the valid
    tokens from 0 unless given; `segments` number the documents packed in a row (a token sees its own document only, and 0
    is the usual number for padding).

    Raises:
      InputError: a sequence longer than `config.max_len`, token types for a model without them, or a tap that this model
        does not have.
    """
    length = tokens.shape[1]
    if length > config.max_len:
        raise InputError(f"a sequence of {length} tokens is longer than this model's max_len of {config.max_len}")
    ctx = nn.collecting(ctx)
    where = nn.token_positions(length, valid) if positions is None else positions
    x = _embed(params["embedding"], config, tokens, token_types, where, ctx)
    mask = Mask(query_segments=segments, key_segments=segments, key_valid=valid)
    x = nn.scan_layers((partial(_layer, config=config, mask=mask),), params["layers"], x, ctx)
    x = tap(x, "hidden", ctx)
    pooled = None
    if "pooler" in params:
        pooled = tap(jnp.tanh(nn.dense(params["pooler"], first_token(x, valid), "bd,de->be", ctx)), "pooled", ctx)
    return Output(hidden=x, pooled=pooled, taps=nn.returned_taps(ctx))


def _embed(
    params: dict, config: Config, tokens: Array, token_types: Array | None, positions: Array, ctx: Context
) -> Array:
    x = nn.embed(params["tokens"], tokens, ctx, untrained=config.pad_token)
    x = x + nn.embed(params["positions"], positions + config.position_offset, ctx)
    if config.num_token_types:
        # One row for all, where no types are given: its gradient is then a sum and no scatter.
        x = x + (ctx.cast(params["token_types"][0]) if token_types is None else nn.embed(params["token_types"], token_types, ctx))
    elif token_types is not None:
        raise InputError("this model has no token types (num_token_types is 0 in its config): leave token_types out")
    x = tap(nn.layer_norm(params["norm"], x, config.norm_eps, ctx), "embedding", ctx)
    return constrain(nn.dropout(x, config.dropout, "embedding", ctx), ctx, "batch", "length", None)


def _layer(params: dict, x: Array, ctx: Context, config: Config, mask: Mask) -> Array:
    x = tap(x, "in", ctx)
    attended = nn.multi_head_attention(
        params["attention"], x, mask, ctx.within("attention"), dropout_rate=config.attention_dropout
    )
    x = x + nn.dropout(attended, config.dropout, "attention", ctx)
    x = tap(nn.layer_norm(params["attention_norm"], x, config.norm_eps, ctx), "middle", ctx)
    transformed = nn.feed_forward(params["mlp"], x, config.activation, ctx)
    x = x + nn.dropout(transformed, config.dropout, "mlp", ctx)
    x = tap(nn.layer_norm(params["mlp_norm"], x, config.norm_eps, ctx), "out", ctx)
    return constrain(x, ctx, "batch", "length", None)


def unembed(
    params: dict,
    config: Config,
    hidden: Float[Array, "*batch embed"],
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Float[Array, "*batch vocab"]:
    """Logits over the vocabulary, in float32 at least, by the head of masked language modelling (the released code; Devlin
    et al. 2019, section 3.1, names its softmax only).

    Raises:
      InputError: the model has no such head.
    """
    head = params.get("head", {})
    if "transform" not in head:
        raise InputError("this model has no head for a vocabulary: build or load it with the head 'masked-lm'")
    activation = nn.ACTIVATIONS[config.transform_activation or config.activation]
    x = activation(nn.dense(head["transform"], hidden, "...d,de->...e", ctx))
    x = nn.layer_norm(head["norm"], x, config.norm_eps, ctx)
    if config.tied:
        logits = nn.unembed(params["embedding"]["tokens"], x, ctx)
    else:
        logits = product("...d,dv->...v", x, head["vocabulary"]["kernel"], ctx, jnp.promote_types(x.dtype, jnp.float32))
    return logits + head["vocabulary"]["bias"]


def matmul_flops(config: Config, tokens: int, length: int) -> int:
    """Operations (a multiply-add is two) of all matrix products of a forward pass over `tokens` in rows of `length`, with
    those of the vocabulary's head."""
    inner = config.num_heads * config.head_dim
    layer = 4 * config.d_model * inner + 2 * config.d_model * config.d_mlp + 2 * length * inner
    return 2 * tokens * (config.num_layers * layer + config.d_model * (config.d_model + config.vocab_size))
