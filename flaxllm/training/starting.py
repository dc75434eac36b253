"""Parameters that others have trained, for a run to start from."""

from collections.abc import Callable
from pathlib import Path

import jax

from flaxllm.data import Tokenizer
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.models.heads import has_labels
from flaxllm.nn import flatten
from flaxllm.parallel import Placement
from flaxllm.pretrained import BASE, from_pretrained
from flaxllm.training.checkpoint import Checkpoints

CHECKPOINTS_FOLDER = "checkpoints"

Report = Callable[[str], None]


def params_at(path: str, model: Model, tokenizer: Tokenizer, placement: Placement, report: Report) -> dict:
    """The model's parameters that are at a config's `init_from`: another run's workdir, a Hugging Face folder, a hub id or a
    GGUF file.

    Raises:
      InputError: there is nothing, or it is of another model, or of a run with another tokenizer.
    """
    place = Path(path).expanduser()
    if (place / CHECKPOINTS_FOLDER).is_dir():
        return _params_of_run(place, model, tokenizer, placement, report)
    return _params_of_checkpoint(path, model, report)


def _params_of_checkpoint(path: str, model: Model, report: Report) -> dict:
    labels = model.config.labels if has_labels(model.head) else None
    try:
        held, params = from_pretrained(path, head=model.head or BASE, dtype="float32", labels=labels)
    except InputError as error:
        raise InputError(f"init_from: {error}") from error
    shapes = {key: param.shape for key, param in flatten(model.param_specs()).items()}
    for key, array in flatten(params).items():
        if shapes.get(key) != array.shape:
            raise InputError(
                f"init_from {path!r} holds another model: {key} is {list(array.shape)} there, {shapes.get(key)} here: "
                "take the model from default_config(checkpoint=...)"
            )
    for name, value in vars(model.config).items():
        there = getattr(held.config, name, None)
        if there != value:
            report(f"unlike {path}: model.{name} is {value!r}, there {there!r}")
    report(f"started from the parameters of {path}")
    return params


def _params_of_run(workdir: Path, model: Model, tokenizer: Tokenizer, placement: Placement, report: Report) -> dict:
    """Those of the last good checkpoint."""

    def accept(metadata: dict) -> None:
        if metadata["tokenizer"] != tokenizer.fingerprint:
            raise InputError(
                f"init_from {str(workdir)!r} was trained with another tokenizer, so its token ids mean other text: set "
                f"data.tokenizer to {str(workdir.absolute() / 'tokenizer.json')!r}"
            )

    shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0)))
    with Checkpoints(workdir.absolute() / CHECKPOINTS_FOLDER, keep=None) as checkpoints:
        restored = checkpoints.restore(placement.abstract({"params": shapes}), accept, report)
    if restored is None:
        raise InputError(f"init_from {str(workdir)!r} holds no checkpoint that is whole: name another run's workdir")
    step, parts, _ = restored
    report(f"started from the parameters of {workdir}, step {step}")
    return parts["params"]
