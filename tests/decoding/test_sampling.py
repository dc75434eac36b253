"""Each processor against its definition in float64, and the draws against the probabilities that follow from it."""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from scipy.stats import chisquare

from flaxllm.decoding import processors
from flaxllm.decoding.sampling import PROCESSORS, History, choose, process, sampling
from flaxllm.errors import InputError

VOCAB, BATCH, PROMPT, WIDTH = 211, 6, 3, 24
ENDS = (7, 40)
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(scale=3, size=(BATCH, VOCAB)).astype(np.float32)
LENGTHS = np.array([3, 5, 8, 13, 20, 24])
TOKENS = RANDOM.integers(0, 9, (BATCH, WIDTH))

# Settings of each processor: a value for each row, the first one neutral.
SETTINGS = {
    "logit_bias": dict(logit_bias=[None, {0: 2.5}, {1: -1.0, 210: 4.0}, {5: -np.inf}, {2: 100.0}, {3: -100.0, 4: 1.0, 6: 1.0}]),
    "repetition_penalty": dict(repetition_penalty=[1.0, 1.3, 0.7, 2.0, 1.1, 5.0]),
    "presence_penalty": dict(presence_penalty=[0.0, 0.5, -0.5, 2.0, -2.0, 1.0]),
    "frequency_penalty": dict(frequency_penalty=[0.0, 0.5, -0.5, 2.0, -2.0, 1.0]),
    "no_repeat_ngram_size": dict(no_repeat_ngram_size=2),
    "min_new_tokens": dict(min_new_tokens=[0, 3, 5, 11, 17, 99]),
    "temperature": dict(temperature=[1.0, 0.5, 2.0, 0.01, 1.5, 0.9]),
    "top_k": dict(top_k=[0, 1, 5, 50, 210, 10**12]),
    "top_p": dict(top_p=[1.0, 0.0, 1e-9, 0.5, 0.9, 0.999]),
    "min_p": dict(min_p=[0.0, 0.01, 0.1, 0.5, 0.9, 1.0]),
    "typical_p": dict(typical_p=[1.0, 1e-9, 0.2, 0.5, 0.9, 0.99]),
}
ALL = {key: value for case in SETTINGS.values() for key, value in case.items()}
make = partial(sampling, BATCH, seeds=np.arange(BATCH))


def a_history(tokens=TOKENS, lengths=LENGTHS, prompt=PROMPT):
    as_ints = partial(jnp.asarray, dtype=jnp.int32)
    return History(as_ints(tokens), as_ints(lengths), jnp.full(len(tokens), prompt, jnp.int32))


HISTORY = a_history()
least_kept, chosen = jax.jit(processors.least_kept), jax.jit(choose)


@jax.jit
def processed_and_drawn(logits, sampling, history):
    logits = process(logits, sampling, history, ENDS)
    return logits, choose(logits, sampling, history)


def processed(*args):
    return processed_and_drawn(*args)[0]


def drawn(*args):
    return np.asarray(processed_and_drawn(*args)[1])


# The definitions, a row at a time.


