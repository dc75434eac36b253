"""Writing with a draft: the model's own distribution, whatever the draft guesses, and generate's results in every respect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import chisquare

from decoding.tiny import MODELS, VOCAB, model_and_params, prepared
from flaxllm.data.tokenizer_makers import char_level
from flaxllm.decoding import generate, prepare, speculative
from flaxllm.errors import InputError
from flaxllm.models import build

PROMPTS = [[3, 14, 15, 9, 2, 6], [5, 35], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6], [1, 2, 3]]
NUM_NEW, END = 18, 46
DRAWN = dict(
    stop_tokens=[END], seeds=[7, 8, 9, 10], temperature=[1.5, 0.7, 1.0, 0.0], top_p=0.9, top_k=[0, 5, 3, 7],
    presence_penalty=0.5, frequency_penalty=[1.5, 1.0, 2.0, 1.2], no_repeat_ngram_size=3,
)  # fmt: skip
GREEDY = DRAWN | dict(temperature=0)  # which compiles nothing more


def _near(name: str, distance: float = 0.06) -> tuple:
    """A draft that is often right: the model with its weights a little off."""
    leaves, shape = jax.tree.flatten(prepared(name))
    keys = jax.random.split(jax.random.PRNGKey(1), len(leaves))
    return MODELS[name], shape.unflatten(x + distance * x.std() * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt-banded", "t5"])
def test_greedy_writes_what_the_model_alone_writes(name):
    model, params = model_and_params(name)
    alone = generate(model, params, PROMPTS, NUM_NEW, **GREEDY)
    near = generate(model, params, PROMPTS, NUM_NEW, draft=_near(name), **GREEDY)
    assert near.rows() == alone.rows() and 0.3 < near.accepted < 0.95
    np.testing.assert_allclose(near.logprobs, alone.logprobs, atol=1e-5)
    wrong = generate(model, params, PROMPTS, NUM_NEW, draft=(model, model.init(jax.random.PRNGKey(99))), **GREEDY)
    assert wrong.rows() == alone.rows() and wrong.accepted < 0.3
    assert alone.accepted is None and len(set(sum(alone.rows(), []))) > 10


@pytest.mark.parametrize("name", ["gpt-banded", "t5"])
def test_with_itself_as_draft_a_seed_writes_the_same_text(name):
    model, params = model_and_params(name)
    out = generate(model, params, PROMPTS, NUM_NEW, draft=(model, params), **DRAWN)
    assert out.rows() == generate(model, params, PROMPTS, NUM_NEW, **DRAWN).rows()
    assert out.accepted == 1


def test_a_sequence_does_not_depend_on_its_batch():
    model, params = model_and_params("gpt-banded")

    def write(order: list[int]) -> list[list[int]]:
        each = ("seeds", "temperature", "top_k", "frequency_penalty")
        options = DRAWN | {name: [DRAWN[name][i] for i in order] for name in each}
        return generate(model, params, [PROMPTS[i] for i in order], NUM_NEW, draft=_near("gpt-banded"), **options).rows()

    rows = write([0, 1, 2, 3])
    for order in ([3, 2, 1, 0], [2, 0, 0, 1]):
        assert write(order) == [rows[i] for i in order]


def test_all_is_told_as_without_a_draft():
    model, params = model_and_params("gpt-banded")
    tokenizer = char_level(["".join(chr(ord("A") + token) for token in range(VOCAB))])
    stop = tokenizer.decode(generate(model, params, PROMPTS, NUM_NEW, **GREEDY).rows()[1][3:5])

    def write(draft: tuple | None):
        told = []
        out = generate(
            model, params, PROMPTS, NUM_NEW, draft=draft, stop=stop, tokenizer=tokenizer,
            on_token=lambda *token: told.append(token), on_text=lambda *piece: told.append(piece), **GREEDY,
        )  # fmt: skip
        return out, told

    (alone, told), (drafted, told_drafted) = write(None), write(_near("gpt-banded"))
    assert told_drafted == told
    np.testing.assert_array_equal(drafted.tokens, alone.tokens)
    np.testing.assert_array_equal(drafted.lengths, alone.lengths)
    assert drafted.finish_reasons == alone.finish_reasons and set(alone.finish_reasons) == {"stop", "length"}
    assert drafted.texts == alone.texts and alone.lengths[1] == 5


# A vocabulary so small that every text of three tokens can be counted.

SMALL, ROWS, PROMPT = 6, 8192, [1, 4, 2, 2]
_SIZES = dict(vocab_size=SMALL, num_layers=1, num_heads=2, head_dim=4, d_model=8, d_mlp=8, init_stddev=0.4)
TARGET = build("llama", _SIZES | dict(num_kv_heads=1, window=3))
DRAFT = build("gpt", _SIZES | dict(max_len=16))
OPTIONS = dict(temperature=1.3, top_p=0.95, frequency_penalty=1.5)


def _exact(model, params) -> np.ndarray:
    """The probability of each third token after each two, `[SMALL, SMALL, SMALL]`, and of the earlier ones, by definition."""
    pairs = np.stack(np.meshgrid(np.arange(SMALL), np.arange(SMALL), indexing="ij"), -1).reshape(-1, 2)
    texts = np.concatenate([np.tile(PROMPT, (len(pairs), 1)), pairs], 1)
    logits = jax.jit(lambda tokens: model.unembed(params, model.apply(params, tokens).hidden))(jnp.asarray(texts))
    logits = np.asarray(logits, np.float64)[:, len(PROMPT) - 1 :]
    for place in range(3):
        for written in range(place):
            logits[np.arange(len(pairs)), place, pairs[:, written]] -= OPTIONS["frequency_penalty"]
    p = softmax(logits / OPTIONS["temperature"], -1)
    order = np.argsort(-p, -1)
    ordered = np.take_along_axis(p, order, -1)
    kept = ordered.cumsum(-1) - ordered < OPTIONS["top_p"]
    p = np.where(np.take_along_axis(kept, np.argsort(order, -1), -1), p, 0)
    return (p / p.sum(-1, keepdims=True)).reshape(SMALL, SMALL, 3, SMALL)


@pytest.fixture(scope="module")
def small():
    params = prepare(TARGET, TARGET.init(jax.random.PRNGKey(3))), prepare(DRAFT, DRAFT.init(jax.random.PRNGKey(4)))

    def write(num_new: int):
        return generate(
            TARGET, params[0], [PROMPT], num_new, n=ROWS, seeds=list(range(ROWS)), stop_tokens=(), draft=(DRAFT, params[1]),
            num_draft_tokens=2, **OPTIONS,
        )  # fmt: skip

    return write, _exact(TARGET, params[0]), _exact(DRAFT, params[1])


def test_what_is_written_has_the_models_distribution(small):
    write, p, q = small
    out = write(3)
    counts = np.bincount(out.tokens @ [SMALL**2, SMALL, 1], minlength=SMALL**3)
    first, second, third = p[0, 0, 0], p[:, 0, 1], p[:, :, 2]
    expected = ROWS * (first[:, None, None] * second[:, :, None] * third).reshape(-1)
    rare = expected < 5
    assert not counts[expected == 0].any() and rare.sum() < SMALL**3
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    assert len(counts) > 30
    assert chisquare(counts, expected).pvalue > 0.01


def test_a_guess_is_accepted_as_often_as_it_should_be(small):
    """The chance is the sum of `min(p, q)` (Leviathan et al. 2023, theorem 3.5)."""
    write, p, q = small
    chance = np.minimum(p[0, 0, 0], q[0, 0, 0]).sum()
    assert 0.2 < chance < 0.9
    assert abs(write(1).accepted - chance) < 4 * (chance * (1 - chance) / ROWS) ** 0.5


def test_other_values_compile_nothing():
    model, params = model_and_params("gpt-banded")
    draft, steps = _near("gpt-banded"), (speculative.guess, speculative.check)
    generate(model, params, PROMPTS, NUM_NEW, draft=draft, **DRAWN)
    sizes = [step._cache_size() for step in steps]
    generate(model, params, PROMPTS[::-1], NUM_NEW - 1, draft=draft, **DRAWN | dict(seeds=[1, 2, 3, 4], temperature=0.3))
    assert [step._cache_size() for step in steps] == sizes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(draft=(MODELS["t5"], {})), "t5 model cannot be the draft of a gpt model"),
        (dict(draft=(DRAFT, {})), f"a vocabulary of {SMALL} tokens and the model one of {VOCAB}"),
        (dict(draft=(build("gpt", {"num_layers": 2}, head="sequence-classification"), {})), "which writes no text"),
        (dict(num_draft_tokens=0), "num_draft_tokens=0: expected 1 or more"),
        (dict(max_new_tokens=60), "a prompt of 2 tokens and 60 new ones and 4 guesses are more than the 64 positions"),
        (dict(num_beams=2), "no option 'draft'"),
    ],
)
def test_what_does_not_go_together_is_said(change, message):
    model, params = model_and_params("gpt")
    arguments = dict(tokens=[[1, 2]], max_new_tokens=4, temperature=0, draft=(model, params)) | change
    with pytest.raises(InputError, match=message):
        generate(model, params, **arguments)
