import io

import pytest
from rich.console import Console

from flaxllm.errors import InputError
from flaxllm.interpret import show_taps, tap_axes, tap_shapes
from flaxllm.models import Model, preset
from interpret.small import LENGTH, MODELS, PAIRS, ROWS, TARGET
from parity.case import FIXTURES


def sizes_of(model: Model, name: str) -> dict[str, int]:
    """The sizes of the axes of a tap, as the config and the inputs have them."""
    config, decoder = model.config, name.startswith("decoder/")
    own, source = (TARGET, LENGTH) if decoder else (LENGTH, LENGTH)
    depth = getattr(config, "decoder_depth", config.num_layers) if decoder else config.num_layers
    crosses = "cross_attention/" in name
    length = source if crosses and name.endswith(("key", "value")) else own
    sizes = dict(layers=depth, batch=ROWS, length=length, queries=own, keys=source if crosses else own)
    sizes |= dict(heads=config.num_heads, kv_heads=getattr(config, "num_kv_heads", config.num_heads), head_dim=config.head_dim)
    sizes |= dict(embed=config.d_model, mlp=config.d_mlp)
    return sizes | {"batch": 1} if name.endswith("relative_bias") else sizes  # which rows share


@pytest.mark.parametrize("name", MODELS)
def test_every_tap_has_the_shape_that_its_axes_say(name):
    model = MODELS[name]
    shapes = tap_shapes(model, ROWS, LENGTH, TARGET)
    assert len(shapes) >= 14
    for tap, shape in shapes.items():
        sizes = sizes_of(model, tap)
        assert shape == tuple(sizes[axis] for axis in tap_axes(tap)), tap


def test_names_come_in_the_order_of_the_computation():
    names = list(tap_shapes(preset("gpt2-124m")))
    assert names[:2] + names[-2:] == ["embedding", "layers/in", "layers/out", "hidden"]
    assert names.index("layers/attention/scores") < names.index("layers/attention/weights") < names.index("layers/mlp/out")
    pairs = list(tap_shapes(MODELS["t5"]))
    assert pairs.index("encoder/hidden") < pairs.index("decoder/embedding")


@pytest.mark.parametrize("head", ["encoder", "sequence-classification", None])
def test_a_pair_of_stacks_with_any_head_is_named(head):
    names = tap_shapes(Model("t5", MODELS["t5"].config, head))
    assert ("decoder/hidden" in names) == (head != "encoder")
    assert "encoder/hidden" in names


@pytest.mark.parametrize("folder", ["gpt/lm", "t5/encoder", "bert/sequence_classification", "transformer/lm"])
def test_the_taps_of_a_checkpoint_are_shown(folder):
    out = io.StringIO()
    show_taps(FIXTURES / folder, console=Console(file=out))
    lines = [line.split(None, 1) for line in out.getvalue().splitlines()]
    shown = {name: axes.strip() for name, axes in lines[1:]}
    stack = "encoder/" if folder.split("/")[0] in PAIRS else ""
    assert shown[f"{stack}layers/out"].endswith("batch, length, embed 8")
    assert shown[f"{stack}layers/attention/weights"].split(", ")[1:] == ["batch", f"heads {1 if stack + folder == 'encoder/t5/encoder' else 2}", "queries", "keys"]
    assert ("decoder/layers/cross_attention/weights" in shown) == (folder == "transformer/lm")


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError):
        show_taps(tmp_path / "nothing")
