"""One server of ranks for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.distributed.ranks import Ranks, started


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Runs jobs on several processes."""
    with started() as server:
        yield server