def expected(logits, tokens, prompt, ends, names, s):
    """What the settings `s` of one row make of its logits."""
    x, written, greedy = logits.astype(np.float64), tokens[prompt:], s.get("temperature") == 0
    for name in names:
        if name == "logit_bias":
            for token, bias in (s[name] or {}).items():
                x[token] += bias
        elif name == "repetition_penalty":
            for token in set(tokens):
                x[token] = x[token] * s[name] if x[token] < 0 else x[token] / s[name]
        elif name == "presence_penalty":
            for token in set(written):
                x[token] -= s[name]
        elif name == "frequency_penalty":
            for token in written:
                x[token] -= s[name]
        elif name == "no_repeat_ngram_size":
            n = s[name]
            grams = {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
            last = tuple(tokens[len(tokens) - n + 1 :])
            x[[len(tokens) >= n and (*last, token) in grams for token in range(len(x))]] = -np.inf
        elif name == "min_new_tokens" and len(written) < s[name]:
            x[list(ends)] = -np.inf
        elif name == "temperature" and not greedy:
            x /= s[name]
        elif name == "top_k" and 0 < s[name] < len(x) and not greedy:
            x[x < sorted(x)[-s[name]]] = -np.inf
        elif name == "top_p" and not greedy:
            x[~fewest(-x, softmax(x), s[name])] = -np.inf
        elif name == "min_p" and not greedy:
            x[softmax(x) < s[name] * softmax(x).max() * (1 - 1e-9)] = -np.inf
        elif name == "typical_p" and not greedy:
            p = softmax(x)
            surprise = -log_softmax(x)
            x[~fewest(np.abs(surprise - (p[p > 0] * surprise[p > 0]).sum()), p, s[name])] = -np.inf
    return x


def fewest(cost, p, total):
    """The cheapest whose probabilities add up to `total`: those before which there is less than that."""
    if total == 1:
        return np.ones(len(p), bool)
    order = np.argsort(cost, kind="stable")
    kept = np.zeros(len(p), bool)
    kept[order[np.append(0, p[order].cumsum()[:-1]) < total]] = True
    kept[order[0]] = True
    return kept


def expected_rows(logits, history, values):
    def of_row(value, i):
        return value[i] if isinstance(value, list) else value

    return np.stack([
        expected(
            np.asarray(logits[i]), np.asarray(history.tokens[i])[: history.length[i]], int(history.prompt_length[i]), ENDS,
            [name for name in PROCESSORS if name in values], {name: of_row(value, i) for name, value in values.items()},
        )
        for i in range(len(logits))
    ])  # fmt: skip


def assert_same(got, wanted):
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(wanted))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_each_processor_is_its_definition(name):
    got = processed(jnp.asarray(LOGITS), make(**SETTINGS[name]), HISTORY)
    assert_same(got, expected_rows(LOGITS, HISTORY, SETTINGS[name]))
    assert (got != LOGITS).any()


@pytest.mark.parametrize("name", SETTINGS)
def test_each_leaves_impossible_tokens_impossible(name):
    logits = np.where(np.arange(VOCAB) % 3 == 1, -np.inf, LOGITS).astype(np.float32)
    got = processed(jnp.asarray(logits), make(**SETTINGS[name]), HISTORY)
    assert_same(got, expected_rows(logits, HISTORY, SETTINGS[name]))


@pytest.mark.parametrize("size", [1, 3, 30])
def test_n_grams_of_every_size(size):
    tokens = RANDOM.integers(0, 2, (BATCH, WIDTH))
    history = a_history(tokens)
    got = processed(jnp.asarray(LOGITS), make(no_repeat_ngram_size=size), history)
    assert_same(got, expected_rows(LOGITS, history, {"no_repeat_ngram_size": size}))


def test_together_they_are_applied_in_their_order():
    values = ALL | dict(
        temperature=[0.0, 0.5, 2.0, 0.7, 1.5, 0.9], top_k=[3, 9, 100, 50, 0, 0], typical_p=[0.1, 0.9, 0.9, 1.0, 0.9, 0.9]
    )
    got = processed(jnp.asarray(LOGITS), make(**values), HISTORY)
    assert_same(got, expected_rows(LOGITS, HISTORY, values))


def test_a_row_that_takes_the_best_is_not_truncated():
    logits = jnp.log(jnp.array([[0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], [0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]]))
    s, history = sampling(2, temperature=[0, 1], typical_p=0.1, top_k=0, seeds=0), a_history(TOKENS[:2], LENGTHS[:2])
    got = processed(logits, s, history)
    np.testing.assert_array_equal(got[0], logits[0])
    assert got[1, 0] == -np.inf and (got[1, 1:] == logits[1, 1:]).all()
    tokens = drawn(logits, s, history)
    assert tokens[0] == 0 and tokens[1] != 0


def test_the_best_is_taken_after_penalties_and_the_first_of_equals():
    s = sampling(BATCH, temperature=0, frequency_penalty=2.0, logit_bias={8: -50.0}, no_repeat_ngram_size=2)
    wanted = expected_rows(LOGITS, HISTORY, dict(frequency_penalty=2.0, logit_bias={8: -50.0}, no_repeat_ngram_size=2))
    np.testing.assert_array_equal(drawn(jnp.asarray(LOGITS), s, HISTORY), wanted.argmax(1))
    ties = np.round(LOGITS / 4)
    np.testing.assert_array_equal(drawn(jnp.asarray(ties), sampling(BATCH, temperature=0), HISTORY), ties.argmax(1))


