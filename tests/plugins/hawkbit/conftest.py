"""Fixtures of every test that talks to a hawkBit, and the line that says which one it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.plugins.hawkbit.server import Hawkbit, chosen

_used: list[Hawkbit] = []


@pytest.fixture(scope="session")
def hawkbit_server() -> Iterator[Hawkbit]:
    server = chosen()
    _used.append(server)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def hawkbit(hawkbit_server: Hawkbit) -> Iterator[Hawkbit]:
    """A running hawkBit, shared by the whole session: use names of your own. It fails a test that asked the model what it
    does not know."""
    model = hawkbit_server.model
    if model is not None:
        model.unknown.clear()
        model.errors.clear()
    yield hawkbit_server
    if model is not None:
        assert not model.errors, "the model failed:\n" + "\n".join(model.errors)
        assert not model.unknown, "no recording of a real hawkBit covers:\n" + "\n".join(model.unknown)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for server in _used:
        terminalreporter.write_line(f"hawkBit: {server.described}")
