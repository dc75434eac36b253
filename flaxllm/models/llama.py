"""Llama 1 to 3 (Touvron et al. 2023; Grattafiori et al. 2024): a decoder with pre-norm by RMS, rotary positions (Su et al.
2021), a gated feed-forward (Shazeer 2020) and key heads that several query heads share (Ainslie et al. 2023).

    h = tokens;   h = h + attention(rotate(norm(h)));   h = h + down(silu(gate(n)) * up(n)), n = norm(h)
    logits = norm(h) table^T, the table being the token embedding where tied

What others changed is config: Mistral (Jiang et al. 2023) sees a window, Qwen2 (Yang et al. 2024) has biases on queries,
keys and values, Qwen3 (Yang et al. 2025) normalises query and key heads, SmolLM2 (Ben Allal et al. 2025) changes nothing.
"""

from dataclasses import dataclass
from functools import partial

from jaxtyping import Array, Bool, Float, Int

from flaxllm import nn
from flaxllm.errors import InputError, did_you_mean
from flaxllm.models.checks import check_activations, check_at_least, check_rates
from flaxllm.models.heads import LABELS, Classifier, head_specs
from flaxllm.models.output import Output
from flaxllm.nn import Context, Mask, constrain, tap
from flaxllm.nn.rotary import SCALINGS

DEFAULT_HEAD = "causal-lm"
UNSCALED = "none"


@dataclass(frozen=True)
class Config:
    """`num_kv_heads` key and value heads serve all query heads; `head_norm` normalises queries and keys head by head.

    `rope_base` and what follows it are those of `nn.rotary`; `rope_scaling` is one of its kinds, or "none". A layer sees
    only `window` positions where `windowed` says so: its entries are the layers in turn, again and again. `tied`: the
    token embedding also makes the logits. `max_len` is the context the model was made for; nothing depends on it here.
    `dropout` acts on the embedding and the residual branches (the papers have none), `attention_dropout` on attention
    weights. `labels` names the classes of a classification head.
    """

    vocab_size: int = 32000
    max_len: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    d_model: int = 4096
    d_mlp: int = 11008
    activation: str = "silu"
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0
    rope_scaling: str = UNSCALED
    rope_factor: float = 1.0
    rope_original_len: int = 8192
    rope_slow_turns: float = 1.0
    rope_fast_turns: float = 4.0
    window: int | None = None
    windowed: tuple[bool, ...] = (True,)
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False
    tied: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_stddev: float = 0.02
    bos_token: int | None = None
    eos_token: int | tuple[int, ...] | None = None
    pad_token: int | None = None
    labels: tuple[str, ...] = LABELS

    def __post_init__(self):
        sizes = ("vocab_size", "max_len", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_model", "d_mlp")
        check_at_least(1, "llama", self, *sizes, "rope_original_len")
        check_rates("llama", self, "dropout", "attention_dropout")
        check_activations("llama", self, "activation")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"the llama config has {self.num_heads} query heads, which {self.num_kv_heads} key heads cannot share: "
                "use a num_heads that num_kv_heads divides"
            )
        if self.head_dim % 2:
            raise InputError(f"the llama config needs an even head_dim, whose pairs rotate; got {self.head_dim}")
        _check_rope(self)
        _check_window(self)


def _check_rope(config: Config) -> None:
    if config.rope_scaling not in (UNSCALED, *SCALINGS):
        known = did_you_mean(config.rope_scaling, (UNSCALED, *SCALINGS))
        raise InputError(f"the llama config has an unknown rope_scaling {config.rope_scaling!r}: {known}")
    if not (config.rope_base > 1.0 and config.rope_factor > 0.0):
        raise InputError(
            "the llama config needs a rope_base above 1 and a rope_factor above 0, got "
            f"{config.rope_base} and {config.rope_factor}"
        )
    if not 0.0 < config.rope_slow_turns < config.rope_fast_turns:
        raise InputError(
            "the llama config needs 0 < rope_slow_turns < rope_fast_turns, got "
            f"{config.rope_slow_turns} and {config.rope_fast_turns}"
        )


def _check_window(config: Config) -> None:
    if config.window is not None and config.window < 1:
        raise InputError(f"the llama config needs a window of 1 or more, or None; got {config.window}")
    if not config.windowed or config.num_layers % len(config.windowed):
        raise InputError(
            f"the llama config has {config.num_layers} layers, among which the {len(config.windowed)} entries of windowed "
            "cannot take turns: use a number of entries that divides num_layers"
        )


