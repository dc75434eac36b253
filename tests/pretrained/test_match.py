from pathlib import Path

import numpy as np

from flaxllm import nn
from flaxllm.pretrained.checkpoint import Checkpoint
from flaxllm.pretrained.match import match
from flaxllm.pretrained.names import Names, Rule
from flaxllm.pretrained.tensor import Tensor

SPECS = {"table": nn.embedding_specs("vocab", 3, 2)}


def held(*names: str) -> Checkpoint:
    return Checkpoint(Path("here"), {}, {name: Tensor((3, 2), np.dtype(np.float32), Path("here"), None) for name in names})


def test_what_repeats_a_tensor_that_the_model_has_not_is_left_out():
    names = Names((Rule("table", "table.weight"),), tied={"copy.weight": "another.weight"})
    found = match(held("table.weight", "copy.weight"), SPECS, names)
    assert list(found.places) == ["table.weight"] and found.dropped == ["copy.weight"] and not found.tied


def test_what_repeats_a_tensor_stands_in_for_it_where_that_is_missing():
    names = Names((Rule("table", "table.weight"),), tied={"copy.weight": "table.weight"})
    assert list(match(held("copy.weight"), SPECS, names).places) == ["copy.weight"]
    assert match(held("copy.weight", "table.weight"), SPECS, names).tied == {"copy.weight": "table.weight"}