@pytest.mark.parametrize("values", [dict(top_k=2), dict(top_p=0.5), dict(top_p=0.0), dict(typical_p=0.2), dict(min_p=1.0)])
def test_those_tied_with_the_least_one_kept_are_kept(values):
    logits = jnp.tile(jnp.array([1.0, 0.0, 1.0, -0.0, 1.0, -9.0]), (BATCH, 1))
    got = processed(logits, make(**values), HISTORY)
    np.testing.assert_array_equal(got > -jnp.inf, jnp.broadcast_to(logits == 1, got.shape))


def test_zeros_of_both_signs_are_tied():
    logits = jnp.tile(jnp.array([0.0, -0.0, 0.0, -1.0]), (BATCH, 1))
    assert (processed(logits, make(top_k=1), HISTORY) > -jnp.inf).sum() == 3 * BATCH


@pytest.mark.parametrize("name", SETTINGS)
def test_one_token_stays_possible(name):
    """All but one are impossible already, and bans would take that one too."""
    for token in (7, int(TOKENS[4, 5])):
        logits = jnp.where(jnp.arange(VOCAB) == token, LOGITS, -jnp.inf)
        values = dict(no_repeat_ngram_size=1) if name.startswith("no_repeat") else SETTINGS[name]
        s = make(**values)
        got = processed(logits, s, HISTORY)
        np.testing.assert_array_equal(np.isfinite(got), np.arange(VOCAB) == np.full((BATCH, 1), token))
        assert (drawn(logits, s, HISTORY) == token).all()


def test_bans_that_would_take_all_are_not_applied():
    tokens = np.tile(np.arange(9), (BATCH, 3))[:, :WIDTH]
    logits = jnp.asarray(LOGITS[:, :9])
    np.testing.assert_array_equal(processed(logits, make(no_repeat_ngram_size=1), a_history(tokens, LENGTHS * 0 + 12)), logits)
    logits = jnp.where(jnp.isin(jnp.arange(VOCAB), np.array(ENDS)), LOGITS, -jnp.inf)
    np.testing.assert_array_equal(processed(logits, make(min_new_tokens=99), HISTORY), logits)


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-20, 1e30])
def test_an_extreme_temperature_takes_the_best_or_any(temperature):
    s = make(temperature=temperature, top_p=0.9, typical_p=0.99)
    assert not np.isnan(processed(jnp.asarray(LOGITS), s, HISTORY)).any()
    if temperature < 1:
        np.testing.assert_array_equal(drawn(jnp.asarray(LOGITS), s, HISTORY), LOGITS.argmax(1))


def test_any_floats_come_in_and_float32_goes_out():
    got = processed(jnp.asarray(LOGITS, jnp.bfloat16), make(), HISTORY)
    np.testing.assert_array_equal(got, jnp.asarray(LOGITS, jnp.bfloat16).astype(jnp.float32))
    assert got.dtype == jnp.float32


floats = st.floats(width=32, allow_nan=False, allow_subnormal=False)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(floats, st.integers(0, 4)), min_size=7, max_size=7), st.integers(0, 30))
def test_the_least_kept_is_found_exactly(pairs, total):
    values, weights = map(np.array, zip(*pairs))
    wanted = [v for v in values if weights[values >= v].sum() >= total]
    got = least_kept(jnp.asarray(values[None], jnp.float32), jnp.asarray(weights[None], jnp.float32), jnp.full(1, float(total)))
    assert got[0, 0] == max(wanted, default=values.min())


# The draws.

DRAWS = 5_000


def assert_drawn_from(tokens, logits):
    """Chi-squared; tokens that are expected less than 8 times count together."""
    counts, p = np.bincount(tokens, minlength=len(logits)), softmax(np.float64(logits))
    assert counts[p == 0].sum() == 0
    rare = p * len(tokens) < 8
    counts, p = (np.append(x[~rare], x[rare].sum()) for x in (counts, p))
    counts, p = counts[p > 0], p[p > 0]
    if len(p) > 1:
        assert chisquare(counts, p * len(tokens)).pvalue > 1e-3


