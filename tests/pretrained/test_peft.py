"""Adapters in PEFT's format: what PEFT made of its own, in torch, and what is written for it."""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.models import Model
from flaxllm.models.lora import adapter_parts, attach, lora_specs, merge
from flaxllm.pretrained import from_pretrained
from flaxllm.pretrained.peft import load_adapter, save_adapter
from parity.case import FIXTURES as BASES
from parity.frozen import Tensors, at_kept, read_arrays
from pretrained.peft_cases import CASES, FIXTURES


@cache
def base(name: str) -> tuple[Model, dict]:
    return from_pretrained(BASES / CASES[name].base)


@partial(jax.jit, static_argnums=0)
def outputs(model: Model, params: dict, inputs: Tensors) -> dict:
    output = model.apply(params, **inputs)
    found = {"hidden": output.hidden, "encoded": output.encoded, "pooled": output.pooled, "classes": output.logits}
    return found | ({"vocab": model.unembed(params, output.hidden)} if model.head in ("causal-lm", "seq2seq-lm") else {})


def assert_computes(name: str, params: dict) -> None:
    reference = read_arrays(BASES / CASES[name].base)
    got = outputs(base(name)[0], params, reference["inputs"])
    with np.load(FIXTURES / name / "outputs.npz") as expected:
        for output in expected.files:
            near = np.abs(at_kept(got[output], output, reference["kept"]) - expected[output]).max()
            assert near <= 1e-5 * np.abs(expected[output]).max(), output
        moved = np.abs(expected["hidden"] - reference["outputs"]["hidden"]).max()
        assert moved > 0.01 * np.abs(expected["hidden"]).max()


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_computes_what_peft_computes_with_it(name):
    model, params = base(name)
    assert_computes(name, attach(model, params, *load_adapter(FIXTURES / name, model)))


# Those whose ranks and alphas are all the same.
@pytest.mark.parametrize("name", ["gpt_fused_stabilized", "gpt_base", "t5_decoder", "bert_classifier", "marian"])
def test_what_peft_wrote_is_written_byte_for_byte(name, tmp_path):
    model, _ = base(name)
    save_adapter(tmp_path, model, *load_adapter(FIXTURES / name, model), base=CASES[name].base)
    written, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, FIXTURES / name))
    assert written.keys() == theirs.keys()
    assert all(written[name].tobytes() == theirs[name].tobytes() for name in theirs)
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    ours, config = (json.loads((folder / "adapter_config.json").read_text()) for folder in (tmp_path, FIXTURES / name))
    same = ("peft_type", "task_type", "r", "bias", "rank_pattern", "base_model_name_or_path", "fan_in_fan_out")
    assert [ours[key] for key in same] == [config[key] for key in same]
    assert set(ours["modules_to_save"] or ()) <= set(config["modules_to_save"] or ())  # PEFT adds what other models call it
    assert ours["lora_alpha"] == pytest.approx(config["lora_alpha"] * (2**0.5 if config["use_rslora"] else 1))


def random_adapter(model: Model, *given: tuple[str, int], whole: tuple[str, ...] = ()) -> dict:
    """An adapter of kernels (by path) with factors of these ranks, and of whole parameters, with no value at its start."""
    specs: dict = {}
    for path, rank in given:
        specs |= nn.flatten(lora_specs(model, rank, (path,)))
    specs |= {path: nn.flatten(model.param_specs())[path] for path in whole}
    rng = np.random.default_rng(0)
    return nn.unflatten({path: jnp.asarray(rng.normal(0.0, 0.4, param.shape), jnp.float32) for path, param in specs.items()})


def made_here(name: str) -> tuple[str, dict, dict]:
    """A fixture on whose base it is, an adapter, and how it is scaled."""
    attention = "layers/attention"
    return {
        # c_attn in ranks that its parts do not share, and another rank beside it.
        "fused": ("gpt_base", random_adapter(
            base("gpt_base")[0], (f"{attention}/query/kernel", 2), (f"{attention}/value/kernel", 3), ("layers/mlp/up/kernel", 1)
        ), dict(alpha=5.0)),
        "stabilized": ("t5_decoder", random_adapter(
            base("t5_decoder")[0], ("decoder/layers/cross_attention/out/kernel", 3), ("encoder/layers/mlp/down/kernel", 2)
        ), dict(alpha=2.0, rank_stabilized=True)),
        "table": ("llama_ranks_and_alphas", random_adapter(
            base("llama_ranks_and_alphas")[0], ("head/table", 2), whole=("final_norm/scale", "layers/mlp_norm/scale")
        ), dict(alpha=3.0)),
        "classifier": ("bert_classifier", random_adapter(
            base("bert_classifier")[0], ("pooler/kernel", 2), whole=("head/out/kernel", "head/out/bias")
        ), dict(alpha=3.0)),
    }[name]  # fmt: skip


MADE_HERE = ("fused", "stabilized", "table", "classifier")


@pytest.mark.parametrize("kind", MADE_HERE)
def test_what_is_written_is_read_as_the_same_change(kind, tmp_path):
    name, adapter, scaling = made_here(kind)
    model, params = base(name)
    save_adapter(tmp_path, model, adapter, **scaling)
    read, alpha = load_adapter(tmp_path, model)
    expected, got = merge(model, params, adapter, **scaling), merge(model, params, read, alpha)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)
    changed = {path for path, x in nn.flatten(got).items() if not np.array_equal(x, nn.flatten(params)[path])}
    assert changed == set(adapter_parts(model, adapter))


