"""Where a computation runs: device meshes, the rules from logical to mesh axes, and the two placements."""

from flaxllm.parallel.mesh import MESH_AXES, activation_rules, make_mesh, parse_mesh, tree_shardings
from flaxllm.parallel.placement import Placement, mesh_placement, pmap_placement
