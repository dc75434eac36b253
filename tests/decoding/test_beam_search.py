"""Beam search against one written out plainly with whole forward passes, and what is promised beside its texts."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoding.tiny import MODELS, VOCAB, model_and_params, parameters
from flaxllm.decoding import generate
from flaxllm.decoding.beam_search import beam_search
from flaxllm.decoding.reading import has_encoder
from flaxllm.errors import InputError

MODULE = sys.modules["flaxllm.decoding.beam_search"]  # whose name in its package is the function's

PROMPTS = [[3, 14, 15, 9, 2, 6], [5, 35], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6]]
NEW, ENDS = 7, (9, 37)


def _next_logprobs(name: str, prompt: list[int]):
    """A function from all texts of one length to the log probabilities of what is next, by a whole pass over each."""
    model = MODELS[name]
    begin = [model.config.decoder_start_token] if has_encoder(model) else prompt
    source = [jnp.array([prompt])] if has_encoder(model) else []

    @jax.jit
    def forward(tokens):
        sources = [jnp.repeat(x, len(tokens), axis=0) for x in source]
        return model.unembed(parameters(name), model.apply(parameters(name), *sources, tokens).hidden)

    def logprobs(texts: list[tuple[int, ...]]) -> np.ndarray:
        rows = np.zeros((8, len(begin) + NEW), np.int32)
        for row, text in enumerate(texts):
            rows[row, : len(begin) + len(text)] = [*begin, *text]
        logits = np.asarray(forward(rows), np.float64)[: len(texts), len(begin) + len(texts[0]) - 1]
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    return logprobs


def _plain_beam_search(logprobs, num_beams, penalty, early_stopping, ends=ENDS, new=NEW):
    """Lists and sorting. A finished text is counted if it is among the best `num_beams` of its step."""
    beams, finished = [(0.0, ())], []
    for length in range(1, new + 1):
        each = logprobs([text for _, text in beams])
        steps = [(score + each[b, t], (*text, t)) for b, (score, text) in enumerate(beams) for t in range(VOCAB)]
        steps = sorted(steps, reverse=True)[: (1 + len(ends)) * num_beams]
        over = [length == new or text[-1] in ends for _, text in steps]
        done = [(score / length**penalty, text) for (score, text), o in zip(steps[:num_beams], over) if o]
        finished = sorted(finished + done, reverse=True)[:num_beams]
        beams = [step for step, o in zip(steps, over) if not o][:num_beams]
        if not beams or len(finished) == num_beams and early_stopping is True:
            break
        hoped = new if early_stopping == "never" and penalty > 0 else length
        if len(finished) == num_beams and beams[0][0] / hoped**penalty <= finished[-1][0]:
            break
    return finished


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_texts_and_scores_are_those_of_a_plain_search(name):
    model, params = model_and_params(name)
    found = set()
    plain = [_next_logprobs(name, prompt) for prompt in PROMPTS]
    for penalty in (-1.0, 0.5, 3.0):
        for early_stopping in (False, True, "never"):
            out = beam_search(
                model, params, PROMPTS, NEW, num_beams=3, n=3, length_penalty=penalty, early_stopping=early_stopping,
                stop_tokens=ENDS,
            )  # fmt: skip
            expected = [text for logprobs in plain for text in _plain_beam_search(logprobs, 3, penalty, early_stopping)]
            assert out.rows() == [list(text) for _, text in expected], (penalty, early_stopping)
            np.testing.assert_allclose(out.scores, [score for score, _ in expected], rtol=2e-5, atol=1e-5)
            ended = tuple("stop" if text[-1] in ENDS else "length" for _, text in expected)
            assert out.finish_reasons == ended
            found.add(str(out.rows()))
    assert len(found) >= 3  # the rules matter here


def test_log_probabilities_are_the_models_own():
    model, params = model_and_params("llama")
    out = generate(model, params, PROMPTS, NEW, num_beams=3, length_penalty=0.0, stop_tokens=ENDS)
    np.testing.assert_allclose(out.logprobs.sum(1), out.scores, atol=1e-4)
    assert (out.logprobs[np.arange(out.tokens.shape[1]) >= out.lengths[:, None]] == 0).all()
    biased = generate(model, params, PROMPTS, NEW, num_beams=3, length_penalty=0.0, stop_tokens=ENDS, logit_bias={30: 50.0})
    assert (biased.tokens == 30).all() and (biased.logprobs < 0).all() and (biased.scores > 40 * NEW).all()


def test_a_prompt_is_searched_the_same_in_any_company_and_with_values_of_its_own():
    model, params = model_and_params("llama")
    options = dict(num_beams=3, n=2, stop_tokens=ENDS)
    penalties = [1.0, 1.8, 3.0]
    together = generate(model, params, PROMPTS, NEW, repetition_penalty=penalties, **options)
    order = [2, 0, 1]
    others = generate(
        model, params, [PROMPTS[i] for i in order], NEW, repetition_penalty=[penalties[i] for i in order], **options
    )
    for place, i in enumerate(order):
        assert others.rows()[2 * place : 2 * place + 2] == together.rows()[2 * i : 2 * i + 2]
    plain = generate(model, params, PROMPTS, NEW, **options)
    assert plain.rows()[:2] == together.rows()[:2] and plain.rows()[2:] != together.rows()[2:]


def test_it_stops_when_nothing_can_change(monkeypatch):
    model, params = model_and_params("llama")
    calls, step = [], MODULE.step
    monkeypatch.setattr(MODULE, "step", lambda *args: calls.append(1) or step(*args))
    options = dict(num_beams=3, stop_tokens=ENDS, early_stopping=True, logit_bias={9: 40.0, 37: 39.0})
    out = generate(model, params, PROMPTS, 30, **options)
    assert out.lengths.tolist() == [1, 1, 1]
    assert len(calls) < 6


def test_other_values_compile_nothing():
    model, params = model_and_params("llama")
    generate(model, params, PROMPTS, NEW, num_beams=3, stop_tokens=ENDS)
    size = MODULE.step._cache_size()
    generate(model, params, [[1] * 12, [2], [3, 4]], NEW - 1, num_beams=3, n=3, stop_tokens=ENDS, length_penalty=0.3)
    generate(model, params, PROMPTS, NEW, num_beams=3, stop_tokens=ENDS, early_stopping="never", length_penalty=-2)
    generate(model, params, PROMPTS, NEW, num_beams=3, stop_tokens=ENDS, early_stopping=True)
    assert MODULE.step._cache_size() == size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(n=5), "4 new tokens and the 5 best texts of 4 beams"),
        (dict(num_beams=0), "the 1 best texts of 0 beams"),
        (dict(max_new_tokens=0), "asked for 0 new tokens"),
        (dict(length_penalty=np.inf), "length_penalty=inf: expected a finite number"),
        (dict(temperature=0.7), "temperature=0.7: beam search draws nothing"),
        (dict(top_p=0.5), "beam search has no option 'top_p'"),
        (dict(key=jax.random.PRNGKey(0)), "beam search has no option 'key'"),
        (dict(on_token=print), "beam search has no option 'on_token'"),
        (dict(repetition_penalty=-1.0), "repetition_penalty=-1.0: expected a number above 0"),
    ],
)
def test_what_cannot_be_is_said(change, message):
    model, params = model_and_params("llama")
    with pytest.raises(InputError, match=message):
        generate(model, params, **dict(tokens=[[1, 2]], max_new_tokens=4, num_beams=4) | change)
