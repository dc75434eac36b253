"""What this package computes for a case, under the checkpoint's names."""

import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import optax
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from flaxllm.models import Model
from flaxllm.objectives.cross_entropy import cross_entropy
from flaxllm.pretrained.load import from_pretrained
from flaxllm.pretrained.save import save_pretrained
from flaxllm.training.optimizer import make_optimizer, make_schedule
from parity.frozen import ADAMW, LOSS_SCALE, WEIGHT_DECAY, Tensors, at_kept, read_arrays

OPTIMIZER = ConfigDict({
    "name": "adamw",
    "learning_rate": ADAMW["lr"],
    "schedule": "constant",
    "warmup_steps": 0,
    "final_fraction": 1.0,
    "b1": ADAMW["betas"][0],
    "b2": ADAMW["betas"][1],
    "eps": ADAMW["eps"],
    "weight_decay": WEIGHT_DECAY,
    "clip_norm": 0.0,
    "layer_decay": 1.0,
    "freeze": (),
})

# Compiling is nearly all of the time, and each program runs once.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}


class Computed(NamedTuple):
    outputs: Tensors
    loss: float
    gradients: Tensors
    stepped: Tensors  # after a step on our gradients
    stepped_alone: Tensors  # after a step on the reference's
    saved: Tensors  # what was loaded, saved again


def compute(folder: Path) -> Computed:
    """All that is compared. The reference's gradients become ours as a checkpoint does."""
    model, params = from_pretrained(folder)
    _, their_gradients = from_pretrained(folder / "gradients.safetensors")
    gradient = jax.jit(jax.value_and_grad(partial(_loss, model), has_aux=True), compiler_options=COMPILER_OPTIONS)
    arrays = read_arrays(folder)
    arrays.pop("step")
    (loss, outputs), gradients = gradient(params, arrays)
    step = jax.jit(partial(_step, model), compiler_options=COMPILER_OPTIONS)
    trees = gradients, step(params, gradients), step(params, their_gradients), params
    return Computed(jax.device_get(outputs), float(loss), *(under_their_names(model, tree) for tree in trees))


def under_their_names(model: Model, tree: dict) -> Tensors:
    """A tree like the parameters, as `save_pretrained` names and shapes it."""
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, model, tree)
        return load_file(Path(folder) / "model.safetensors")


def _step(model: Model, params: dict, gradients: dict) -> dict:
    optimizer = make_optimizer(OPTIMIZER, make_schedule(OPTIMIZER, 1), model.param_specs())
    return optax.apply_updates(params, optimizer.update(gradients, optimizer.init(params), params)[0])


def _loss(model: Model, params: dict, arrays: dict[str, Tensors]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of `reference.loss_of`, and the outputs at the kept positions."""
    targets, weights = arrays["loss"]["targets"], arrays["loss"]["weights"]
    output = model.apply(params, **arrays["inputs"])
    outputs = {"hidden": output.hidden, "pooled": output.pooled, "encoded": output.encoded, "classes": output.logits}
    loss = 0.0
    if "vocab" in arrays["outputs"]:
        outputs["vocab"] = model.unembed(params, output.hidden)
        term = cross_entropy(lambda hidden: model.unembed(params, hidden), output.hidden, targets, weights)["loss"]
        loss += term.sum / term.weight
    for name, direction in arrays.get("directions", {}).items():
        component = outputs[name] @ direction
        loss += (component * weights).sum() / weights.sum() if component.ndim == 2 else component.mean()
    return LOSS_SCALE * loss, {name: at_kept(outputs[name], name, arrays["kept"]) for name in arrays["outputs"]}
