"""At the end, a line for each client of Drogue's that was run. A test belongs to the client that `client` names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.interop.support import Dfud, running

_CLIENT = "client-of-drogues"


@pytest.fixture(scope="module")
def dfud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dfud]:
    directory = tmp_path_factory.mktemp("dfud")
    with running(directory, f'[events.log]\npath = "{directory}/events.jsonl"\n') as found:
        yield found


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "client(name): what of Drogue's the test runs; `make interop` prints a line for each")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("client")
    if mark is not None:
        item.user_properties.append((_CLIENT, mark.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, client in getattr(report, "user_properties", []):
                if key == _CLIENT:
                    counts.setdefault(client, Counter())[outcome] += 1
    if counts:
        terminalreporter.section("clients of Drogue IoT against this dfud")
    for client, found in sorted(counts.items()):
        terminalreporter.write_line(f"interop: {client}: {', '.join(f'{n} {what}' for what, n in found.items())}")
