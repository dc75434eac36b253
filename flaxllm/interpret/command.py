"""A text as the model of a checkpoint sees it, drawn: `flaxllm attention` and `flaxllm lens`."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int32

from flaxllm.console import lead_console, say
from flaxllm.data import load_tokenizer
from flaxllm.data.tokenizers import Tokenizer
from flaxllm.decoding import generate
from flaxllm.decoding.prompts import end_tokens
from flaxllm.decoding.reading import check_writes, most_positions
from flaxllm.errors import InputError
from flaxllm.interpret import figures, pages
from flaxllm.interpret.attention import attention_maps, head_summaries
from flaxllm.interpret.forward import writer
from flaxllm.interpret.lens import logit_lens
from flaxllm.interpret.texts import Piece, token_pieces
from flaxllm.models import Model
from flaxllm.models.bert import VOCABULARY_HEADS
from flaxllm.pretrained import from_pretrained

_PACKED = 8 / 3  # bytes in a page for each attention weight
_LISTED = 100  # what one of a lens's tokens costs a browser in time, as bytes of maps
_MOST_WRITTEN = 64  # tokens of a target that is to be written, or twice the source's where these are more
_SIDES = {"encoder": (0, 0), "decoder": (-1, -1), "cross": (-1, 0)}  # which of the rows that were read have queries and keys


class Read(NamedTuple):
    """What a model is given: `texts` by what they are, one row of tokens, or a source and a target (begun as its decoder
    begins); and `end`, the token that comes after the last row, -1 where none is known."""

    texts: dict[str, str]
    rows: tuple[Int32[np.ndarray, "1 length"], ...]
    end: int = -1


def draw_attention(
    path: str | Path,
    text: str,
    target: str | None = None,
    output: str | Path = "attention.html",
    png: str | Path | None = None,
    dtype: str | None = None,
) -> None:
    """Write a page with the attention maps of a text, of all layers and heads, to `output`, and a still of it to `png`.

    The `target` of an encoder-decoder is what it writes greedily unless given. Special tokens that the texts spell, such as
    "[MASK]", are read as such.

    Raises:
      InputError: as `from_pretrained` and `load_tokenizer`; a text that is empty, or more than the model takes or a page
        shows; a target for a model that has no decoder beside an encoder; a file that cannot be written.
    """
    tokenizer = load_tokenizer(path)
    model, params = from_pretrained(path, dtype=dtype)
    read = _read(model, params, tokenizer, text, target)
    shapes = jax.eval_shape(partial(attention_maps, model), params, *read.rows)
    size = _PACKED * sum(weights.size for weights in shapes.values())
    pages.check_size(size, max(row.size for row in read.rows), growth=2)
    found = attention_maps(model, params, *read.rows)
    maps = {name: np.asarray(weights)[:, 0] for name, weights in found.items()}
    pieces = [token_pieces(tokenizer, row[0]) for row in read.rows]
    words = {name: (pieces[queries], pieces[keys]) for name, (queries, keys) in _SIDES.items()}
    parts = [
        {
            "name": name,
            "queries": _as_dicts(words[name][0]),
            "keys": _as_dicts(words[name][1]),
            "summaries": {} if name == "cross" else _summaries(weights, read.rows[_SIDES[name][0]]),
            **pages.pack(weights),
        }
        for name, weights in maps.items()
    ]
    data = {"model": _name(path), "texts": read.texts, "parts": parts}
    title = f"Attention of {_name(path)}"
    _write(output, pages.render("attention", title, data), png, lambda: figures.attention_png(title, maps, words))


def draw_lens(
    path: str | Path,
    text: str,
    target: str | None = None,
    output: str | Path = "lens.html",
    png: str | Path | None = None,
    dtype: str | None = None,
) -> None:
    """Write a page with what each depth of a model would say at each token of a text (of an encoder-decoder: of its target)
    to `output`, and a still of it to `png`. The texts are as for `draw_attention`.

    Raises:
      InputError: as `draw_attention`; the model has no vocabulary.
    """
    tokenizer = load_tokenizer(path)
    model, params = from_pretrained(path, dtype=dtype)
    writer(model)
    read = _read(model, params, tokenizer, text, target)
    shapes = jax.eval_shape(partial(logit_lens, model), params, *read.rows)
    pages.check_size(_LISTED * shapes.tokens.size, read.rows[-1].size, growth=1)
    lens = logit_lens(model, params, *read.rows)
    tokens, probabilities, entropy = (np.asarray(values)[:, 0] for values in (lens.tokens, lens.probabilities, lens.entropy))
    actual = np.array(lens.actual)[0]
    masked = model.head in VOCABULARY_HEADS
    if not masked:
        actual[-1] = read.end
    names = ["embedding", *(f"layer {layer}" for layer in range(len(tokens) - 2)), "output"]
    words = token_pieces(tokenizer, read.rows[-1][0])
    known = np.unique([*tokens.ravel(), *actual[actual >= 0]])
    vocabulary = dict(zip(known.tolist(), token_pieces(tokenizer, known, successive=False)))
    data = {
        "model": _name(path),
        "texts": read.texts,
        "read": _as_dicts(words),
        "depths": [
            {"name": name, "tokens": best.tolist(), "probabilities": _rounded(p), "entropy": _rounded(h)}
            for name, best, p, h in zip(names, tokens, probabilities, entropy)
        ],
        "actual": actual.tolist(),
        "what": "stands there" if masked else "comes next",
        "vocabulary": dict(zip(vocabulary, _as_dicts(vocabulary.values()))),
    }
    title = f"Logit lens of {_name(path)}"

    def still() -> bytes:
        said = [[vocabulary[token] for token in row] for row in tokens[:, :, 0].tolist()]
        return figures.lens_png(title, words, names, said, probabilities[:, :, 0], tokens[:, :, 0] == actual)

    _write(output, pages.render("lens", title, data), png, still)


def _read(model: Model, params: dict, tokenizer: Tokenizer, text: str, target: str | None) -> Read:
    """A text as the model reads it, and the target that goes with it."""
    source = tokenizer(text, allow_special=True).tokens
    if not text or not source.size:
        raise InputError("the text is empty: give it a word at least")
    _check_length("text", source, model)
    if "encoder" not in params or "decoder" not in params:
        if target is not None:
            raise InputError(f"this {model.family} model reads one text: leave the target out")
        return Read({"Text": text}, (source,))
    check_writes(model)
    if target is None:
        count = max(_MOST_WRITTEN, 2 * source.size)
        written = generate(model, params, source, count, temperature=0, tokenizer=tokenizer)
        following, target, name = written.rows()[0], written.texts[0], "Target, as written"
    else:
        following, name = tokenizer.encode_target(target, allow_special=True).tokens[0].tolist(), "Target"
    ended = following[-1:] if following and following[-1] in end_tokens(model) else []
    begun = np.array([[model.config.decoder_start_token, *following[: len(following) - len(ended)]]], np.int32)
    _check_length("target", begun, model)
    return Read({"Source": text, name: target}, (source, begun), *ended)


def _check_length(what: str, tokens: np.ndarray, model: Model) -> None:
    most = most_positions(model)
    if most is not None and tokens.size > most:
        raise InputError(f"the {what} has {tokens.size} tokens, and this model takes {most}: shorten it")


def _summaries(weights: Float[np.ndarray, "layers heads length length"], tokens: np.ndarray) -> dict[str, list]:
    """What each head does, by name; None where that has no meaning."""
    summaries = head_summaries(weights[:, None], tokens)._asdict()
    return {name: [[None if x != x else x for x in row] for row in _rounded(values)] for name, values in summaries.items()}


def _name(path: str | Path) -> str:
    return Path(path).absolute().name


def _as_dicts(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    return [piece._asdict() for piece in pieces]


def _rounded(values: Any) -> list:
    return np.round(np.asarray(values, np.float64), 5).tolist()


def _write(output: str | Path, page: str, png: str | Path | None, still: Callable[[], bytes]) -> None:
    """Write the page, and a still of it if there is a place for it, and say so."""
    files = {output: page.encode()} | ({} if png is None else {png: still()})
    for path, content in files.items():
        try:
            Path(path).write_bytes(content)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}): check the folder and its disk") from error
    sizes = " and ".join(f"{path} ({len(content) / 1e6:.1f} MB)" for path, content in files.items())
    say(lead_console(), f"wrote {sizes}")
