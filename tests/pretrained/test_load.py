import logging
import re
import threading
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from flaxllm import nn
from flaxllm.errors import InputError
from flaxllm.pretrained import from_pretrained, load
from flaxllm.pretrained.checkpoint import open_checkpoint
from pretrained import gpt2

TOKENS = jnp.array([[1, 2, 3, 4]])


def test_every_tensor_lands_in_its_place(tmp_path):
    held = gpt2.write(tmp_path)
    model, params = from_pretrained(tmp_path)
    assert (model.family, model.head, model.config.num_layers) == ("gpt", "causal-lm", gpt2.LAYERS)
    np.testing.assert_array_equal(params["embedding"]["tokens"], held["transformer.wte.weight"])
    np.testing.assert_array_equal(params["embedding"]["positions"], held["transformer.wpe.weight"])
    for i in range(gpt2.LAYERS):
        layer = jax.tree.map(lambda x: x[i], params["layers"])
        fused = held[f"transformer.h.{i}.attn.c_attn.weight"], held[f"transformer.h.{i}.attn.c_attn.bias"]
        for part, name in enumerate(("query", "key", "value")):
            kernel, bias = (x[..., part * gpt2.WIDTH : (part + 1) * gpt2.WIDTH] for x in fused)
            np.testing.assert_array_equal(layer["attention"][name]["kernel"].reshape(gpt2.WIDTH, -1), kernel)
            np.testing.assert_array_equal(layer["attention"][name]["bias"].ravel(), bias)
        np.testing.assert_array_equal(layer["mlp"]["down"]["kernel"], held[f"transformer.h.{i}.mlp.c_proj.weight"])
        np.testing.assert_array_equal(layer["mlp_norm"]["bias"], held[f"transformer.h.{i}.ln_2.bias"])


def test_a_checkpoint_without_a_head_leaves_out_the_prefix(tmp_path):
    held = gpt2.write(tmp_path / "with")
    bare = {name.removeprefix("transformer."): array for name, array in held.items()}
    gpt2.write(tmp_path / "bare", bare, tuple(held), architectures=["GPT2Model"])
    model, params = from_pretrained(tmp_path / "bare")
    assert model.head is None
    jax.tree.map(np.testing.assert_array_equal, params, from_pretrained(tmp_path / "with", head="base")[1])


def test_buffers_and_repeated_tensors_are_no_parameters(tmp_path):
    held = gpt2.write(tmp_path / "plain")
    extra = {"lm_head.weight": held["transformer.wte.weight"]}
    extra |= {f"transformer.h.{i}.attn.bias": np.ones((1, 1, 16, 16), np.uint8) for i in range(gpt2.LAYERS)}
    gpt2.write(tmp_path / "extra", extra)
    jax.tree.map(np.testing.assert_array_equal, *(from_pretrained(tmp_path / name)[1] for name in ("plain", "extra")))


def test_where_only_the_repetition_is_there_it_will_do(tmp_path):
    table = gpt2.tensors()["transformer.wte.weight"]
    gpt2.write(tmp_path, {"lm_head.weight": table}, without=("transformer.wte.weight",))
    np.testing.assert_array_equal(from_pretrained(tmp_path)[1]["embedding"]["tokens"], table)