@pytest.mark.parametrize("name", [*SETTINGS, "all"])
def test_draws_have_the_exact_probabilities(name):
    values = ALL | dict(typical_p=0.95, top_p=0.95, top_k=60) if name == "all" else SETTINGS[name]
    logits = jnp.repeat(processed(jnp.asarray(LOGITS), make(**values), HISTORY), DRAWS, axis=0)
    tokens = chosen(
        logits,
        sampling(len(logits), seeds=np.arange(len(logits))),
        a_history(np.zeros((len(logits), 1)), np.ones(len(logits)), 0),
    )
    wanted = expected_rows(LOGITS, HISTORY, values)
    for row, of_row in zip(wanted, np.asarray(tokens).reshape(BATCH, DRAWS)):
        assert_drawn_from(of_row, row)


def test_draws_of_one_seed_are_independent_from_token_to_token():
    logits, history = np.float32([0.5, 0.0, -0.5, 1.0, 0.2]), a_history(np.zeros((DRAWS, 1)), np.arange(DRAWS), prompt=0)
    tokens = drawn(jnp.tile(logits, (DRAWS, 1)), sampling(DRAWS, seeds=3), history)
    assert_drawn_from(tokens, logits)
    assert_drawn_from(tokens[:-1:2] * 5 + tokens[1::2], (logits[:, None] + logits).ravel())


