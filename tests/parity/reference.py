"""What transformers computes for a case, in torch: a checkpoint with random weights, the outputs, the gradients of a loss
and the parameters after one step of AdamW, written to a folder. Needs the [parity] extra.

    config.json, model.safetensors   the checkpoint
    gradients.safetensors            the gradient of each of its tensors
    reference.npz                    inputs, outputs at some positions, the loss and what it is made of, the step
"""

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from parity.batch import Side, kept_positions, make_inputs, make_targets, source_side, target_side
from parity.case import Case
from parity.frozen import ADAMW, LOSS_SCALE, WEIGHT_DECAY, Tensors, at_kept, pack_step

KEPT = 32  # positions of each output that are written down
THEIR_NAMES = {
    "tokens": "input_ids",
    "valid": "attention_mask",
    "token_types": "token_type_ids",
    "decoder_tokens": "decoder_input_ids",
    "decoder_valid": "decoder_attention_mask",
}


def write_reference(case: Case, folder: Path) -> None:
    model = random_model(case)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    inputs = inputs_of(case, model)
    outputs = outputs_of(case, model, inputs)
    targets, weights = make_targets(case, model.config.vocab_size)
    directions = directions_of(case, outputs)
    loss = loss_of(outputs, targets, weights, directions)
    loss.backward()
    kept = {"source": source_side(case), "target": target_side(case)}
    kept = {name: kept_positions(side, case.batch, KEPT) for name, side in kept.items()}
    arrays = {
        "inputs": inputs,
        "kept": kept,
        "outputs": {name: at_kept(x.detach().numpy(), name, kept) for name, x in outputs.items()},
        "loss": {"value": loss.detach().numpy(), "targets": targets, "weights": weights},
        "directions": directions,
        "step": write_gradients_and_step(model, folder),
    }
    flat = {f"{group}/{name}": array for group, members in arrays.items() for name, array in members.items()}
    np.savez_compressed(folder / "reference.npz", **flat)


def write_gradients_and_step(model: transformers.PreTrainedModel, folder: Path) -> Tensors:
    """Write the gradient of every tensor in the checkpoint (0 for what is not trained), and take the step."""
    stored = load_file(folder / "model.safetensors")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and name in stored}
    gradients = {name: torch.zeros_like(x) for name, x in stored.items()}
    gradients |= {name: p.grad for name, p in trained.items() if p.grad is not None}
    save_file(gradients, folder / "gradients.safetensors")
    step(model)
    numbers = ({name: x.detach().numpy() for name, x in tensors.items()} for tensors in (stored, gradients, trained))
    return pack_step(*numbers)


def random_model(case: Case) -> transformers.PreTrainedModel:
    """The model with no tensor at its usual start: scales that are not 1 and biases that are not 0 show where they go.

    Nothing is as large as 1, so that one unit in the last place is less than the optimizer's tolerance.
    """
    architecture = getattr(transformers, case.architecture)
    config = architecture.config_class(**case.config, attn_implementation="eager")
    model = architecture(config).eval()
    if case.own_table:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    generator = torch.Generator().manual_seed(case.seed)
    tensors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tensors |= {name: x for name, x in model.named_buffers() if name == "final_logits_bias"}  # Marian's
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.ndim == 1 and name.endswith("weight"):
                tensor.uniform_(0.4, 0.95, generator=generator)
            else:
                tensor.normal_(0.0, case.weight_scale, generator=generator).clamp_(-0.95, 0.95)
    return model