def test_the_dtype_is_the_files_unless_another_is_asked_for(tmp_path):
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in gpt2.tensors().items()}
    wide = "transformer.h.1.mlp.c_fc.bias"
    gpt2.write(tmp_path, half | {wide: gpt2.tensors()[wide]})
    params = from_pretrained(tmp_path)[1]
    dtypes = {path: array.dtype for path, array in nn.flatten(params).items()}
    assert dtypes.pop("layers/mlp/up/bias") == jnp.float32  # one of its layers is
    assert set(dtypes.values()) == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(params["layers"]["mlp"]["up"]["bias"][0], half["transformer.h.0.mlp.c_fc.bias"].astype(np.float32))
    widened = from_pretrained(tmp_path, dtype="float32")[1]
    assert {array.dtype for array in jax.tree.leaves(widened)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(widened["embedding"]["tokens"], half["transformer.wte.weight"].astype(np.float32))


def test_on_a_mesh_no_device_holds_a_whole_tensor_that_can_be_split(tmp_path):
    gpt2.write(tmp_path)
    whole, split = from_pretrained(tmp_path)[1], from_pretrained(tmp_path, mesh="fsdp:4,model:2")[1]
    jax.tree.map(np.testing.assert_array_equal, split, whole)
    kernel = split["layers"]["attention"]["query"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(gpt2.LAYERS, gpt2.WIDTH // 4, 1, gpt2.HEAD_DIM)}
    assert {shard.data.shape for shard in split["embedding"]["tokens"].addressable_shards} == {(gpt2.VOCAB // 2, gpt2.WIDTH // 4)}


def test_a_loaded_model_trains_in_place_and_leaves_the_file_alone(tmp_path):
    held = gpt2.write(tmp_path)
    _, params = from_pretrained(tmp_path)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1.0, tree), donate_argnums=0)
    np.testing.assert_allclose(step(params)["embedding"]["tokens"], held["transformer.wte.weight"] + 1.0, rtol=1e-6)
    np.testing.assert_array_equal(from_pretrained(tmp_path)[1]["embedding"]["tokens"], held["transformer.wte.weight"])


def test_a_head_is_started_afresh_only_where_it_is_named_and_that_is_said(tmp_path, caplog):
    gpt2.write(tmp_path, architectures=["GPT2ForSequenceClassification"])
    with pytest.raises(InputError, match=r"lacks 'score.weight', which its config.json calls for: name the head"):
        from_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "flaxllm"):
        model, params = from_pretrained(tmp_path, head="sequence-classification", labels=("bad", "good", "so-so"))
    assert "'sequence-classification' is new" in caplog.text
    assert model.config.labels == ("bad", "good", "so-so")
    assert params["head"]["out"]["kernel"].shape == (gpt2.WIDTH, 3)
    assert float(jnp.abs(params["head"]["out"]["kernel"]).max()) > 0.0
    assert model.apply(params, TOKENS).logits.shape == (1, 3)


def test_another_heads_tensors_are_left_out_and_that_is_said(tmp_path, caplog):
    gpt2.write(tmp_path, {"score.weight": np.ones((2, gpt2.WIDTH), np.float32)})
    with caplog.at_level(logging.WARNING, "flaxllm"):
        model, params = from_pretrained(tmp_path)
    assert "left out score.weight" in caplog.text
    assert model.head == "causal-lm" and "head" not in params


def test_labels_are_the_configs(tmp_path):
    score = {"score.weight": np.ones((3, gpt2.WIDTH), np.float32)}
    names = {"2": "c", "0": "a", "1": "b"}
    gpt2.write(tmp_path, score, architectures=["GPT2ForSequenceClassification"], id2label=names)
    assert from_pretrained(tmp_path)[0].config.labels == ("a", "b", "c")


def test_the_number_of_labels_counts_where_their_names_are_those_of_others(tmp_path):
    score = {"score.weight": np.ones((3, gpt2.WIDTH), np.float32)}
    gpt2.write(tmp_path, score, architectures=["GPT2ForSequenceClassification"], id2label={"0": "a", "1": "b"}, num_labels=3)
    assert from_pretrained(tmp_path)[0].config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_what_an_old_config_does_not_say_can_be_given(tmp_path):
    gpt2.write(tmp_path, model_type=None, architectures=None)
    with pytest.raises(InputError, match="has no key 'model_type', which a model needs: add it, or give it in config"):
        from_pretrained(tmp_path)
    model, _ = from_pretrained(tmp_path, config={"model_type": "gpt2"})
    assert (model.family, model.head) == ("gpt", None)


@pytest.mark.parametrize(("held", "asked"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")])
@pytest.mark.parametrize("rows", [1, 127, 128, 300])
def test_a_tensor_is_transposed_whole_whatever_its_number_of_rows(rows, held, asked):
    tensor = np.random.default_rng(0).standard_normal((rows, 40)).astype(jnp.dtype(held))
    place = np.zeros((40, rows), jnp.dtype(asked))
    load._copy(place.T, tensor)
    assert place.tobytes() == tensor.T.astype(place.dtype).tobytes()


def with_reads(monkeypatch, wrap):
    """Loads have `wrap(name, read)` in place of each tensor's read from here on."""

    def opened(path):
        checkpoint = open_checkpoint(path)
        tensors = {name: tensor._replace(read=wrap(name, tensor.read)) for name, tensor in checkpoint.tensors.items()}
        return checkpoint._replace(tensors=tensors)

    monkeypatch.setattr(load, "open_checkpoint", opened)


@pytest.mark.parametrize(("mesh", "most"), [(None, 2), ("fsdp:8", 1)])
def test_two_tensors_are_read_at_a_time_and_one_on_a_mesh(tmp_path, monkeypatch, mesh, most):
    gpt2.write(tmp_path)
    at_work, seen, lock = set(), set(), threading.Lock()

    def wrap(name, read):
        def slow():
            with lock:
                at_work.add(name)
                seen.add(len(at_work))
            time.sleep(0.005)
            with lock:
                at_work.remove(name)
            return read()

        return slow

    with_reads(monkeypatch, wrap)
    from_pretrained(tmp_path, mesh=mesh)
    assert max(seen) == most


def test_of_two_tensors_that_fail_the_first_is_named_and_nothing_goes_on(tmp_path, monkeypatch):
    gpt2.write(tmp_path)
    first, second, *later = open_checkpoint(tmp_path).tensors
    begun, ended, second_failed = [], [], threading.Event()

    def wrap(name, read):
        def failing():
            begun.append(name)
            try:
                if name == second:
                    second_failed.set()
                    raise InputError(f"{name} is bad")
                if name == first:
                    assert second_failed.wait(10)
                    raise InputError(f"{name} is bad")
                time.sleep(0.05)
                return read()
            finally:
                ended.append(name)

        return failing

    with_reads(monkeypatch, wrap)
    with pytest.raises(InputError, match=f"^{re.escape(first)} is bad$"):
        from_pretrained(tmp_path)
    assert sorted(begun) == sorted(ended) and len(begun) < len(later)
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


FLOATS = np.zeros(gpt2.WIDTH, np.float32)
BAD = {
    "missing": ({"without": ("transformer.ln_f.bias",)}, r"lacks 'transformer\.ln_f\.bias'.*not whole"),
    "unexpected": ({"changed": {"transformer.ln_g.bias": FLOATS}}, r"has 'transformer\.ln_g\.bias', which .* no use for"),
    "a layer too many": ({"n_layer": gpt2.LAYERS - 1}, r"has 'transformer\.h\.2\..* and 9 more"),
    "more layers than tensors": ({"n_layer": 10**12}, r"says that there are 1000000000000 layers, but the checkpoint has 40 tensors"),
    "mis-shaped": (
        {"changed": {"transformer.ln_f.bias": np.zeros(9, np.float32)}},
        r"has transformer\.ln_f\.bias of shape \[9\]: expected \[8\]",
    ),
    "another vocabulary": ({"vocab_size": 21}, r"transformer\.wte\.weight of shape \[20, 8\]: expected \[21, 8\]"),
    "twice": ({"changed": {"ln_f.bias": FLOATS}}, r"has both '(transformer\.)?ln_f\.bias' and"),
    "integers": ({"changed": {"transformer.ln_f.bias": np.zeros(8, np.int8)}}, r"transformer\.ln_f\.bias of int8"),
    "tied and different": (
        {"changed": {"lm_head.weight": np.zeros((gpt2.VOCAB, gpt2.WIDTH), np.float32)}},
        r"lm_head\.weight and transformer\.wte\.weight, .* ties, with different values: set tie_word_embeddings",
    ),
    "no width": ({"n_embd": None}, r"config\.json has no key 'n_embd', which a gpt2 needs: add it"),
    "a width in words": ({"n_embd": "wide"}, r"config\.json has n_embd 'wide': expected a whole number"),
    "heads that do not divide": ({"n_head": 3}, r"n_embd 8, which its n_head 3 does not divide"),
    "unknown family": ({"model_type": "gpt3"}, r"model_type 'gpt3', no model of flaxllm: did you mean 'gpt2'"),
    "unknown architecture": ({"architectures": ["GPT2LMHead"]}, r"architecture 'GPT2LMHead', .* did you mean 'GPT2LMHeadModel'"),
    "architectures of no kind": ({"architectures": [3]}, r"the architecture 3, which is not known"),
    "unknown activation": ({"activation_function": "gelu_old"}, r"activation_function 'gelu_old', which is not known"),
    "an option not computed": ({"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx True, which flaxllm"),
    "quantized": ({"quantization_config": {"bits": 4}}, r"describes a quantized model"),
    "labels without a number": ({"id2label": {"one": "x"}}, r"id2label .* expected an object from class numbers"),
    "labels with a gap": ({"id2label": {"0": "x", "2": "y"}}, r"id2label with the numbers \[0, 2\]: expected 0 to 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_sentence_that_names_the_file(case, tmp_path):
    changes, message = BAD[case]
    gpt2.write(tmp_path, **changes)
    with pytest.raises(InputError, match=message) as caught:
        from_pretrained(tmp_path)
    assert "\n" not in str(caught.value) and re.search(re.escape(str(tmp_path)), str(caught.value))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"head": "masked-lm"}, "no head 'masked-lm': expected one of: base, causal-lm"),
        ({"head": "sequence-clasification"}, "did you mean 'sequence-classification'"),
        ({"dtype": "float33"}, "there is no dtype 'float33'"),
        ({"dtype": "int8"}, "cannot be int8: use a floating-point dtype"),
        ({"mesh": "rows:2"}, "unknown axis 'rows'"),
    ],
)
def test_what_cannot_be_asked_for_is_one_sentence(asked, message, tmp_path):
    gpt2.write(tmp_path)
    with pytest.raises(InputError, match=message):
        from_pretrained(tmp_path, **asked)
