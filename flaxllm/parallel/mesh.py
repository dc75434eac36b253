"""Meshes from a line of text, and the rules that say which mesh axes split which logical axis.

Four mesh axes: `data` and `fsdp` split the batch, `fsdp` also splits parameters over their embedding axis, `model` splits
heads, hidden units and vocabulary (Shoeybi et al. 2019), `sequence` splits the positions.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from flaxllm.errors import InputError, did_you_mean
from flaxllm.nn import Param, Rules, flatten

MESH_AXES = ("data", "fsdp", "model", "sequence")

PARAM_RULES = {
    "vocab": "model",
    "embed": "fsdp",
    "heads": "model",
    "kv_heads": "model",
    "mlp": "model",
}
ACTIVATION_RULES = {
    "batch": ("data", "fsdp"),
    "length": ("sequence",),
    "heads": ("model",),
    "kv_heads": ("model",),
    "mlp": ("model",),
    "vocab": ("model",),
}


def parse_mesh(text: str, num_devices: int | None = None) -> dict[str, int]:
    """`"data:2,fsdp:-1"` as sizes of mesh axes; one -1 takes the devices that the others leave.

    Raises:
      InputError: a malformed entry, an unknown axis, or sizes that do not multiply to the number of devices.
    """
    sizes: dict[str, int] = {}
    for part in text.replace(" ", "").split(","):
        name, _, size = part.partition(":")
        if name not in MESH_AXES:
            raise InputError(f"the mesh {text!r} has an unknown axis {name!r}: {did_you_mean(name, MESH_AXES)}")
        if not size.removeprefix("-").isdigit() or int(size) == 0 or int(size) < -1 or name in sizes:
            raise InputError(f"the mesh {text!r} has a bad entry {part!r}: write each axis once, as name:size or name:-1")
        sizes[name] = int(size)
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size > 0)
    if len(free) > 1:
        raise InputError(f"the mesh {text!r} leaves {len(free)} axes open: give at most one the size -1")
    if free and num_devices is None:
        raise InputError(f"the mesh {text!r} leaves {free[0]!r} open, but the number of devices is not known here")
    if num_devices is not None:
        if num_devices % fixed or (not free and fixed != num_devices):
            raise InputError(f"the mesh {text!r} needs {fixed} devices{' or a multiple' * bool(free)}, there are {num_devices}")
        sizes |= {name: num_devices // fixed for name in free}
    return {name: sizes.get(name, 1) for name in MESH_AXES}


def make_mesh(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over these devices (all of them unless given)."""
    devices = jax.devices() if devices is None else devices
    sizes = parse_mesh(text, len(devices))
    automatic = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=automatic, devices=devices)


def param_spec(param: Param, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How one tensor is split. An axis that the mesh does not divide evenly stays whole.

    Raises:
      ValueError: two axes of the tensor are split over the same mesh axis.
    """
    parts: list[str | None] = []
    for name, size in zip(param.axes, param.shape, strict=True):
        axis = PARAM_RULES.get(name)
        parts.append(axis if axis and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None)
    used = [axis for axis in parts if axis]
    if len(used) != len(set(used)):
        raise ValueError(f"the sharding rules collide: axes {param.axes} of one tensor would be split over {used}")
    return PartitionSpec(*parts)


def tree_shardings(tree: Any, specs: dict, mesh: Mesh | AbstractMesh) -> Any:
    """The sharding of every leaf of a tree that repeats the parameters' tree inside, such as an optimizer's state.

    A leaf whose path ends with a parameter's path and whose shape is that parameter's is split like it; any other (a
    step, a factored moment) is on every device.
    """
    params = {tuple(path.split("/")): param for path, param in flatten(specs).items()}
    whole = NamedSharding(mesh, PartitionSpec())

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        names = tuple(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", "")))) for part in path)
        for start in range(len(names)):
            param = params.get(names[start:])
            if param is not None and param.shape == leaf.shape:
                return NamedSharding(mesh, param_spec(param, mesh))
        return whole

    return jax.tree_util.tree_map_with_path(sharding, tree)


def activation_rules(mesh: Mesh) -> Rules | None:
    """What a context needs to keep activations in place; None where there is nothing to split."""
    if mesh.size == 1:
        return None
    axes = tuple((name, tuple(a for a in split if mesh.shape[a] > 1)) for name, split in ACTIVATION_RULES.items())
    return Rules(mesh, tuple((name, split) for name, split in axes if split))
