"""Rows through programs of few shapes: every row gets its own result, whatever goes with it."""

import numpy as np
import pytest

from flaxllm.decoding import buckets
from flaxllm.decoding.buckets import in_buckets, in_parts


def rows(*lengths: int) -> list[dict[str, np.ndarray]]:
    """Row `i` has tokens that count up from 1, and kinds that are all `i`."""
    return [{"tokens": np.arange(1, n + 1), "kinds": np.full(n, i)} for i, n in enumerate(lengths)]


class Program:
    """Sums and numbers of what is valid, and the shapes that it was called with."""

    def __init__(self):
        self.shapes = []

    def __call__(self, inputs):
        tokens, kinds, valid = (inputs[name] for name in ("tokens", "kinds", "valid"))
        assert tokens.shape == kinds.shape == valid.shape and valid[:, 0].all()
        assert not tokens[~valid].any()
        self.shapes.append(tokens.shape)
        return {"sum": tokens.sum(1), "kind": kinds.max(1), "tokens": tokens}


LENGTHS = (5, 40, 16, 1, 17, 3, 16)


@pytest.mark.parametrize(
    ("batch_size", "shapes"),
    [(None, [(8, 16), (1, 32), (1, 48)]), (2, [(2, 16), (2, 16), (1, 16), (1, 32), (1, 48)]), (3, [(4, 16), (2, 16), (1, 32), (1, 48)])],
)
def test_rows_come_back_in_their_order_from_few_shapes(batch_size, shapes):
    program = Program()
    results = in_buckets(program, rows(*LENGTHS), batch_size=batch_size)
    assert sorted(program.shapes) == sorted(shapes)
    for number, (length, result) in enumerate(zip(LENGTHS, results, strict=True)):
        assert (result["sum"], result["kind"]) == (length * (length + 1) // 2, number)
        assert result["tokens"][:length].tolist() == list(range(1, length + 1))


def test_no_row_is_filled_up_beyond_what_the_model_takes():
    program = Program()
    in_buckets(program, rows(40, 41), max_len=41)
    assert program.shapes == [(2, 41)]


def test_nothing_gives_nothing():
    assert in_buckets(Program(), []) == []


def test_parts_are_as_large_as_the_device_likes(monkeypatch):
    monkeypatch.setitem(buckets.TOKENS_AT_A_TIME, "cpu", 12)
    shapes = []

    def doubled(inputs):
        shapes.append(inputs["tokens"].shape)
        return inputs["tokens"] * 2

    tokens = np.arange(35).reshape(7, 5)
    np.testing.assert_array_equal(in_parts(doubled, {"tokens": tokens, "valid": tokens > 0}), 2 * tokens)
    assert set(shapes) == {(2, 5), (1, 5)}
