"""Low-rank adapters as PEFT publishes them: adapter_config.json and adapter_model.safetensors (huggingface/peft on GitHub).

Which tensor adapts what follows from the names of the weights: beside `<module>.weight` stand `<module>.lora_A.weight`,
`[rank, inputs]`, and `<module>.lora_B.weight`, `[outputs, rank]`, whichever way the weight itself lies. Under its own name is
a tensor that takes the place of the model's (`modules_to_save`).
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from flaxllm import nn
from flaxllm.data.hub import resolve
from flaxllm.data.json_file import brief, read_object
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.models.lora import adapter_parts, adapter_scale, factor_specs, is_kernel
from flaxllm.nn import Param
from flaxllm.pretrained.checkpoint import Checkpoint
from flaxllm.pretrained.config_file import Keys
from flaxllm.pretrained.families import FAMILIES
from flaxllm.pretrained.match import Place, expand, match
from flaxllm.pretrained.names import Names, Rule, as_theirs, fused_axis, rule_shape
from flaxllm.pretrained.safetensors_file import read_safetensors, write_safetensors
from flaxllm.pretrained.tensor import Tensor

CONFIG, WEIGHTS, TORCH_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

_PREFIX = "base_model.model."
_WEIGHT, _DOWN, _UP = ".weight", ".lora_A.weight", ".lora_B.weight"
_BASE = ".base_layer.weight"  # the model's own weight, which PEFT repeats beside the factors of a vocabulary
_MODULE = re.compile(r"\^?([\w.]+)")  # a pattern that is a module's name, or the end of it
# What of PEFT's LoRA computes something else, or changes the model that it is put on.
_OTHER_KINDS = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
_PLAIN_STARTS = (True, False, "gaussian", "eva")
_TASKS = {
    None: "FEATURE_EXTRACTION",
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
}


class _Pair(NamedTuple):
    down: Tensor  # [rank, inputs]
    up: Tensor  # [outputs, rank]

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def load_adapter(path: str | Path, model: Model) -> tuple[dict, float]:
    """The adapter of a folder or a hub id for parameters of `model`, and its alpha: what `flaxllm.models.lora.attach` takes.

    Every product has the scale that the file says. Where the rank stabilizes it, alpha is as much greater; where modules have
    ranks or alphas of their own (`rank_pattern`, `alpha_pattern`) the difference is in their `up`, and zeros fill the ranks
    that only some layers of a stack have. The rate of dropout is left to who trains.

    Raises:
      InputError: the folder holds no adapter, one of a kind other than plain LoRA, or one that does not fit the model.
    """
    folder = resolve(path, (CONFIG, WEIGHTS))
    if not (folder / WEIGHTS).exists():
        folder = resolve(path, (CONFIG, TORCH_WEIGHTS))
    keys = Keys(read_object(folder / CONFIG), str(folder / CONFIG))
    _check_kind(keys)
    pairs, whole = _tensors(folder)
    specs = nn.flatten(model.param_specs())
    places = _places(folder, whole | {name: pair.down for name, pair in pairs.items()}, model, specs)
    ranks: dict[str, int] = {}
    for name, pair in pairs.items():
        _check_pair(name, pair, places[name].rule, specs)
        ranks |= {target: max(pair.rank, ranks.get(target, 0)) for target in places[name].rule.paths}
    dtype = jnp.result_type(*(tensor.dtype for tensor in (*whole.values(), *(x for pair in pairs.values() for x in pair))))
    arrays = {
        f"{target}/{name}": np.zeros(param.shape, dtype)
        for target, rank in ranks.items()
        for name, param in factor_specs(specs[target], rank).items()
    }
    alpha, scales = _scales(keys, pairs)
    for name, pair in pairs.items():
        rule, layer = places[name]
        down, ups = pair.down.read(), np.split(pair.up.read(), len(rule.paths))
        for target, up in zip(rule.paths, ups, strict=True):
            ratio = scales[name] * ranks[target] / alpha
            up = up if math.isclose(ratio, 1.0) else up * ratio
            both = (arrays[f"{target}/down"], arrays[f"{target}/up"])
            its_down, its_up = both if layer is None else (array[layer] for array in both)
            its_down[..., : pair.rank] = down.T.reshape(*its_down.shape[:-1], pair.rank)
            its_up[: pair.rank] = up.T.reshape(pair.rank, *its_up.shape[1:])
    arrays |= _read_whole(folder, whole, places, specs, dtype)
    return nn.unflatten({target: jnp.asarray(array) for target, array in arrays.items()}), alpha


def save_adapter(
    directory: str | Path,
    model: Model,
    adapter: dict,
    alpha: float,
    *,
    rank_stabilized: bool = False,
    base: str | None = None,
) -> None:
    """Write the folder that PEFT opens on the same model and `load_adapter` here. `base` is that model's folder or hub id.

    Where one module of theirs holds several kernels of ours (GPT-2's `c_attn`), those with one and the same `down` share its
    ranks, and others have ranks of their own in it.

    Raises:
      InputError: the adapter is not the model's, PEFT has no way to say it, or the folder cannot be written.
    """
    parts = adapter_parts(model, adapter)
    specs, names = nn.flatten(model.param_specs()), FAMILIES[model.family].names(model.config, model.head)
    tensors: dict[str, np.ndarray] = {}
    adapted: dict[str, tuple[int, float]] = {}  # rank and alpha of modules
    copied, others = set(), set()
    for name, place in expand(names.rules, specs).items():
        name = name.removeprefix(names.prefix) if model.head is None else name
        module = name.rpartition(".")[0]
        own = {path: parts[path] for path in place.rule.paths if path in parts}
        if not own:
            others.add(module)
            continue
        _check_untied(name, place.rule, names)
        if all(isinstance(part, dict) for part in own.values()):
            scales = {path: adapter_scale(part, alpha, rank_stabilized) for path, part in own.items()}
            down, up, scale = _fused(place, own, scales)
            tensors |= {f"{_PREFIX}{module}{_DOWN}": down, f"{_PREFIX}{module}{_UP}": up}
            adapted[module] = len(down), scale * len(down)
        elif own.keys() == set(place.rule.paths) and not any(isinstance(part, dict) for part in own.values()):
            tensors[_PREFIX + name] = _as_whole(place, own, specs)
            copied.add(module)
        else:
            rest = [path for path in place.rule.paths if isinstance(own.get(path, {}), dict)]
            raise InputError(f"PEFT has {name} as one tensor, and the adapter only a part of it as it is: add {', '.join(rest)}")
    if not adapted:
        raise InputError("the adapter has no low-rank factors, and PEFT has none without: save the model itself")
    for module in sorted(copied & (others | adapted.keys())):
        raise InputError(f"PEFT keeps modules whole, and the adapter has only a part of {module} as it is: add the rest")
    inputs_first = any(rule.inputs_first for rule in names.rules)
    config = _config(adapted, copied, others - adapted.keys(), inputs_first)
    _write(Path(directory), {**config, "task_type": _TASKS.get(model.head), "base_model_name_or_path": base}, tensors)


def _check_kind(keys: Keys) -> None:
    keys.only("peft_type", "LORA")
    keys.only("bias", "none")
    keys.only("init_lora_weights", *_PLAIN_STARTS)
    for name in _OTHER_KINDS:
        if keys.values.get(name):
            raise InputError(f"{keys.file} has {name} {brief(keys.values[name])}: only plain LoRA can be loaded")


def _tensors(folder: Path) -> tuple[dict[str, _Pair], dict[str, Tensor]]:
    """The factors by the name of the weight that they adapt, and the tensors that stand for themselves by their own."""
    if (folder / WEIGHTS).exists():
        tensors = read_safetensors(folder / WEIGHTS)
    elif (folder / TORCH_WEIGHTS).exists():
        from flaxllm.pretrained.torch_file import read_torch

        tensors = read_torch(folder / TORCH_WEIGHTS)
    else:
        raise InputError(f"{folder} holds no adapter: expected {WEIGHTS} or {TORCH_WEIGHTS} in it")
    factors: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise InputError(f"{tensor.file} has {brief(name)} of {tensor.dtype}: expected floating-point numbers")
        own = name.removeprefix(_PREFIX)
        if own.endswith(_BASE):
            continue
        end = next((end for end in (_DOWN, _UP) if own.endswith(end)), None)
        if end is None:
            whole[own] = tensor
        else:
            factors.setdefault(own.removesuffix(end) + _WEIGHT, {})[end] = tensor
    if not factors:
        raise InputError(f"{folder} holds no tensor that ends in {_DOWN}: it is no LoRA adapter")
    for name, found in factors.items():
        if found.keys() != {_DOWN, _UP} or name in whole:
            there = sorted(found) + [_WEIGHT] * (name in whole)
            raise InputError(f"{folder} has {', '.join(there)} for {brief(name)}: expected {_DOWN} and {_UP}")
    return {name: _Pair(found[_DOWN], found[_UP]) for name, found in factors.items()}, whole


def _places(folder: Path, tensors: Mapping[str, Tensor], model: Model, specs: Mapping[str, Param]) -> dict[str, Place]:
    """Where the weights of these names belong."""
    names = FAMILIES[model.family].names(model.config, model.head)
    found = match(Checkpoint(folder, {}, dict(tensors)), specs, names)
    for name in tensors:
        if name not in found.places:
            head = model.head or "base"
            raise InputError(f"{folder} has {brief(name)}, which a {model.family} model with the head {head!r} has not: load "
                             "the model with the head that the adapter was made for")  # fmt: skip
        _check_untied(name, found.places[name].rule, names)
    return found.places


def _check_untied(name: str, rule: Rule, names: Names) -> None:
    if rule.theirs in names.tied.values():
        raise InputError(f"{brief(name)} is tied to another weight, and PEFT changes one of the two: leave it out of the adapter")


def _check_pair(name: str, pair: _Pair, rule: Rule, specs: Mapping[str, Param]) -> None:
    if not is_kernel(specs[rule.paths[0]]) or specs[rule.paths[0]].is_lookup:
        raise InputError(f"{pair.down.file} adapts {brief(name)}, which is no linear layer: leave it out of the adapter")
    shape = rule_shape(rule, specs)
    outputs, inputs = shape[::-1] if rule.inputs_first else shape
    rank = (*pair.down.shape, 0)[0]
    if rank < 1 or pair.down.shape != (rank, inputs) or pair.up.shape != (outputs, rank):
        raise InputError(
            f"{pair.down.file} has factors of shapes {list(pair.down.shape)} and {list(pair.up.shape)} for {brief(name)}: "
            f"expected [rank, {inputs}] and [{outputs}, rank]"
        )


def _scales(keys: Keys, pairs: Mapping[str, _Pair]) -> tuple[float, dict[str, float]]:
    """Alpha, and what each product is multiplied by, by the weight's name (Kalajdzievski 2023, if stabilized)."""
    root = 0.5 if keys.switch("use_rslora", False) else 1.0
    rank, alpha = keys.integer("r", 8), keys.number("lora_alpha", 8)
    own = keys.get("alpha_pattern", {})
    if not isinstance(own, dict) or not all(type(x) in (int, float) and _MODULE.fullmatch(key) for key, x in own.items()):
        raise InputError(f"{keys.file} has alpha_pattern {brief(own)}: expected numbers by modules' names")
    if rank < 1 or alpha <= 0:
        raise InputError(f"{keys.file} has r {rank} and lora_alpha {alpha}: expected numbers above 0")
    ends = {f".{_MODULE.fullmatch(key)[1]}{_WEIGHT}": value for key, value in own.items()}

    def its_alpha(name: str) -> float:
        return next((value for end, value in ends.items() if f".{name}".endswith(end)), alpha)

    return alpha * rank ** (1.0 - root), {name: its_alpha(name) / pair.rank**root for name, pair in pairs.items()}


def _read_whole(
    folder: Path, whole: Mapping[str, Tensor], places: Mapping[str, Place], specs: Mapping[str, Param], dtype: np.dtype
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    layers = Counter(path for name in whole for path in places[name].rule.paths)
    for name, tensor in whole.items():
        rule, layer = places[name]
        shape = rule_shape(rule, specs)
        if tensor.shape != shape:
            raise InputError(f"{tensor.file} has {brief(name)} of shape {list(tensor.shape)}: expected {list(shape)}")
        for path, part in zip(rule.paths, np.split(tensor.read(), len(rule.paths), fused_axis(rule, specs)), strict=True):
            if layer is not None and layers[path] < specs[path].shape[0]:
                raise InputError(f"{folder} has {brief(name)}, but not that of every layer: they are one tensor here")
            array = arrays.setdefault(path, np.zeros(specs[path].shape, dtype))
            view = as_theirs(array if layer is None else array[layer], specs[path], rule.inputs_first)
            view[...] = part.reshape(view.shape)
    return arrays


def _fused(place: Place, own: Mapping[str, dict], scales: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray, float]:
    """The two factors of one module, and the scale of their product: ranks for each distinct `down` of its kernels."""
    paths, layer = place.rule.paths, place.layer
    scale = scales[min(own)]
    downs: list[np.ndarray] = []
    blocks: dict[str, tuple[int, np.ndarray]] = {}  # which of the downs, and the up, of each path
    for path, part in own.items():
        down, up = (np.asarray(part[name] if layer is None else part[name][layer]) for name in ("down", "up"))
        down, up = down.reshape(-1, down.shape[-1]).T, up.reshape(len(up), -1).T
        which = next((i for i, other in enumerate(downs) if np.array_equal(down, other)), len(downs))
        if which == len(downs):
            downs.append(down)
        blocks[path] = which, up if scales[path] == scale else (up * (scales[path] / scale)).astype(up.dtype)
    starts = np.cumsum([0, *map(len, downs)])
    size = len(blocks[min(own)][1])
    fused = np.zeros((size * len(paths), starts[-1]), np.result_type(*(up for _, up in blocks.values())))
    for index, path in enumerate(paths):
        if path in blocks:
            which, up = blocks[path]
            fused[index * size : (index + 1) * size, starts[which] : starts[which + 1]] = up
    return np.concatenate(downs), fused, scale


def _as_whole(place: Place, own: Mapping[str, Any], specs: Mapping[str, Param]) -> np.ndarray:
    rule, layer = place
    arrays = (np.asarray(own[path] if layer is None else own[path][layer]) for path in rule.paths)
    tensors = [as_theirs(array, specs[path], rule.inputs_first) for path, array in zip(rule.paths, arrays)]
    return np.concatenate(tensors, axis=fused_axis(rule, specs)).reshape(rule_shape(rule, specs))


def _config(adapted: Mapping[str, tuple[int, float]], copied: set[str], others: set[str], inputs_first: bool) -> dict[str, Any]:
    """The content of adapter_config.json: the commonest rank and alpha, and those of other modules by their names."""
    (rank, alpha), _ = Counter(adapted.values()).most_common(1)[0]
    patterns: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for its in set(adapted.values()) - {(rank, alpha)}:
        group = {module for module, pair in adapted.items() if pair == its}
        for pattern, value in zip(patterns, its, strict=True):
            pattern |= dict.fromkeys(_ends(group, adapted.keys() - group), value)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": patterns[0],
        "alpha_pattern": patterns[1],
        "target_modules": _ends(adapted.keys(), others | copied),
        "modules_to_save": sorted(copied) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": inputs_first,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _ends(modules: Collection[str], others: Collection[str]) -> list[str]:
    """The shortest ends of the modules' names, from a dot on, that none of the others has."""

    def end(module: str) -> str:
        parts = module.split(".")
        ends = (".".join(parts[start:]) for start in reversed(range(len(parts))))
        return next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), module)

    return sorted({end(module) for module in modules})


def _write(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """The weights get their name last: by it readers know an adapter that is whole."""
    pending = {name: (array.shape, array.dtype, partial(np.ascontiguousarray, array)) for name, array in tensors.items()}
    new = directory / f"{WEIGHTS}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_safetensors(new, pending, {"format": "pt"})
        (directory / WEIGHTS).unlink(missing_ok=True)
        (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        new.replace(directory / WEIGHTS)
    except OSError as error:
        raise InputError(f"{directory} cannot be written ({error.strerror}): check the folder and its disk") from error