def test_improbable_tokens_are_drawn_as_often_as_they_should_be():
    """Half of the probability is in tokens of one in 100,000 each, in blocks of their own."""
    logits = np.log(np.append(0.5, np.full(50_000, 1e-5)))
    history = a_history(np.zeros((500, 1)), np.ones(500), prompt=0)
    tokens = np.asarray(drawn(jnp.tile(jnp.float32(logits), (500, 1)), sampling(500, seeds=np.arange(500)), history))
    fifths = np.where(tokens == 0, 0, 1 + (tokens - 1) // 10_000)
    assert_drawn_from(fifths, np.log([0.5] + [0.1] * 5))


def rows_of(tree, index):
    return jax.tree.map(lambda x: x[np.asarray(index)], tree)


def test_a_row_draws_the_same_in_any_company():
    values = ALL | dict(temperature=[0.0, 0.5, 2.0, 0.7, 1.5, 0.9], top_p=[1.0, 0.9, 0.9, 0.5, 0.9, 0.999], typical_p=0.95)
    logits, s = jnp.asarray(LOGITS), make(**values)
    together = np.asarray(drawn(logits, s, HISTORY))
    for index in ([4, 2, 0, 1, 5, 3], [0, 0, 3, 3, 3, 1], [2], [5]):
        alone = drawn(logits[np.asarray(index)], rows_of(s, index), rows_of(HISTORY, index))
        np.testing.assert_array_equal(alone, together[index])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_row_without_a_setting_is_left_exactly_alone_by_one_that_has_it(name):
    if name == "no_repeat_ngram_size":
        pytest.skip("one for the batch")
    got = processed(jnp.asarray(LOGITS), make(**SETTINGS[name]), HISTORY)
    np.testing.assert_array_equal(got[0], LOGITS[0])


def test_draws_depend_on_the_seed_and_the_number_written_only():
    logits = jnp.tile(jnp.array([0.5, 0.0, -0.5, 1.0, 0.2]), (200, 1))
    seeds = np.arange(200)

    def draw(seeds, tokens=0, length=9, prompt=4):
        return np.asarray(
            drawn(logits, sampling(200, seeds=seeds), a_history(np.full((200, 12), tokens), np.full(200, length), prompt))
        )

    first = draw(seeds)
    np.testing.assert_array_equal(draw(seeds, tokens=3, length=11, prompt=6), first)
    np.testing.assert_array_equal(draw(seeds[::-1])[::-1], first)
    assert len(set(draw(5))) == 1
    for other in (draw(seeds, length=10), draw(seeds + 1000), draw(seeds + 2**32), draw(seeds + 2**40), draw(-1 - seeds)):
        assert 0.5 < (other != first).mean() < 1
    np.testing.assert_array_equal(draw([int(seed) + 2**64 - 200 for seed in seeds]), draw(seeds - 200))


def test_other_values_and_seeds_compile_nothing():
    run = jax.jit(lambda logits, s, history: choose(process(logits, s, history, ENDS), s, history))
    values = ALL | dict(logit_bias={0: 1.0, 1: 2.0, 2: 3.0})
    others = ALL | dict(
        logit_bias={9: 1.0, 8: 2.0, 7: 3.0, 6: 4.0}, temperature=0.0, top_k=3, top_p=0.3, min_p=0.3, typical_p=0.3,
        repetition_penalty=3.0, presence_penalty=1.0, frequency_penalty=1.0, min_new_tokens=2, seeds=9,
    )  # fmt: skip
    for s in (make(**values), sampling(BATCH, **others)):
        run(jnp.asarray(LOGITS), s, HISTORY)
    assert run._cache_size() == 1
    plain = jax.jit(lambda logits, s, history: choose(process(logits, s, history), s, history))
    for temperature in (1.0, 0.0, 0.7, [0, 1, 0, 1, 2, 3]):
        plain(jnp.asarray(LOGITS), make(temperature=temperature), HISTORY)
    assert plain._cache_size() == 1


def test_only_what_some_row_uses_is_in_the_program_and_nothing_is_sorted():
    assert make().used == ("temperature",)
    for name, values in SETTINGS.items():
        assert set(make(**values).used) == {name, "temperature"}
    assert make(**ALL).used == tuple(PROCESSORS)
    for values, searches in (({}, 0), (SETTINGS["min_p"], 0), (SETTINGS["top_p"], 1), (ALL, 3)):
        program = str(jax.make_jaxpr(partial(process, ends=ENDS))(jnp.asarray(LOGITS), make(**values), HISTORY))
        assert not re.search(r"\b(sort|top_k)\[", program)
        assert len(re.findall(r"\b(scan|while)\[", program)) == searches


def test_processors_have_the_names_of_the_settings_and_compose():
    names = list(inspect.signature(sampling).parameters)
    assert set(PROCESSORS) <= set(names)
    s = make(**SETTINGS["min_p"], **SETTINGS["temperature"])
    composed = PROCESSORS["temperature"](PROCESSORS["min_p"](jnp.asarray(LOGITS), s, HISTORY, ENDS), s, HISTORY, ENDS)
    first = expected_rows(LOGITS, HISTORY, SETTINGS["min_p"])
    assert_same(composed, expected_rows(first, HISTORY, SETTINGS["temperature"]))


def test_a_history_is_followed_by_tokens():
    history = HISTORY.followed_by(jnp.arange(100, 106))
    np.testing.assert_array_equal(history.length, LENGTHS + 1)
    np.testing.assert_array_equal(history.written, LENGTHS + 1 - PROMPT)
    wanted = TOKENS.copy()
    wanted[np.arange(5), LENGTHS[:5]] = np.arange(100, 105)
    np.testing.assert_array_equal(history.tokens, wanted)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(temperature=-0.1), r"temperature=-0.1: expected a number of 0 \(always the best token\) or more"),
        (dict(temperature=[1, 1, np.nan, 1, 1, 1]), "temperature=nan: expected"),
        (dict(temperature=np.inf), "temperature=inf: expected"),
        (dict(temperature="hot"), "temperature is no number: expected"),
        (dict(temperature=[[1.0], [1.0, 2.0]]), "temperature is no number: expected"),
        (dict(temperature=[1.0, 1.0]), r"temperature has the shape \(2,\): expected .* each of the 6 rows"),
        (dict(top_k=-1), r"top_k=-1: expected a whole number of 0 \(all tokens\) or more"),
        (dict(top_k=1.5), "top_k is no number|top_k is no whole number"),
        (dict(top_k=True), "top_k is no"),
        (dict(top_p=1.01), "top_p=1.01: expected a number from 0 to 1"),
        (dict(top_p=-0.01), "top_p=-0.01: expected"),
        (dict(min_p=1.01), "min_p=1.01: expected"),
        (dict(min_p=-0.01), "min_p=-0.01: expected"),
        (dict(typical_p=0), "typical_p=0: expected a number above 0"),
        (dict(typical_p=1.01), "typical_p=1.01: expected"),
        (dict(repetition_penalty=0), "repetition_penalty=0: expected a number above 0"),
        (dict(repetition_penalty=np.inf), "repetition_penalty=inf: expected"),
        (dict(presence_penalty=2.1), "presence_penalty=2.1: expected a number from -2 to 2"),
        (dict(frequency_penalty=-2.1), "frequency_penalty=-2.1: expected a number from -2 to 2"),
        (dict(min_new_tokens=-1), "min_new_tokens=-1: expected a whole number"),
        (dict(no_repeat_ngram_size=-1), "no_repeat_ngram_size=-1: expected a whole number"),
        (dict(seeds=None), "needs seeds"),
        (dict(seeds=0.5), "seeds is no number: expected a whole number of up to 64 bits"),
        (dict(seeds=[1, 2, 3, 4, 5, None]), "seeds is no number: expected"),
        (dict(seeds=2**64), "seeds=18446744073709551616: expected"),
        (dict(seeds=[1, 2]), r"seeds has the shape \(2,\)"),
        (dict(logit_bias=[{1: 1.0}]), "logit_bias: expected a mapping from tokens to numbers, or one for each of the 6 rows"),
        (dict(logit_bias={-1: 1.0}), "logit_bias has the token -1: expected whole numbers from 0 to 210"),
        (dict(logit_bias={211: 1.0}), "logit_bias has the token 211: expected"),
        (dict(logit_bias={"5": 1.0}), "logit_bias has the token '5': expected"),
        (dict(logit_bias={5: np.inf}), "logit_bias of token 5 is inf: expected a number"),
        (dict(logit_bias={5: np.nan}), "logit_bias of token 5 is nan: expected a number"),
        (dict(logit_bias={5: "1"}), "logit_bias of token 5 is '1': expected a number"),
    ],
)
def test_what_is_out_of_range_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        sampling(BATCH, vocab_size=VOCAB, **dict(seeds=0) | values)


