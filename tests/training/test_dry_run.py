"""The dry run's numbers against states really placed, programs really compiled, and the literature."""

import io
from functools import partial

import jax
import numpy as np
import pytest
from rich.console import Console

import flaxllm
from flaxllm import data, nn
from flaxllm.errors import InputError
from flaxllm.parallel import make_mesh, mesh_placement
from flaxllm.training.dry_run import dry_run, make_plan
from flaxllm.training.setup import make_context, make_recipe
from flaxllm.training.state import make_state
from flaxllm.training.step import train_step


def make_config(**changes):
    config = flaxllm.default_config(
        "gpt2-124m", vocab_size=300, max_len=64, num_layers=4, num_heads=4, head_dim=16, d_model=64, d_mlp=256
    )
    config.model.vocab_size = 300
    config.data.update(source="/nowhere", max_len=64, batch_size=32)
    config.update(changes)
    return config


@pytest.mark.parametrize("mesh", ["data:8", "fsdp:8", "data:2,fsdp:2,model:2", "fsdp:2,sequence:4"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_the_state_takes_what_a_placed_one_takes(optimizer, mesh):
    config = make_config(mesh=mesh)
    config.optimizer.name = optimizer
    recipe = make_recipe(config, 300)
    shapes = jax.eval_shape(lambda: make_state(recipe.model.init, recipe.optimizer, 0))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    state = mesh_placement(make_mesh(mesh), recipe.trained.specs).place(zeros)
    first = jax.devices()[0]

    def on_first(tree) -> int:
        shards = [shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device == first]
        return sum(shard.data.nbytes for shard in shards)

    memory = make_plan(config).memory
    assert memory["parameters"] == memory["gradients"] == on_first(state.params)
    assert memory["optimizer state"] == on_first(state.opt_state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "micro_batches", "remat", "max_logit_bytes"),
    [
        ("data:2,fsdp:2,model:2", 2, None, 2**30),
        ("data:4,model:2", 1, "full", 2**16),
    ],
)
def test_a_step_takes_about_what_the_compiler_says(mesh, micro_batches, remat, max_logit_bytes, optimized):
    config = make_config(mesh=mesh, remat=remat)
    config.data.batch_size = 128
    config.train.micro_batches = micro_batches
    config.objective.max_logit_bytes = max_logit_bytes
    recipe = make_recipe(config, 300)
    placement = mesh_placement(make_mesh(mesh), recipe.trained.specs)
    step = partial(
        train_step, objective=recipe.objective, optimizer=recipe.optimizer, ctx=make_context(config, placement.rules),
        micro_batches=micro_batches, reduce=placement.reduce,
    )  # fmt: skip
    state = placement.abstract(jax.eval_shape(lambda: make_state(recipe.model.init, recipe.optimizer, 0)))
    whole = np.zeros((128, 64), np.int32)
    batch = placement.batch({
        "tokens": whole, "targets": whole, "weights": whole.astype(np.float32), "segments": whole, "positions": whole,
        "row": np.arange(128, dtype=np.int32),
    })  # fmt: skip
    compiled = placement.compile(step, returns_state=True).lower(state, batch).compile()
    memory = make_plan(config).memory
    working = sum(memory.values()) - memory["parameters"] - memory["optimizer state"]
    assert working == pytest.approx(compiled.memory_analysis().temp_size_in_bytes, rel=0.2)


def test_gpt3_on_four_thousand_devices_is_planned_without_allocating():
    config = flaxllm.default_config("gpt3-175b")
    config.data.update(source="/nowhere", max_len=2048, batch_size=1536)
    config.model.vocab_size = 50304
    config.mesh = "data:8,fsdp:64,model:8"
    before = {id(x) for x in jax.live_arrays()}
    plan = make_plan(config)
    assert sum(x.nbytes for x in jax.live_arrays() if id(x) not in before) < 2**20
    parameters = sum(param.size for param in plan.specs.values())
    assert parameters == pytest.approx(175e9, rel=0.01)
    assert plan.mesh.size == 4096 and plan.rows == 3
    # Biases and norms are split one way only: a little more than an even share.
    assert 1.0 <= plan.memory["parameters"] / (4 * parameters / 512) < 1.01
    assert plan.memory["optimizer state"] == pytest.approx(2 * plan.memory["parameters"], abs=100)


def test_operations_are_those_of_the_literature():
    """PaLM (Chowdhery et al. 2022), appendix B: 6 N + 12 layers heads head_dim length, for each token."""
    config = flaxllm.default_config("gpt2-124m")
    config.data.update(max_len=1024, batch_size=8)
    config.model.vocab_size = 50257
    plan = make_plan(config)
    used = sum(param.size for path, param in plan.specs.items() if path != "embedding/positions")
    assert plan.flops == pytest.approx(8 * 1024 * (6 * used + 12 * 12 * 768 * 1024), rel=0.002)
    config.remat = "full"
    assert make_plan(config).flops / plan.flops == pytest.approx(4 / 3)


def test_pmap_holds_the_whole_state_on_each_device_here():
    config = make_config(placement="pmap", mesh="fsdp:8")
    plan = make_plan(config)
    assert plan.memory["parameters"] == 4 * nn.count(make_recipe(config, 300).trained.specs)
    assert plan.rows == 32 // jax.device_count()


def test_parameters_are_saved_for_the_backward_pass_only_where_they_are_copied():
    config = make_config(mesh="fsdp:8")
    config.data.update(batch_size=8, max_len=2)  # hardly any activations
    single = make_plan(config)
    config.compute_dtype = "bfloat16"
    half = make_plan(config)
    matrices = sum(p.size for path, p in single.specs.items() if path.endswith("kernel") or path == "embedding/tokens")
    activations = single.memory["saved activations"]  # less than that in bfloat16
    assert activations < single.memory["parameters"] / 2
    assert half.memory["saved activations"] - activations < 2 * matrices / 8 < half.memory["saved activations"]


def test_dropout_is_counted():
    config = make_config()
    without = make_plan(config).memory["saved activations"]
    config.model.dropout = 0.1
    masks = 2 * 4 * 4 * 64 * 64  # two of [rows, length, d_model] a layer, one byte each
    assert make_plan(config).memory["saved activations"] >= without + masks


@pytest.mark.parametrize(
    ("tokenizer", "in_data", "in_model", "expected"),
    [("bytes", None, None, 257), ("bpe", 1000, None, 1000), ("bpe", 1000, 1024, 1024), ("chars", None, 99, 99)],
)
def test_no_text_is_read_where_the_vocabulary_is_known(tokenizer, in_data, in_model, expected):
    config = make_config()
    config.data.update(tokenizer=tokenizer, vocab_size=in_data)
    config.model.vocab_size = in_model
    assert make_plan(config).specs["embedding/tokens"].shape[0] == expected


def test_the_text_is_read_where_it_makes_the_vocabulary(tmp_path):
    (tmp_path / "text").write_text("abcab")
    config = make_config()
    config.model.vocab_size = None
    config.data.update(tokenizer="chars", source=str(tmp_path / "text"))
    assert make_plan(config).specs["embedding/tokens"].shape[0] == data.char_level(["abc"]).vocab_size


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mesh": "data:3"}, "data.batch_size 32 cannot be split over 3 devices: use a multiple of 3"),
        ({"mesh": "data:-1,model:3"}, "needs 3 devices or a multiple, there are 8"),
        ({"mesh": "dta:8"}, "unknown axis 'dta': did you mean 'data'"),
        ({"placement": "pmp"}, "unknown placement 'pmp': did you mean 'pmap'"),
        ({"compute_dtype": "bfloat"}, "unknown compute_dtype 'bfloat': did you mean 'bfloat16'"),
        ({"remat": "ful"}, "unknown remat 'ful': did you mean 'full'"),
        ({"precision": "highst"}, "unknown precision 'highst': did you mean 'highest'"),
        ({"attention": "einsm"}, "unknown attention 'einsm': did you mean 'einsum'"),
        ({"train": {"num_steps": 0}}, "train.num_steps is 0"),
        ({"train": {"micro_batches": 8}, "placement": "pmap"}, "micro_batches 8 cannot cut the 4 rows that pmap gives"),
    ],
)
def test_what_cannot_be_is_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        make_plan(make_config(**changes))


