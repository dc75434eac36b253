"""Tiny models of each family, and batches and sums of an objective on records, by the pipeline that training has."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from data.frozen_tokenizers import load
from flaxllm.data import eval_batches
from flaxllm.models import build
from flaxllm.nn import Context, flatten, unflatten
from flaxllm.objectives import add_terms

SIZES = dict(max_len=64, num_layers=1, num_heads=2, head_dim=8, d_model=16, d_mlp=24)
FAMILIES = {"bert": {}, "gpt": {}, "llama": {"num_kv_heads": 1}, "t5": {"eos_token": 1}}


@cache
def tiny(family: str, head: str, tokenizer: str, **fields):
    """A model with the vocabulary of a frozen tokenizer, its parameters, large enough to tell texts apart, and the tokenizer."""
    tokenizer = load(tokenizer)
    known = {field.name for field in dataclasses.fields(build(family, {}).config)}
    fields = {name: value for name, value in (SIZES | FAMILIES[family] | fields).items() if name in known}
    model = build(family, fields | {"vocab_size": tokenizer.vocab_size}, head)
    rng = np.random.default_rng(0)  # the model's own init would be one more program to compile
    values = {
        path: jnp.asarray(0.3 * rng.normal(size=param.shape) + path.endswith("scale"), jnp.float32)
        for path, param in flatten(model.param_specs()).items()
    }
    return model, unflatten(values), tokenizer


@jax.jit
def apply(model, params, inputs: dict):
    return model.apply(params, **inputs)


@cache
def _terms(terms):
    return jax.jit(lambda params, batch: terms(params, batch, Context()))


def batches(objective, items, batch_size: int) -> list[dict]:
    """All items in order, or as they are packed."""
    made = eval_batches(
        items, objective.example, objective.empty_row, batch_size=batch_size, seed=0, rows=(0, batch_size), pack=objective.packs
    )
    return [jax.tree.map(jnp.asarray, batch) for batch in made]


def summed(objective, params, made: list[dict]) -> dict[str, tuple[float, float]]:
    """The sum and the weight of each term over all batches; the weights are known before the model runs."""
    total = None
    for batch in made:
        terms = _terms(objective.terms)(params, batch)
        np.testing.assert_allclose(objective.weights(batch)["loss"], terms["loss"].weight, rtol=1e-6)
        total = terms if total is None else add_terms(total, terms)
    return {name: (float(term.sum), float(term.weight)) for name, term in total.items()}


def judged(objective, params, items, batch_size: int) -> dict[str, float]:
    """What the judge says, asked as in training."""
    run = _terms(objective.judge.outputs)
    rows = [run(params, batch) for batch in batches(objective, items, batch_size)]
    return objective.judge.score(items, jax.tree.map(lambda *parts: np.concatenate(parts)[: len(items)], *rows))


def check_gradient(objective, params, batch: dict) -> None:
    """The gradient of a batch's sum is that of the sum of its rows, and finite though some have nothing in them."""
    grad = jax.jit(jax.grad(lambda params, batch: objective.terms(params, batch, Context())["loss"].sum))
    rows = [jax.tree.map(lambda x: jnp.zeros_like(x).at[0].set(x[row]), batch) for row in range(len(batch["row"]))]
    parts = jax.tree.map(lambda *each: np.sum(each, axis=0), *[grad(params, row) for row in rows])
    for whole, part in zip(jax.tree.leaves(grad(params, batch)), jax.tree.leaves(parts)):
        np.testing.assert_allclose(whole, part, atol=1e-5 * max(1.0, np.abs(part).max()))
