"""GPT-2 and GPT-3: a decoder with pre-norm, learned positions, tied embeddings and GELU (Radford et al. 2019, Brown et
al. 2020).

    h = tokens + positions;   h = h + attention(norm(h));   h = h + mlp(norm(h));   logits = norm(h) embedding^T

GPT-3's alternating dense and locally banded attention (its section 2.1, after Child et al. 2019) is `window`: set it,
and every second layer sees only that many positions. The paper does not publish its band width.
"""

from dataclasses import dataclass
from functools import partial

from jaxtyping import Array, Bool, Float, Int

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models.checks import check_activations, check_at_least, check_rates
from flaxllm.models.heads import LABELS, Classifier, head_specs
from flaxllm.models.output import Output
from flaxllm.nn import Context, Mask, constrain, tap

DEFAULT_HEAD = "causal-lm"


@dataclass(frozen=True)
class Config:
    """`dropout` acts on embeddings and residual branches, `attention_dropout` on attention weights. `labels` names the
    classes of a classification head."""

    vocab_size: int = 50257
    max_len: int = 1024
    num_layers: int = 12
    num_heads: int = 12
    head_dim: int = 64
    d_model: int = 768
    d_mlp: int = 3072
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-5
    window: int | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_stddev: float = 0.02
    bos_token: int | None = None
    eos_token: int | tuple[int, ...] | None = None
    pad_token: int | None = None
    labels: tuple[str, ...] = LABELS

    def __post_init__(self):
        sizes = ("vocab_size", "max_len", "num_layers", "num_heads", "head_dim", "d_model", "d_mlp")
        check_at_least(1, "gpt", self, *sizes)
        check_rates("gpt", self, "dropout", "attention_dropout")
        check_activations("gpt", self, "activation")
        if self.window is not None and (self.window < 1 or self.num_layers % 2):
            raise InputError(
                "the gpt config alternates dense and banded layers where window is set, which needs a window of 1 or "
                f"more and an even num_layers; got window {self.window} and {self.num_layers} layers"
            )


def _gpt(num_layers: int, d_model: int, num_heads: int, head_dim: int, max_len: int) -> Config:
    return Config(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        head_dim=head_dim,
        d_mlp=4 * d_model,
        max_len=max_len,
    )


PRESETS = {
    # Radford et al. 2019, table 2, with the parameter counts of the released models.
    "gpt2-124m": _gpt(12, 768, 12, 64, 1024),
    "gpt2-355m": _gpt(24, 1024, 16, 64, 1024),
    "gpt2-774m": _gpt(36, 1280, 20, 64, 1024),
    "gpt2-1.5b": _gpt(48, 1600, 25, 64, 1024),
    # Brown et al. 2020, table 2.1, all with a context of 2048.
    "gpt3-small": _gpt(12, 768, 12, 64, 2048),
    "gpt3-medium": _gpt(24, 1024, 16, 64, 2048),
    "gpt3-large": _gpt(24, 1536, 16, 96, 2048),
    # The table has 24 heads of 128 at width 2048, which is neither the width (3072) nor the 1.3B it states (1.5B).
    "gpt3-xl": _gpt(24, 2048, 16, 128, 2048),
    "gpt3-2.7b": _gpt(32, 2560, 32, 80, 2048),
    "gpt3-6.7b": _gpt(32, 4096, 32, 128, 2048),
    # As in the table: width 5140, though 40 heads of 128 span 5120.
    "gpt3-13b": _gpt(40, 5140, 40, 128, 2048),
    "gpt3-175b": _gpt(96, 12288, 96, 128, 2048),
}


def heads(config: Config) -> dict[str, Classifier | None]:
    """What can be put on this model; None for a vocabulary, whose logits `unembed` gives."""
    return {
        "causal-lm": None,
        "sequence-classification": Classifier(reads="last", bias=False),
        "token-classification": Classifier(),
        "question-answering": Classifier(),
    }


def param_specs(config: Config, head: str | None = DEFAULT_HEAD) -> dict:
    """Every tensor of the model. Projections into the residual stream start `sqrt(2 * num_layers)` times smaller
    (Radford et al. 2019, section 2.3), positions at half the deviation (the released code)."""
    init = nn.normal(config.init_stddev)
    residual_init = nn.normal(config.init_stddev / (2 * config.num_layers) ** 0.5)
    layer = {
        "attention_norm": nn.layer_norm_specs(config.d_model),
        "attention": nn.multi_head_specs(
            config.d_model, config.num_heads, config.head_dim, init=init, out_init=residual_init
        ),
        "mlp_norm": nn.layer_norm_specs(config.d_model),
        "mlp": nn.feed_forward_specs(config.d_model, config.d_mlp, init, residual_init),
    }
    specs = {
        "embedding": {
            "tokens": nn.embedding_specs("vocab", config.vocab_size, config.d_model, init),
            "positions": nn.embedding_specs(
                "positions", config.max_len, config.d_model, nn.normal(config.init_stddev / 2)
            ),
        },
        "layers": nn.stack(layer, config.num_layers),
        "final_norm": nn.layer_norm_specs(config.d_model),
    }
    return specs | head_specs(heads(config), head, config.d_model, config.labels, init)