def printed(config, **console) -> list[str]:
    file = io.StringIO()
    dry_run(config, Console(file=file, highlight=False, **console))
    return file.getvalue().splitlines()


def test_in_a_pipe_every_tensor_has_one_plain_line():
    config = make_config(mesh="data:2,fsdp:2,model:2")
    lines = printed(config, width=40)
    assert all(line.isascii() for line in lines)
    (line,) = [line for line in lines if line.startswith("layers/mlp/up/kernel")]
    assert line.split("  ")[0] == "layers/mlp/up/kernel"
    for part in ("layers 4, embed 64/fsdp, mlp 256/model", "65,536", "16,384"):
        assert part in line
    total = nn.count(make_recipe(config, 300).trained.specs)
    assert any(line.startswith("all") and f"{total:,}" in line for line in lines)


def test_on_a_narrow_terminal_nothing_is_cut_off():
    config = make_config(mesh="data:2,fsdp:2,model:2")
    lines = printed(config, width=80, force_terminal=True, color_system=None)
    assert all(len(line) <= 80 and "…" not in line for line in lines)
    words = {word for line in lines for word in line.split()}
    assert words >= set(make_plan(config).specs) and words >= {"head_dim", "64/fsdp,", "256/model", "65,536", "16,384"}


@pytest.mark.parametrize(("max_logit_bytes", "expected"), [(2**30, 4 * 4 * 64 * 300), (2**16, 2**16)])
def test_logits_are_those_of_a_chunk(max_logit_bytes, expected):
    config = make_config(mesh="data:8")
    config.objective.max_logit_bytes = max_logit_bytes
    assert make_plan(config).logits == expected


def test_what_is_traced_is_one_devices_share():
    """Twice as many devices along `model` halve what the heads and hidden units keep, and nothing else."""
    whole, halved = (make_plan(make_config(mesh=f"data:1,model:{n}")).memory["saved activations"] for n in (1, 2))
    rows, length, layers = 32, 64, 4
    split = layers * 4 * rows * length * (3 * 64 + 64 + 2 * 256 + 4 * length)  # q k v, mixed, two of the mlp, weights
    assert whole - halved == split // 2

