import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from flaxllm.errors import InputError
from flaxllm.nn import Mask
from flaxllm.nn.mask import check_mask, dense_mask, shows_anything, with_positions

BATCH, Q_LEN, K_LEN = 2, 4, 5


def sees(mask: Mask, row: int, query: int, key: int) -> bool:
    """The description read aloud, for one query and one key."""

    def at(array: jax.Array, index: int) -> int:
        return int(array[row if len(array) > 1 else 0][index])

    if mask.causal or mask.window is not None:
        ahead = at(mask.key_positions, key) - at(mask.query_positions, query)
        if mask.causal and ahead > 0:
            return False
        if mask.window is not None and (ahead <= -mask.window or ahead >= mask.window):
            return False
    if mask.query_segments is not None and at(mask.query_segments, query) != at(mask.key_segments, key):
        return False
    return mask.key_valid is None or bool(at(mask.key_valid, key))


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    def rows(length: int, values: st.SearchStrategy) -> jax.Array:
        batch = draw(st.sampled_from([1, BATCH]))
        row = st.lists(values, min_size=length, max_size=length)
        return jnp.array(draw(st.lists(row, min_size=batch, max_size=batch)))

    def near(most: int) -> st.SearchStrategy:
        """Numbers close to one another, as in a block of a long sequence."""
        first = draw(st.integers(0, most))
        return st.integers(first, first + 3)

    arrays = {"query_positions": rows(Q_LEN, near(9)), "key_positions": rows(K_LEN, near(9))}
    if draw(st.booleans()):
        arrays |= {"query_segments": rows(Q_LEN, near(4)), "key_segments": rows(K_LEN, near(4))}
    if draw(st.booleans()):
        arrays["key_valid"] = rows(K_LEN, st.booleans())
    return Mask(draw(st.booleans()), draw(st.none() | st.integers(1, 4)), **arrays)


@given(masks())
@settings(max_examples=40, deadline=None)
def test_the_drawn_mask_is_the_description_read_for_every_pair(mask):
    check_mask(mask, BATCH, Q_LEN, K_LEN)
    drawn = dense_mask(mask, Q_LEN, K_LEN)
    expected = [[[sees(mask, row, t, s) for s in range(K_LEN)] for t in range(Q_LEN)] for row in range(BATCH)]
    if drawn is None:
        assert np.all(expected)
    else:
        assert drawn.shape[1:] == (Q_LEN, K_LEN)
        np.testing.assert_array_equal(np.broadcast_to(drawn, (BATCH, Q_LEN, K_LEN)), expected)


@given(masks())
@settings(max_examples=100, deadline=None)
def test_what_shows_anything_calls_hidden_is_hidden(mask):
    event(f"shown: {shows_anything(mask)}")
    drawn = dense_mask(mask, Q_LEN, K_LEN)
    assert shows_anything(mask) or not drawn.any()


def block(of_queries: range | list[int], of_keys: range | list[int], **rules) -> Mask:
    return Mask(query_positions=jnp.array([of_queries]), key_positions=jnp.array([of_keys]), **rules)


def documents(of_queries: list[int], of_keys: list[int]) -> Mask:
    return Mask(query_segments=jnp.array([of_queries]), key_segments=jnp.array([of_keys]))


BAND = {"causal": True, "window": 5}
PADDED = jnp.array([[False, False, False], [False, True, False]])


@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        (block(range(4), range(4, 8), causal=True), block(range(1, 5), range(4, 8), causal=True)),
        (block(range(8, 12), range(4), **BAND), block(range(7, 11), range(4), **BAND)),
        (block(range(8, 12), range(4), window=5), block(range(8, 12), range(4), window=6)),
        (block(range(4), range(8, 12), window=5), block(range(4), range(8, 12), window=6)),
        (documents([1, 1, 2], [3, 3, 4]), documents([1, 1, 2], [2, 3, 4])),
        (documents([3, 3, 4], [1, 1, 2]), documents([3, 3, 4], [1, 1, 3])),
        (Mask(key_valid=PADDED & False), Mask(key_valid=PADDED)),
    ],
    ids=["future", "past the band", "left of a window", "right of it", "next document", "last", "padding"],
)
def test_a_block_is_hidden_up_to_the_last_step_and_shown_after_it(hidden, shown):
    assert not shows_anything(hidden)
    assert shows_anything(shown)


def test_a_query_at_position_7_sees_keys_0_to_7():
    mask = block([7], range(10), causal=True)
    np.testing.assert_array_equal(dense_mask(mask, 1, 10)[0, 0], [True] * 8 + [False] * 2)
    banded = mask.replace(window=3)
    np.testing.assert_array_equal(np.flatnonzero(dense_mask(banded, 1, 10)), [5, 6, 7])


def test_positions_left_out_count_from_0():
    mask = with_positions(Mask(causal=True), 3, 3)
    np.testing.assert_array_equal(mask.query_positions, [[0, 1, 2]])
    np.testing.assert_array_equal(mask.key_positions, [[0, 1, 2]])
    np.testing.assert_array_equal(dense_mask(Mask(causal=True), 3, 3), [np.tri(3, dtype=bool)])
    np.testing.assert_array_equal(dense_mask(Mask(window=2), 3, 3), [[[1, 1, 0], [1, 1, 1], [0, 1, 1]]])


def test_a_mask_that_hides_nothing_is_not_drawn():
    assert dense_mask(Mask(), 3, 5) is None
    assert dense_mask(block(range(3), range(5)), 3, 5) is None


def test_another_mask_under_the_same_rules_compiles_nothing():
    traced = []

    @jax.jit
    def drawn(mask: Mask) -> jax.Array:
        traced.append(mask)
        return dense_mask(mask, 1, 3)

    for position in range(3):
        row = drawn(block([position], range(3), causal=True))[0, 0]
        np.testing.assert_array_equal(row, np.arange(3) <= position)
    assert len(traced) == 1
    drawn(block([2], range(3), causal=True, window=1))
    assert len(traced) == 2


def integers(*shape: int) -> jax.Array:
    return jnp.zeros(shape, int)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Mask(query_segments=integers(1, 4)), "segments for only one of queries and keys: give both"),
        (Mask(key_segments=integers(1, 5)), "segments for only one of queries and keys: give both"),
        (Mask(causal=True, query_positions=integers(1, 4)), "positions for only one of queries and keys"),
        (Mask(causal=True), "over 4 queries and 5 keys needs query_positions and key_positions"),
        (Mask(window=2), "over 4 queries and 5 keys needs query_positions and key_positions"),
        (block(range(4), range(5), window=0), "window of 0 shows nothing: use 1 or more"),
        (block(range(1), range(5), causal=True), r"query_positions of shape \(1, 1\): expected \(2, 4\), or"),
        (Mask(query_segments=integers(3, 4), key_segments=integers(2, 5)), r"query_segments of shape \(3, 4"),
        (Mask(query_segments=integers(2, 4), key_segments=integers(2, 4)), r"key_segments of shape \(2, 4\)"),
        (block(range(4), range(1), causal=True), r"key_positions of shape \(1, 1\): expected \(2, 5\), or"),
        (Mask(key_valid=jnp.ones((2, 1), bool)), r"key_valid of shape \(2, 1\): expected \(2, 5\), or"),
    ],
)
def test_a_description_that_does_not_say_who_sees_whom_is_refused(mask, message):
    with pytest.raises(InputError, match=message):
        check_mask(mask, BATCH, Q_LEN, K_LEN)
