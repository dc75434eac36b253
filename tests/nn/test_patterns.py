import pytest

from flaxllm.errors import InputError
from flaxllm.nn.patterns import matching

PATHS = ("embedding/tokens", "layers/attention/query/kernel", "layers/attention/query/bias", "layers/mlp/up/kernel")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), set()),
        (("embedding/tokens",), {PATHS[0]}),
        (("layers/*/kernel",), {PATHS[1], PATHS[3]}),
        (("*/query/*", "embedding/*"), set(PATHS[:3])),
        (("layers/mlp/[au]p/kernel", "layers/mlp/*"), {PATHS[3]}),
    ],
)
def test_a_path_is_chosen_by_any_pattern(patterns, expected):
    assert matching(patterns, PATHS, "it") == expected


@pytest.mark.parametrize("pattern", ["embedding", "Embedding/tokens", "layers/query/kernel", "embedding/token"])
def test_a_pattern_that_chooses_nothing_is_refused(pattern):
    with pytest.raises(InputError, match=f"the list has '{pattern}', which matches no parameter: (did you mean '|expected one of)"):
        matching(("layers/*", pattern), PATHS, "the list")