_LLAMA3_1 = dict(rope_scaling="llama3", max_len=131072)
_LLAMA3 = dict(vocab_size=128256, max_len=8192, num_kv_heads=8, rope_base=5e5, bos_token=128000, eos_token=128001)
_QWEN2 = dict(vocab_size=151936, rope_base=1e6, norm_eps=1e-6, attention_bias=True, bos_token=151643, eos_token=151643)
_QWEN3 = dict(
    vocab_size=151936, max_len=40960, num_kv_heads=8, rope_base=1e6, norm_eps=1e-6, head_norm=True, bos_token=151643,
    eos_token=151645,
)  # fmt: skip
_SMOLLM2 = dict(vocab_size=49152, max_len=8192, rope_base=1e5, tied=True, bos_token=0, eos_token=0)


def _preset(num_layers: int, d_model: int, num_heads: int, d_mlp: int, head_dim: int = 128, **others: object) -> Config:
    fields = {"num_kv_heads": num_heads, "bos_token": 1, "eos_token": 2, **others}
    return Config(
        num_layers=num_layers, d_model=d_model, num_heads=num_heads, d_mlp=d_mlp, head_dim=head_dim, **fields
    )


PRESETS = {
    # Touvron et al. 2023 (Llama 2), table 1, and the released configs.
    "llama2-7b": _preset(32, 4096, 32, 11008),
    "llama2-13b": _preset(40, 5120, 40, 13824),
    "llama2-70b": _preset(80, 8192, 64, 28672, num_kv_heads=8),
    # Grattafiori et al. 2024, table 3; the 3.2 models by their released configs.
    "llama3-8b": _preset(32, 4096, 32, 14336, **_LLAMA3),
    "llama3-70b": _preset(80, 8192, 64, 28672, **_LLAMA3),
    "llama3.1-8b": _preset(32, 4096, 32, 14336, **_LLAMA3 | _LLAMA3_1, rope_factor=8.0),
    "llama3.1-70b": _preset(80, 8192, 64, 28672, **_LLAMA3 | _LLAMA3_1, rope_factor=8.0),
    "llama3.1-405b": _preset(126, 16384, 128, 53248, **_LLAMA3 | _LLAMA3_1, rope_factor=8.0),
    "llama3.2-1b": _preset(16, 2048, 32, 8192, 64, **_LLAMA3 | _LLAMA3_1, rope_factor=32.0, tied=True),
    "llama3.2-3b": _preset(28, 3072, 24, 8192, **_LLAMA3 | _LLAMA3_1, rope_factor=32.0, tied=True),
    # Jiang et al. 2023, table 1.
    "mistral-7b-v0.1": _preset(32, 4096, 32, 14336, num_kv_heads=8, window=4096, max_len=32768),
    # Yang et al. 2024 (Qwen2), table 1, and the released configs of Qwen2.5.
    "qwen2-0.5b": _preset(24, 896, 14, 4864, 64, **_QWEN2, num_kv_heads=2, max_len=131072, tied=True),
    "qwen2-1.5b": _preset(28, 1536, 12, 8960, **_QWEN2, num_kv_heads=2, max_len=131072, tied=True),
    "qwen2-7b": _preset(28, 3584, 28, 18944, **_QWEN2 | {"vocab_size": 152064}, num_kv_heads=4, max_len=131072),
    "qwen2.5-3b": _preset(36, 2048, 16, 11008, **_QWEN2, num_kv_heads=2, max_len=32768, tied=True),
    # Yang et al. 2025 (Qwen3), table 1.
    "qwen3-0.6b": _preset(28, 1024, 16, 3072, **_QWEN3, tied=True),
    "qwen3-1.7b": _preset(28, 2048, 16, 6144, **_QWEN3, tied=True),
    "qwen3-4b": _preset(36, 2560, 32, 9728, **_QWEN3, tied=True),
    "qwen3-8b": _preset(36, 4096, 32, 12288, **_QWEN3),
    # Ben Allal et al. 2025 (SmolLM2) and the released configs.
    "smollm2-135m": _preset(30, 576, 9, 1536, 64, **_SMOLLM2, num_kv_heads=3),
    "smollm2-360m": _preset(32, 960, 15, 2560, 64, **_SMOLLM2, num_kv_heads=5),
    "smollm2-1.7b": _preset(24, 2048, 32, 8192, 64, **_SMOLLM2 | {"rope_base": 1.3e5}),
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
    """Every tensor of the model. All matrices start with the deviation `init_stddev`, as in the released code."""
    init = nn.normal(config.init_stddev)
    layer = {
        "attention_norm": nn.rms_norm_specs(config.d_model),
        "attention": nn.multi_head_specs(
            config.d_model,
            config.num_heads,
            config.head_dim,
            config.num_kv_heads,
            init,
            bias=config.attention_bias,
            out_bias=config.attention_out_bias,
            head_norm=config.head_norm,
        ),
        "mlp_norm": nn.rms_norm_specs(config.d_model),
        "mlp": nn.feed_forward_specs(config.d_model, config.d_mlp, init, bias=config.mlp_bias, gated=True),
    }
    specs = {
        "embedding": {"tokens": nn.embedding_specs("vocab", config.vocab_size, config.d_model, init)},
        "layers": nn.stack(layer, config.num_layers),
        "final_norm": nn.rms_norm_specs(config.d_model),
    }
    if head == "causal-lm" and not config.tied:
        table = nn.Param((config.vocab_size, config.d_model), ("vocab", "embed"), init, inputs=("embed",))
        return specs | {"head": {"table": table}}
    return specs | head_specs(heads(config), head, config.d_model, config.labels, init)


def apply(
    params: dict,
    config: Config,
    tokens: Int[Array, "batch length"],
    valid: Bool[Array, "batch length"] | None = None,
    positions: Int[Array, "#batch length"] | None = None,
    segments: Int[Array, "batch length"] | None = None,
    ctx: Context = Context(),  # noqa: B008 (frozen)
) -> Output:
    """Hidden states after the final norm, `[batch, length, d_model]`; `unembed` makes logits of them.

    `valid` is False at padding, on whichever side; `positions` count the valid tokens from 0 unless given; `segments`
    number the documents packed in a row (a token sees its own document only, and 0 is the usual number for padding).

    Raises:
      InputError: a tap that this model does not have.
    """
    ctx = nn.collecting(ctx)
    where = nn.token_positions(tokens.shape[1], valid) if positions is None else positions
    turn = _rotation(config, where)
    embedded = tap(nn.embed(params["embedding"]["tokens"], tokens, ctx), "embedding", ctx)
    x = constrain(nn.dropout(embedded, config.dropout, "embedding", ctx), ctx, "batch", "length", None)
    # Within a segment a token's place in the row orders it just as its position does.
    dense = Mask(causal=True, query_segments=segments, key_segments=segments, key_valid=valid)
    masks = [dense.replace(window=window) for window in windows(config)]
    cycle = tuple(partial(_layer, config=config, mask=mask, turn=turn) for mask in masks)
    x = nn.scan_layers(cycle, params["layers"], x, ctx)
    x = tap(final_norm(params, config, x, ctx), "hidden", ctx)
    return Output(hidden=x, taps=nn.returned_taps(ctx))


def windows(config: Config) -> tuple[int | None, ...]:
    """How many positions the layers see, which take turns; None for all."""
    return (None,) if config.window is None else tuple(config.window if banded else None for banded in config.windowed)


def _rotation(config: Config, positions: Int[Array, "#batch length"]) -> nn.Rotation:
    """Made once, for the queries and keys of all layers."""
    scaling = None
    if config.rope_scaling != UNSCALED:
        scaling = nn.RotaryScaling(
            config.rope_scaling,
            config.rope_factor,
            config.rope_original_len,
            config.rope_slow_turns,
            config.rope_fast_turns,
        )
    frequencies = nn.rotary_frequencies(config.head_dim, config.rope_base, scaling)
    return nn.rotation(positions, frequencies, nn.rotary_magnitude(scaling))


def _layer(params: dict, x: Array, ctx: Context, config: Config, mask: Mask, turn: nn.Rotation) -> Array:
    x = tap(x, "in", ctx)
    normed = tap(nn.rms_norm(params["attention_norm"], x, config.norm_eps, ctx), "attention_norm", ctx)
    attended = nn.multi_head_attention(
        params["attention"],
        normed,
        mask,
        ctx.within("attention"),
        rotate=partial(nn.rotate, by=turn),
        norm_eps=config.norm_eps,
        dropout_rate=config.attention_dropout,
    )
    x = tap(x + nn.dropout(attended, config.dropout, "attention", ctx), "middle", ctx)
    normed = tap(nn.rms_norm(params["mlp_norm"], x, config.norm_eps, ctx), "mlp_norm", ctx)
    transformed = nn.feed_forward(params["mlp"], normed, config.activation, ctx)
    x = tap(x + nn.dropout(transformed, config.dropout, "mlp", ctx), "out", ctx)
    return constrain(x, ctx, "batch", "length", None)


def final_norm(params: dict, config: Config, x: Float[Array, "*batch embed"], ctx: Context) -> Float[Array, "*batch embed"]:
    """What stands between the last layer and `unembed`."""
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
    if config.tied:
        return nn.unembed(params["embedding"]["tokens"], hidden, ctx)
    if "table" not in params.get("head", {}):
        raise InputError("these parameters have no table for logits over the vocabulary: use the head 'causal-lm'")
    return nn.unembed(params["head"]["table"], hidden, ctx)


def matmul_flops(config: Config, tokens: int, length: int) -> int:
    """Operations (a multiply-add is two) of all matrix products of a forward pass over `tokens` in rows of `length`.

    Attention is counted whole, what is hidden included, as is usual (Brown et al. 2020, appendix D, leaves it out).
    """
    inner, shared = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = config.d_model * (2 * inner + 2 * shared + 3 * config.d_mlp) + 2 * length * inner
    return 2 * tokens * (config.num_layers * layer + config.d_model * config.vocab_size)
