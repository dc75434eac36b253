from collections.abc import Iterator

import pytest

from serving.live import Live, make_service, running


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """One server for all tests that leave it as it is."""
    with running(make_service()) as server:
        yield server