def inputs_of(case: Case, model: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    config = model.config
    tokens = [value for name, value in config.to_dict().items() if name.endswith("_token_id")]
    special = {token for value in tokens for token in (value if isinstance(value, list) else [value])}
    return make_inputs(case, config.vocab_size, special, config.pad_token_id or 0, case.config.get("eos_token_id"))


def outputs_of(case: Case, model: transformers.PreTrainedModel, inputs: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Outputs by our names: "hidden", "encoded", "pooled", "vocab" (logits) and "classes" (logits)."""
    theirs = {THEIR_NAMES[name]: torch.tensor(x).long() for name, x in inputs.items() if name in THEIR_NAMES}
    if not (case.alone or case.documents):
        if case.tell_positions:
            theirs["position_ids"] = torch.tensor(source_side(case).positions(case.batch)).long()
        return call(model, theirs)
    source, target = source_side(case), target_side(case)
    parts = []
    for spans in zip(source.spans, target.spans, strict=True):
        cut = {name: x[row : row + 1, start:stop] for name, x in theirs.items() if "mask" not in name
               for row, start, stop in [spans["decoder" in name]]}  # fmt: skip
        parts.append(call(model, cut))
    return {
        name: _join([part[name] for part in parts], source if name == "encoded" else target, case.batch) for name in parts[0]
    }


def _join(parts: list[Tensor], side: Side, batch: int) -> Tensor:
    """The outputs of documents that ran alone, each in its place; those of whole sequences are a row each."""
    if parts[0].ndim == 2:
        return torch.cat(parts)
    joined = torch.zeros(batch, side.length, parts[0].shape[-1])
    for part, (row, start, stop) in zip(parts, side.spans, strict=True):
        joined[row, start:stop] = part[0]
    return joined


def call(model: transformers.PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """One forward pass; the hidden states are those that the model's stacks give to what comes after them."""
    given = {}

    def keep(name: str) -> Callable:
        return lambda module, args, output: given.__setitem__(name, output)

    hooks = [model.get_decoder().register_forward_hook(keep("decoder"))]
    if model.config.is_encoder_decoder:
        hooks.append(model.get_encoder().register_forward_hook(keep("encoder")))
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs = inputs | {"use_cache": False}
    output = model(**inputs)
    for hook in hooks:
        hook.remove()
    outputs = {"hidden": given["decoder"].last_hidden_state, "pooled": given["decoder"].get("pooler_output")}
    if "encoder" in given:
        outputs["encoded"] = given["encoder"].last_hidden_state
    logits = output.get("logits", output.get("prediction_logits"))
    outputs["vocab" if model.get_output_embeddings() is not None else "classes"] = logits
    if "start_logits" in output:
        outputs["classes"] = torch.stack([output.start_logits, output.end_logits], -1)
    if "seq_relationship_logits" in output:
        outputs["classes"] = output.seq_relationship_logits
    return {name: x for name, x in outputs.items() if x is not None}


def directions_of(case: Case, outputs: dict[str, Tensor]) -> Tensors:
    """A random direction for each output that the loss reads and that is over no vocabulary."""
    read = {"vocab", "classes"} & outputs.keys() or {"hidden", "pooled"} & outputs.keys()
    rng = np.random.default_rng(case.seed + 2)
    return {name: rng.normal(size=outputs[name].shape[-1]).astype(np.float32) for name in sorted(read - {"vocab"})}


def loss_of(outputs: dict[str, Tensor], targets: np.ndarray, weights: np.ndarray, directions: Tensors) -> Tensor:
    """The weighted mean of the cross-entropy over a vocabulary, and that of each other output's component along its
    direction: of the logits where there are any, of the hidden states and the pooled output where there are none."""
    weights, total = torch.tensor(weights), float(weights.sum())
    loss = torch.zeros(())
    if "vocab" in outputs:
        each = cross_entropy(outputs["vocab"].flatten(0, 1), torch.tensor(targets).long().flatten(), reduction="none")
        loss = loss + (each * weights.flatten()).sum() / total
    for name, direction in directions.items():
        component = outputs[name] @ torch.tensor(direction)
        loss = loss + ((component * weights).sum() / total if component.ndim == 2 else component.mean())
    return LOSS_SCALE * loss


def step(model: transformers.PreTrainedModel) -> None:
    """One step of torch's AdamW on the model's gradients, with weight decay for matrices and tables."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    groups = [{"params": [p for p in trained if (p.ndim > 1) == decayed], "weight_decay": WEIGHT_DECAY * decayed}
              for decayed in (True, False)]  # fmt: skip
    torch.optim.AdamW(groups, **ADAMW).step()