def apply(
    params: dict,
    config: Config,
    tokens: Int[Array, "batch length"],
    valid: Bool[Array, "batch length"] | None = None,
    positions: Int[Array, "batch length"] | None = None,
    segments: Int[Array, "batch length"] | None = None,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Output:
    """Hidden states after the final norm, `[batch, length, d_model]`; `unembed` makes logits of them.

    `valid` is False at padding, on whichever side; `positions` count the valid tokens from 0 unless given; `segments`
    number the documents packed in a row (a token sees its own document only, and 0 is the usual number for padding).

    Raises:
      InputError: a sequence longer than `config.max_len`, or a tap that this model does not have.
    """
    length = tokens.shape[1]
    if length > config.max_len:
        raise InputError(f"a sequence of {length} tokens is longer than this model's max_len of {config.max_len}")
    ctx = nn.collecting(ctx)
    where = nn.token_positions(length, valid) if positions is None else positions
    embedded = nn.embed(params["embedding"]["tokens"], tokens, ctx)
    embedded = embedded + nn.embed(params["embedding"]["positions"], where, ctx)
    x = nn.dropout(tap(embedded, "embedding", ctx), config.dropout, "embedding", ctx)
    x = constrain(x, ctx, "batch", "length", None)
    # Within a segment a token's place in the row orders it just as its position does.
    dense = Mask(causal=True, query_segments=segments, key_segments=segments, key_valid=valid)
    cycle = tuple(partial(_layer, config=config, mask=dense.replace(window=window)) for window in windows(config))
    x = nn.scan_layers(cycle, params["layers"], x, ctx)
    x = tap(final_norm(params, config, x, ctx), "hidden", ctx)
    return Output(hidden=x, taps=nn.returned_taps(ctx))


def windows(config: Config) -> tuple[int | None, ...]:
    """How many positions the layers see, which take turns; None for all."""
    return (None,) if config.window is None else (None, config.window)


def _layer(params: dict, x: Array, ctx: Context, config: Config, mask: Mask) -> Array:
    x = tap(x, "in", ctx)
    normed = tap(nn.layer_norm(params["attention_norm"], x, config.norm_eps, ctx), "attention_norm", ctx)
    attended = nn.multi_head_attention(
        params["attention"], normed, mask, ctx.within("attention"), dropout_rate=config.attention_dropout
    )
    x = tap(x + nn.dropout(attended, config.dropout, "attention", ctx), "middle", ctx)
    normed = tap(nn.layer_norm(params["mlp_norm"], x, config.norm_eps, ctx), "mlp_norm", ctx)
    transformed = nn.feed_forward(params["mlp"], normed, config.activation, ctx)
    x = tap(x + nn.dropout(transformed, config.dropout, "mlp", ctx), "out", ctx)
    return constrain(x, ctx, "batch", "length", None)


def final_norm(params: dict, config: Config, x: Float[Array, "*batch embed"], ctx: Context) -> Float[Array, "*batch embed"]:
    """What stands between the last layer and `unembed`."""
    return nn.layer_norm(params["final_norm"], x, config.norm_eps, ctx)


def unembed(
    params: dict,
    config: Config,
    hidden: Float[Array, "*batch embed"],
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Float[Array, "*batch vocab"]:
    """Logits over the vocabulary, in float32 at least: the hidden states times the (tied) token embedding."""
    return nn.unembed(params["embedding"]["tokens"], hidden, ctx)


def matmul_flops(config: Config, tokens: int, length: int) -> int:
    """Operations (a multiply-add is two) of all matrix products of a forward pass over `tokens` in rows of `length`.

    Attention is counted whole, hidden half included, as is usual (Brown et al. 2020, appendix D, leaves it out).
    """
    inner = config.num_heads * config.head_dim
    layer = 4 * config.d_model * inner + 2 * config.d_model * config.d_mlp + 2 * length * inner
    return 2 * tokens * (config.num_layers * layer + config.d_model * config.vocab_size)
