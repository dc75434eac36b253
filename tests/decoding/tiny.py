"""One small model of each kind that decoding treats differently."""

from functools import cache

import jax

from flaxllm.data.tokenizer_makers import char_level
from flaxllm.data.tokenizers import Tokenizer
from flaxllm.decoding import prepare
from flaxllm.models import Model, build

VOCAB = 50
_SIZES = dict(vocab_size=VOCAB, num_heads=4, head_dim=8, d_model=16, d_mlp=32, init_stddev=0.3)
_PAIR_SIZES = {name: value for name, value in _SIZES.items() if name != "init_stddev"}

MODELS = {
    "gpt": build("gpt", _SIZES | dict(num_layers=2, max_len=64)),
    "gpt-banded": build("gpt", _SIZES | dict(num_layers=2, max_len=64, window=5)),
    "llama": build(
        "llama",
        _SIZES | dict(num_layers=2, num_kv_heads=2, rope_scaling="llama3", rope_factor=4.0, rope_original_len=8),
    ),
    "llama-windowed": build(
        "llama", _SIZES | dict(num_layers=2, num_kv_heads=1, window=6, windowed=(True, False), head_norm=True, tied=True)
    ),
    "t5": build("t5", _PAIR_SIZES | dict(num_layers=2, num_buckets=8, max_distance=20, init_factor=3.0)),
    "t5-gated": build("t5", _PAIR_SIZES | dict(num_layers=1, num_decoder_layers=2, gated=True, tied=False, scale_output=False)),
    "transformer": build("transformer", _PAIR_SIZES | dict(num_layers=2, attention_bias=True, output_bias=True)),
}
WRITERS = [name for name, model in MODELS.items() if model.family in ("gpt", "llama")]
TRANSLATORS = [name for name in MODELS if name not in WRITERS]


@cache
def parameters(name: str) -> dict:
    return MODELS[name].init(jax.random.PRNGKey(len(name)))


@cache
def prepared(name: str) -> dict:
    return prepare(MODELS[name], parameters(name))


def model_and_params(name: str) -> tuple[Model, dict]:
    return MODELS[name], prepared(name)


def character_tokenizer() -> Tokenizer:
    """A character for each token, and the last for the end of a text."""
    return char_level(["".join(chr(ord("A") + number) for number in range(VOCAB - 1))])
