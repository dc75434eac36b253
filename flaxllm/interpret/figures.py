"""Stills of what the pages show, as PNG.

The font is matplotlib's own (DejaVu Sans), so that a still is the same everywhere: Chinese, Japanese, Korean and emoji are
boxes in it, and right-to-left text runs as the pages alone can show it.
"""

import io
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from flaxllm.interpret.texts import Piece

_FEW = 16  # tokens that are written beside a map
_FEW_ACROSS = 40  # and across a lens
_LONGEST = 14  # characters of a token that are shown
_SHADES = LinearSegmentedColormap.from_list("shades", ["#f3f1ec", "#15508f"])
_SIGNS = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥"})
_PLAIN = {"parse_math": False, "fontsize": 7}  # a token with a dollar is no formula


def attention_png(
    title: str,
    maps: Mapping[str, Float[np.ndarray, "layers heads queries keys"]],
    words: Mapping[str, tuple[Sequence[Piece], Sequence[Piece]]],
) -> bytes:
    """The maps of each part, a row a layer and a column a head; beside them their queries and keys, where these are few."""
    inches = {name: 1.6 if max(weights.shape[2:]) <= _FEW else 0.9 for name, weights in maps.items()}  # of a map
    heights = [inches[name] * weights.shape[0] + 1.5 for name, weights in maps.items()]
    width = max(inches[name] * weights.shape[1] + 2.5 for name, weights in maps.items())
    figure = Figure((width, sum(heights)), layout="constrained")
    rows = figure.subfigures(len(maps), squeeze=False, height_ratios=heights)[:, 0]
    for row, (name, weights) in zip(rows, maps.items()):
        row.suptitle(f"{title}: {name}", parse_math=False)
        layers, heads, queries, keys = weights.shape
        high, wide = (size + max(1, size // 10) for size in (queries, keys))  # with a gap
        tiled = np.full((layers, high, heads, wide), np.nan)
        tiled[:, :queries, :, :keys] = weights.transpose(0, 2, 1, 3)
        tiled = tiled.reshape(layers * high, heads * wide)[: layers * high - high + queries, : heads * wide - wide + keys]
        axes = row.subplots()
        axes.set_frame_on(False)
        shown = axes.imshow(tiled, _SHADES, PowerNorm(0.5, 0, 1), aspect=wide / high, interpolation="nearest")
        few = max(queries, keys) <= _FEW
        axes.set_xticks(*_places(words[name][1], heads, wide, few), rotation=90, **_PLAIN)
        axes.set_yticks(*_places(words[name][0], layers, high, few), **_PLAIN)
        top, right = axes.secondary_xaxis("top"), axes.secondary_yaxis("right")
        top.set_xticks(np.arange(heads) * wide + (keys - 1) / 2, [f"head {n}" for n in range(heads)], fontsize=8)
        right.set_yticks(np.arange(layers) * high + (queries - 1) / 2, [f"layer {n}" for n in range(layers)], fontsize=8)
        for edge in (axes, top, right):
            edge.tick_params(length=0)
            edge.spines[:].set_visible(False)
        row.colorbar(shown, ax=axes, shrink=min(1.0, 3 / inches[name] / layers), label="weight")
    return _png(figure)


def lens_png(
    title: str,
    read: Sequence[Piece],
    depths: Sequence[str],
    said: Sequence[Sequence[Piece]],
    probabilities: Float[np.ndarray, "depths length"],
    is_actual: Bool[np.ndarray, "depths length"],
) -> bytes:
    """The likeliest token by depth and position, coloured by its probability; framed where it is the actual one."""
    few = len(read) <= _FEW_ACROSS
    figure = Figure((0.95 * len(read) + 2.5 if few else 20.0, 0.26 * len(depths) + 1.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, parse_math=False)
    shown = axes.imshow(probabilities, _SHADES, vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(len(depths)), depths, fontsize=8)
    axes.set_xticks(*_places(read, 1, 1, few), **_PLAIN)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    for depth, position in np.argwhere(is_actual):
        axes.add_patch(Rectangle((position - 0.48, depth - 0.46), 0.96, 0.92, fill=False, edgecolor="#b3540b"))
    for depth, position in np.ndindex(probabilities.shape) if few else ():
        ink = "white" if probabilities[depth, position] > 0.6 else "black"
        axes.text(position, depth, _brief(said[depth][position]), ha="center", va="center", color=ink, **_PLAIN)
    figure.colorbar(shown, ax=axes, label="probability", aspect=30)
    return _png(figure)


def _places(words: Sequence[Piece], count: int, step: int, few: bool) -> tuple[list[int], list[str]]:
    """Where the words stand beside each of `count` maps, and as what; nowhere where they are many."""
    if not few:
        return [], []
    return [n * step + i for n in range(count) for i in range(len(words))], [_brief(word) for word in words] * count


def _brief(piece: Piece) -> str:
    text = piece.text.lstrip(" ")
    word = "·" * (len(piece.text) - len(text)) + text.translate(_SIGNS)
    return word if len(word) <= _LONGEST else f"{word[: _LONGEST - 1]}…"


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        FigureCanvasAgg(figure).print_figure(file, format="png", dpi=120, bbox_inches="tight")
    return file.getvalue()
