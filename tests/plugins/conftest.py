"""One PostgreSQL for all tests of plugins that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.plugins.postgres.server import SOCKET, Server, forget, running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with running() as server:
        os.environ[SOCKET] = str(server.directory)
        try:
            yield server
        finally:
            del os.environ[SOCKET]


@pytest.fixture(autouse=True)
def _databases_end_with_their_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each has some hundred files."""
    yield
    if "postgres" in request.fixturenames:
        forget(request.getfixturevalue("postgres"))