@pytest.mark.parity
@pytest.mark.parametrize("kind", MADE_HERE)
def test_peft_computes_the_same_with_what_is_written(kind, tmp_path):
    peft = pytest.importorskip("peft", reason="the live comparison needs peft beside the [parity] extra")
    import transformers

    from parity.case import cases
    from parity.reference import outputs_of

    name, adapter, scaling = made_here(kind)
    model, params = base(name)
    save_adapter(tmp_path, model, adapter, **scaling)
    family, case = CASES[name].base.split("/")
    case, folder = cases(family)[case], BASES / CASES[name].base
    reference = getattr(transformers, case.architecture).from_pretrained(folder, attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path).eval()
    arrays = read_arrays(folder)
    ours = outputs(model, attach(model, params, adapter, **scaling), arrays["inputs"])
    for output, expected in outputs_of(case, theirs.get_base_model(), arrays["inputs"]).items():
        got, expected = (at_kept(x, output, arrays["kept"]) for x in (np.asarray(ours[output]), expected.detach().numpy()))
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max(), output


def test_the_modules_are_named_by_what_tells_them_from_others(tmp_path):
    model, _ = base("t5_decoder")
    save_adapter(tmp_path, model, random_adapter(model, ("decoder/layers/attention/query/kernel", 2)), 1.0)
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert targets == [f"decoder.block.{layer}.layer.0.SelfAttention.q" for layer in range(model.config.decoder_depth)]
    model, _ = base("bert_classifier")
    save_adapter(tmp_path, model, random_adapter(model, ("layers/attention/query/kernel", 2)), 1.0)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["query"]


def changed(folder: Path, name: str, without: str = "", tensors: dict | None = None, **config: object) -> Path:
    """A fixture's copy in `folder` with config keys set, and tensors added or left out."""
    held = {key: x for key, x in load_file(FIXTURES / name / "adapter_model.safetensors").items() if not without or without not in key}
    save_file(held | (tensors or {}), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps(json.loads((FIXTURES / name / "adapter_config.json").read_text()) | config)
    )
    return folder


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
TABLE = "base_model.model.bert.embeddings.word_embeddings"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(peft_type="IA3"), "peft_type 'IA3', which flaxllm does not compute: only 'LORA' can"),
        (dict(bias="all"), "bias 'all'"),
        (dict(init_lora_weights="pissa"), "init_lora_weights 'pissa'"),
        (dict(use_dora=True), "use_dora True: only plain LoRA can be loaded"),
        (dict(trainable_token_indices=[1]), r"trainable_token_indices \[1\]"),
        (dict(r=0), "r 0 and lora_alpha 8.0: expected numbers above 0"),
        (dict(lora_alpha="8"), "lora_alpha '8': expected a number"),
        (dict(alpha_pattern={"(a+)+": 1}), "alpha_pattern .*: expected numbers by modules' names"),
        (dict(without="lora_B"), "has .lora_A.weight for 'bert.*: expected .lora_A.weight and .lora_B.weight"),
        (dict(without="lora_"), "holds no tensor that ends in .lora_A.weight"),
        (dict(without="layer.1.", tensors={f"{QUERY}.lora_A.weight": np.ones((3, 8), np.float32)}), r"shapes \[3, 8\] and \[8, 2\]"),
        (dict(tensors={f"{QUERY}.lora_A.weight": np.ones((2, 8), np.int32)}), "of int32: expected floating-point"),
        (dict(tensors={f"{QUERY}.weight": np.ones((8, 8), np.float32)}), "has .lora_A.weight, .lora_B.weight, .weight for"),
        (dict(tensors={f"{QUERY}.bias": np.ones(8, np.float32)}), "query.bias', but not that of every layer"),
        (dict(tensors={"base_model.model.classifier.bias": np.ones(4, np.float32)}), r"of shape \[4\]: expected \[3\]"),
        (dict(tensors={"base_model.model.score.weight": np.ones((3, 8), np.float32)}), "'score.weight', which a bert model with"),
        (dict(tensors={f"{TABLE}.lora_embedding_A": np.ones((2, 8), np.float32)}), "lora_embedding_A', which a bert model"),
        (dict(tensors={f"{TABLE}.weight": np.ones((30, 8), np.float32)}), "is tied to another weight"),
    ],
)  # fmt: skip
def test_what_is_no_plain_adapter_of_the_model_is_refused(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_adapter(changed(tmp_path, "bert_classifier", **change), base("bert_classifier")[0])


def test_an_adapter_for_a_head_needs_the_model_to_have_it():
    headless, _ = from_pretrained(BASES / CASES["bert_classifier"].base, head="base")
    with pytest.raises(InputError, match="'classifier.bias', which a bert model with the head 'base' has not: load the model with"):
        load_adapter(FIXTURES / "bert_classifier", headless)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no adapter: expected adapter_model.safetensors or adapter_model.bin in it"):
        load_adapter(tmp_path, base("gpt_base")[0])


@pytest.mark.parametrize(
    ("name", "adapter", "message"),
    [
        ("gpt_base", (("embedding/tokens", 2),), "'wte.weight' is tied to another weight"),
        ("bert_classifier", (), "has no low-rank factors"),
        ("gpt_base", (("layers/mlp/up/kernel", 2), "layers/attention/query/kernel"), "c_attn.weight as one.*: add .*key/kernel, .*value/kernel"),
        ("bert_classifier", (("pooler/kernel", 2), "head/out/kernel"), "only a part of classifier as it is: add the rest"),
        ("bert_classifier", (("head/out/kernel", 2), "head/out/bias"), "only a part of classifier as it is: add the rest"),
    ],
)
def test_what_peft_cannot_say_is_refused(name, adapter, message, tmp_path):
    model, _ = base(name)
    whole = tuple(path for path in adapter if isinstance(path, str))
    with pytest.raises(InputError, match=message):
        save_adapter(tmp_path / "out", model, random_adapter(model, *adapter[: len(adapter) - len(whole)], whole=whole), 1.0)
    assert not (tmp_path / "out").exists()