@pytest.mark.parity
@pytest.mark.parametrize("size", [1, 2, 4])
def test_transformers_does_the_same(size):
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers").generation.logits_process
    values = dict(
        logit_bias={0: 2.5, 17: -3.0}, repetition_penalty=1.3, no_repeat_ngram_size=size, min_new_tokens=9, temperature=0.7,
        top_k=150, top_p=0.95, min_p=0.001, typical_p=0.9,
    )  # fmt: skip
    theirs = {
        "logit_bias": hf.SequenceBiasLogitsProcessor({(0,): 2.5, (17,): -3.0}),
        "repetition_penalty": hf.RepetitionPenaltyLogitsProcessor(1.3),
        "no_repeat_ngram_size": hf.NoRepeatNGramLogitsProcessor(size),
        "min_new_tokens": hf.MinNewTokensLengthLogitsProcessor(PROMPT, 9, torch.tensor(ENDS)),
        "temperature": hf.TemperatureLogitsWarper(0.7),
        "top_k": hf.TopKLogitsWarper(150),
        "top_p": hf.TopPLogitsWarper(0.95),
        "min_p": hf.MinPLogitsWarper(0.001),
        "typical_p": hf.TypicalLogitsWarper(0.9),
    }
    for length in (4, 11, 20):
        logits = RANDOM.normal(scale=3, size=(BATCH, VOCAB)).astype(np.float32)
        history = a_history(TOKENS, np.full(BATCH, length))
        composed = torch.tensor(logits)
        for name in theirs:
            alone = theirs[name](torch.tensor(TOKENS[:, :length]), torch.tensor(logits))
            assert_same(processed(jnp.asarray(logits), make(**{name: values[name]}), history), alone.numpy())
            composed = theirs[name](torch.tensor(TOKENS[:, :length]), composed)
        assert_same(processed(jnp.asarray(logits), make(**values), history), composed.numpy())
