"""An experiment's first losses, beside transformers' in torch on the same weights and batches; or its whole recipe in torch.

    pip install -e '.[parity,eval]'
    python benchmarks/learning.py experiments/bert_classify.py:path/to/MiniLM data.source=train.tsv data.eval_source=dev.tsv
    python benchmarks/learning.py --recipe ...the same...

Keys of the config follow the experiment. Both begin with the parameters that the run begins with, a new head included, and
take the run's own batches, learning rates, clipping and AdamW. Without --recipe dropout is off, and the greatest difference of
the first losses is printed. With it torch runs alone for `train.num_steps`, with its dropout, and is judged by the run's own
metrics as often as the run would be. For BERTs and Llamas that start from a checkpoint and are trained whole.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from measure import conditions, report
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from flaxllm import save_pretrained
from flaxllm.errors import InputError
from flaxllm.objectives.objective import Batch
from flaxllm.training.evaluation import in_words
from flaxllm.training.experiment import load_experiment
from flaxllm.training.optimizer import decay_mask
from flaxllm.training.overrides import parse_override, with_changes
from flaxllm.training.resume import start_of
from flaxllm.training.setup import Run, make_run

Tensors = dict[str, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="path/to/file.py:argument")
    parser.add_argument("changes", nargs="*", help="KEY=VALUE of the config")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--recipe", action="store_true", help="the whole recipe, in torch alone")
    parser.add_argument("--out", help="path of the JSON (default: in benchmarks/results)")
    arguments = parser.parse_args()
    experiment = load_experiment(arguments.experiment)
    config = experiment.config
    given = dict(change.split("=", 1) for change in arguments.changes)
    config = with_changes(config, {key: parse_override(config, key, text) for key, text in given.items()})
    if not arguments.recipe:
        config = with_changes(config, {f"model.{name}": 0.0 for name in config.model if "dropout" in name})
    run = make_run(config, print)
    state = start_of(config, run, print)
    peer = Peer(config, run, state.params)
    if arguments.recipe:
        peer.train(config)
        return
    ours, theirs = [], []
    for batch in (next(run.stream) for _ in range(arguments.steps)):
        state, metrics = run.train_step(state, run.placement.batch(batch))
        ours.append(float(run.placement.read(metrics)["loss"]))
        theirs.append(peer.step(batch))
        print(f"step {len(ours)}: flaxllm {ours[-1]:.6f}, torch {theirs[-1]:.6f}", flush=True)
    greatest = float(np.abs(np.subtract(ours, theirs)).max())
    rows = [
        {"what": "greatest difference of losses", "steps": len(ours), "value": greatest},
        {"what": "first and last loss, flaxllm", "steps": len(ours), "value": [ours[0], ours[-1]]},
        {"what": "first and last loss, torch", "steps": len(ours), "value": [theirs[0], theirs[-1]]},
    ]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    report(f"learning_{experiment.path.stem}", conditions() | versions, rows, arguments.out)


class Peer:
    """The run's model in torch, from the same parameters, with the run's optimizer."""

    def __init__(self, config: ConfigDict, run: Run, params: dict):
        name = config.objective.name
        if name not in PEERS or config.lora.rank or config.optimizer.name != "adamw":
            raise InputError(f"learning.py knows {', '.join(PEERS)} with AdamW and all parameters trained, not {name}")
        architecture, self.loss, self.outputs = PEERS[name]
        decays = decay_mask(run.model.param_specs())
        masks = jax.tree.map(lambda x, decays: np.full(x.shape, decays, np.float32), params, decays)
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(folder, run.model, masks)
            decays = {key: bool(x.all()) for key, x in load_file(Path(folder) / "model.safetensors").items()}
            save_pretrained(folder, run.model, params)
            self.model = getattr(transformers, architecture).from_pretrained(
                folder, attn_implementation="eager", dtype=torch.float32
            )
        self.run, self.config = run, config
        self.model.train()
        settings = config.optimizer
        groups = {True: [], False: []}
        for key, tensor in self.model.named_parameters():
            groups[decays[key]].append(tensor)
        self.optimizer = torch.optim.AdamW(
            [{"params": tensors, "weight_decay": settings.weight_decay * decay} for decay, tensors in groups.items()],
            lr=1.0, betas=(settings.b1, settings.b2), eps=settings.eps,
        )  # fmt: skip
        self.taken = 0

    def step(self, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.run.schedule(self.taken))
        self.optimizer.zero_grad()
        loss = self.loss(self.model, batch)
        loss.backward()
        if self.config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.taken += 1
        return float(loss)

    def train(self, config: ConfigDict) -> None:
        torch.manual_seed(config.seed)
        began = time.monotonic()
        for number in range(1, config.train.num_steps + 1):
            loss = self.step(next(self.run.stream))
            if number % 50 == 0:
                print(f"step {number}: loss {loss:.4f}, {time.monotonic() - began:.0f} s", flush=True)
            if number % config.train.eval_every == 0 or number == config.train.num_steps:
                print(f"step {number}: {in_words(self.judge())}", flush=True)

    def judge(self) -> dict[str, float]:
        (eval_set,) = self.run.eval_sets.values()
        self.model.eval()
        with torch.no_grad():
            said = [self.outputs(self.model, batch) for batch in eval_set.batches()]
        self.model.train()
        rows = {name: np.concatenate([part[name] for part in said])[: len(eval_set.items)] for name in said[0]}
        return eval_set.judge.score(eval_set.items, rows)


def _inputs(batch: Batch) -> Tensors:
    names = {"input_ids": "tokens", "attention_mask": "segments", "token_type_ids": "token_types"}
    given = {theirs: torch.tensor(np.asarray(batch[ours])).long() for theirs, ours in names.items() if ours in batch}
    return given | {"attention_mask": (given["attention_mask"] > 0).long()}


def _label_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return model(**_inputs(batch), labels=torch.tensor(batch["label"]).long()).loss


def _tag_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    targets = np.where(batch["weights"] > 0, batch["targets"], -100)
    return model(**_inputs(batch), labels=torch.tensor(targets).long()).loss


def _span_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    start, end = torch.tensor(batch["span"]).long().T
    return model(**_inputs(batch), start_positions=start, end_positions=end).loss


def _token_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Of rows that hold several documents, each of which sees itself only."""
    segments = torch.tensor(batch["segments"])
    seen = (segments[:, :, None] == segments[:, None]) & torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]
    tokens, positions, targets = (torch.tensor(batch[name]).long() for name in ("tokens", "positions", "targets"))
    logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    weights = torch.tensor(batch["weights"]).flatten()
    return (losses * weights).sum() / weights.sum()


def _logits(model: torch.nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    return {"logits": model(**_inputs(batch)).logits.numpy()}


def _labels(model: torch.nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    return {"labels": model(**_inputs(batch)).logits.argmax(-1).numpy()}


def _ends(model: torch.nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    output = model(**_inputs(batch))
    return {"logits": torch.stack([output.start_logits, output.end_logits], -1).numpy()}


# By objective: the class in transformers, the loss of a batch, and what the judge is told.
PEERS: dict[str, tuple[str, Callable, Callable | None]] = {
    "classification": ("AutoModelForSequenceClassification", _label_loss, _logits),
    "token-classification": ("AutoModelForTokenClassification", _tag_loss, _labels),
    "question-answering": ("AutoModelForQuestionAnswering", _span_loss, _ends),
    "sft": ("AutoModelForCausalLM", _token_loss, None),
}


if __name__ == "__main__":
    main()
