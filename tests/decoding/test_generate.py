"""Writing after prompts: against a whole forward pass for every token, and what must not change a sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding.tiny import MODELS, VOCAB, character_tokenizer, model_and_params, parameters
from flaxllm.decoding import engine, generate
from flaxllm.decoding.reading import has_encoder
from flaxllm.errors import InputError
from flaxllm.models import build

PROMPTS = [[3, 14, 15, 9, 2, 6], [5, 35], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6]]
KEY = jax.random.PRNGKey(0)


def _greedy(name: str, prompt: list[int], count: int) -> list[int]:
    """Each next token by a whole forward pass over all before it, with no cache."""
    model, params = MODELS[name], parameters(name)
    target = [model.config.decoder_start_token] if has_encoder(model) else list(prompt)
    begin, inputs = len(target), [jnp.array([prompt])] if has_encoder(model) else []
    width = begin + count
    forward = jax.jit(lambda tokens: model.unembed(params, model.apply(params, *inputs, tokens).hidden))
    for _ in range(count):
        padded = target + [0] * (width - len(target))
        target.append(int(forward(jnp.array([padded]))[0, len(target) - 1].argmax()))
    return target[begin:]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_greedy_takes_what_a_whole_forward_pass_takes(name):
    model, params = model_and_params(name)
    out = generate(model, params, PROMPTS, max_new_tokens=20, temperature=0, stop_tokens=())
    assert out.rows() == [_greedy(name, prompt, 20) for prompt in PROMPTS]
    assert out.finish_reasons == ("length",) * 3


def test_a_model_of_few_positions_uses_all_of_them():
    """Its prompts are filled up beyond its table of positions."""
    model = build("gpt", vars(MODELS["gpt"].config) | {"max_len": 20})
    params = model.init(KEY)
    prompts = [list(range(1, 18)), [4, 5]]
    out = generate(model, params, prompts, 3, temperature=0)
    rows = jnp.array([prompt + row for prompt, row in zip(prompts[:1], out.rows())])
    logits = model.unembed(params, model.apply(params, rows).hidden)
    assert out.rows()[0] == logits[0, 16:19].argmax(-1).tolist()
    assert np.isfinite(out.logprobs).all()


def test_plain_parameters_do_too():
    model, params = model_and_params("llama")
    by_prepared, by_plain = (generate(model, p, PROMPTS, 8, temperature=0) for p in (params, parameters("llama")))
    assert by_prepared.rows() == by_plain.rows()


def test_padding_on_either_side_changes_nothing():
    model, params = model_and_params("gpt")
    rows = generate(model, params, PROMPTS, 8, temperature=0).rows()
    width = max(map(len, PROMPTS))
    for side in ("left", "right"):
        tokens, valid = np.zeros((3, width), int), np.zeros((3, width), bool)
        for row, prompt in enumerate(PROMPTS):
            place = slice(0, len(prompt)) if side == "right" else slice(width - len(prompt), width)
            tokens[row, place], valid[row, place] = prompt, True
        assert generate(model, params, tokens, 8, valid=valid, temperature=0).rows() == rows


def test_a_long_prompt_is_read_in_chunks(monkeypatch):
    model, params = model_and_params("llama-windowed")
    prompt = np.random.default_rng(0).integers(0, VOCAB, 75).tolist()
    whole = generate(model, params, [prompt, prompt[:20]], 6, temperature=0).rows()
    monkeypatch.setattr(engine, "CHUNK", 32)
    assert generate(model, params, [prompt, prompt[:20]], 6, temperature=0).rows() == whole
    assert whole[0] == _greedy("llama-windowed", prompt, 6)


def test_a_sequence_does_not_depend_on_its_batch():
    model, params = model_and_params("llama")
    options = dict(temperature=1.5, top_p=0.9, presence_penalty=0.5)
    together = generate(model, params, PROMPTS, 12, seeds=[7, 8, 9], **options).rows()
    alone = [generate(model, params, [p], 12, seeds=[s], **options).rows()[0] for p, s in zip(PROMPTS, (7, 8, 9))]
    assert together == alone
    assert generate(model, params, PROMPTS[::-1], 12, seeds=[9, 8, 7], **options).rows() == together[::-1]


def test_several_samples_of_a_prompt_stand_together():
    model, params = model_and_params("t5")
    out = generate(model, params, PROMPTS, 10, n=2, seeds=[1, 2, 3, 4, 5, 6])
    single = generate(model, params, [p for p in PROMPTS for _ in range(2)], 10, seeds=[1, 2, 3, 4, 5, 6])
    assert out.rows() == single.rows()
    assert len(set(map(tuple, out.rows()))) > 3


def test_a_key_gives_each_sequence_its_own_draws():
    model, params = model_and_params("gpt")
    out = generate(model, params, [PROMPTS[0]] * 4, 12, key=KEY)
    assert len(set(map(tuple, out.rows()))) == 4
    assert generate(model, params, [PROMPTS[0]] * 4, 12, key=KEY).rows() == out.rows()
    assert generate(model, params, [PROMPTS[0]] * 2, 12, key=KEY).rows() == out.rows()[:2]


def test_a_sequence_ends_with_its_end_token():
    model, params = model_and_params("gpt")
    whole = generate(model, params, PROMPTS, 20, seeds=[1, 2, 3]).rows()
    end = whole[1][4]
    out = generate(model, params, PROMPTS, 20, seeds=[1, 2, 3], stop_tokens=[end])
    expected = [row[: row.index(end) + 1] if end in row else row for row in whole]
    assert out.rows() == expected
    assert out.finish_reasons == tuple("stop" if end in row else "length" for row in whole)
    assert out.tokens.shape == (3, max(map(len, expected)))
    assert (out.tokens[1, len(expected[1]) :] == end).all()


def test_tokens_are_told_as_they_come():
    model, params = model_and_params("gpt")
    told = []
    out = generate(
        model, params, PROMPTS, 6, temperature=0, stop_tokens=(), on_token=lambda sequence, token: told.append((sequence, token))
    )
    assert [[token for sequence, token in told if sequence == row] for row in range(3)] == out.rows()


def test_a_text_ends_before_its_stop_string():
    model, params = model_and_params("gpt")
    tokenizer = character_tokenizer()
    options = dict(seeds=[1, 2, 3], stop_tokens=(), tokenizer=tokenizer)
    whole = generate(model, params, PROMPTS, 20, **options)
    assert whole.texts == tuple(tokenizer.decode(row, skip_special=True) for row in whole.rows())
    stop, said = whole.texts[1][6:9], [""] * 3

    def on_text(sequence: int, piece: str) -> None:
        said[sequence] += piece

    out = generate(model, params, PROMPTS, 20, stop=[stop, "no such"], on_text=on_text, **options)
    assert out.texts == tuple(text.partition(stop)[0] for text in whole.texts) == tuple(said)
    row = whole.rows()[1]
    ends = next(end for end in range(len(row)) if stop in tokenizer.decode(row[:end], skip_special=True))
    assert out.finish_reasons[1] == "stop" and out.rows()[1] == row[:ends]


def test_log_probabilities_are_the_models_own():
    model, params = model_and_params("gpt")
    out = generate(model, params, PROMPTS[:1], 5, seeds=[3], temperature=0.5, top_k=3)
    row = PROMPTS[0] + out.rows()[0]
    logits = np.asarray(model.unembed(parameters("gpt"), model.apply(parameters("gpt"), jnp.array([row])).hidden), np.float64)
    logprobs = logits[0] - np.log(np.exp(logits[0]).sum(-1, keepdims=True))
    begin = len(PROMPTS[0])
    expected = [logprobs[place - 1, row[place]] for place in range(begin, len(row))]
    np.testing.assert_allclose(out.logprobs[0], expected, atol=1e-5)


def test_other_values_compile_nothing():
    model, params = model_and_params("gpt")
    generate(model, params, [[1] * 17], 12, seeds=[1], temperature=0.7, top_p=0.9)
    sizes = [function._cache_size() for function in (engine.read, engine.write, engine.step)]
    generate(model, params, [[2] * 20], 12, seeds=[2], temperature=1.1, top_p=0.5)
    generate(model, params, [[3] * 18], 10, key=KEY, temperature=0, top_p=0.3)
    assert [function._cache_size() for function in (engine.read, engine.write, engine.step)] == sizes


def test_buckets_waste_no_more_than_a_quarter():
    for length in range(1, 5000):
        size = engine.bucket(length)
        assert length <= size and (size <= 1.25 * length or size <= 64)
        assert engine.bucket(size) == size
    assert len({engine.bucket(length) for length in range(1, 4097)}) < 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(tokens=[[]]), "prompt 0 is empty"),
        (dict(tokens=[]), "got no prompt"),
        (dict(tokens=[[1], [2, 50]]), "prompt 1 has the token 50, and this model's vocabulary has 50"),
        (dict(tokens=[[True]]), "prompt 0 is no row of token ids"),
        (dict(max_new_tokens=0), "was asked for 0 new tokens"),
        (dict(max_new_tokens=64), "a prompt of 2 tokens and 64 new ones are more than the 64 positions"),
        (dict(seeds=None), "needs seeds"),
        (dict(key=KEY), "both a key and seeds"),
        (dict(stop="."), "needs the tokenizer"),
        (dict(top_q=0.5), "generate has no option 'top_q': did you mean 'top_p'"),
        (dict(length_penalty=2.0), "generate has no option 'length_penalty'"),
        (dict(top_p=1.5), "top_p=1.5: expected a number from 0 to 1"),
    ],
)
def test_what_cannot_be_is_said(change, message):
    model, params = model_and_params("gpt")
    arguments = dict(tokens=[[1, 2]], max_new_tokens=4, seeds=[1]) | change
    with pytest.raises(InputError, match=message):
        generate(model, params, **arguments)


def test_a_classifier_writes_nothing():
    model = build("gpt", {"num_layers": 2}, head="sequence-classification")
    with pytest.raises(InputError, match="writes no text"):
        generate(model, {}, [[1]], 4, temperature=0)
