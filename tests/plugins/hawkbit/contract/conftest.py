"""One scenario per test, on a server of the session's choice; with HAWKBIT_RECORD=1 a real server's answers are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.hawkbit.contract.api import Api, Settings
from tests.plugins.hawkbit.server import Hawkbit

RECORDED = Path(__file__).parents[1] / "recorded"
_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


@pytest.fixture
def api(hawkbit: Hawkbit, request: pytest.FixtureRequest) -> Iterator[Api]:
    found = Api(hawkbit)
    yield found
    found.client.close()
    if os.environ.get("HAWKBIT_RECORD") and hawkbit.real and not request.node.stash.get(_FAILED, True):
        write(RECORDED / f"{request.node.name}.json", f"hawkBit {hawkbit.version}", found)


@pytest.fixture
def settings(hawkbit: Hawkbit, api: Api) -> Iterator[Settings]:
    """Change settings of the tenant: `settings({"pollingTime": "00:01:00"})`. They are put back behind the test."""
    changed: list[str] = []

    def change(values: dict[str, Any]) -> None:
        changed.extend(values)
        assert api.mgmt("PUT", "/system/configs", values, quiet=True).status in (200, 204)

    yield change
    for key in changed:
        hawkbit.mgmt("DELETE", f"/system/configs/{key}")


def write(path: Path, server: str, api: Api) -> None:
    """Keep a scenario: one line for each request and its answer."""
    lines = [json.dumps(e.as_json(), separators=(",", ":"), ensure_ascii=False) for e in api.exchanges]
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'{{"server":{json.dumps(server)},"exchanges":[\n' + ",\n".join(lines) + "\n]}\n")
