"""A PostgreSQL server with pgvector."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.retrieval import postgres


@pytest.fixture(scope="module")
def location() -> Iterator[str]:
    """A PostgreSQL server with pgvector."""
    pytest.importorskip("psycopg")
    programs = postgres.with_vector()
    if programs is None:
        pytest.skip("pgserver is not installed, or in a folder that is closed to other users")
    with postgres.server(programs) as found:
        yield found
