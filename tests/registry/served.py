"""A real dfud with settings of its own in [registry], records from before a rule, and what its process takes."""

from __future__ import annotations

import http.client
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import trio
from dfud_local.store import LocalStore

from dfud.api import Bus, Change
from dfud.testing.daemon import DaemonProcess

APPS = "/api/registry/v1alpha1/apps"
DFU = "/api/dfu/v1/apps/a"
TOKENS = "/api/tokens/v1alpha1"


async def prepared(directory: Path, registry: str = "", records: Sequence[Sequence[Change]] = ()) -> DaemonProcess:
    """Return a dfud that was never started: with these lines in [registry], and these commits in its store."""
    daemon = DaemonProcess(directory)
    await daemon.init()
    text = daemon.config.read_text().replace("[registry]\n", f"[registry]\n{registry}\n")

    def write_config() -> None:
        port = daemon.ports["registry"]
        head, section, rest = text.partition("[registry]\n")
        daemon.config.write_text(head + section + rest.replace("port = 0", f"port = {port}", 1))

    daemon.write_config = write_config  # type: ignore[method-assign]
    if records:
        await commit(directory, records)
    return daemon


async def commit(directory: Path, records: Sequence[Sequence[Change]]) -> None:
    """Write to the store of a dfud that does not run."""
    async with trio.open_nursery() as nursery:
        store = LocalStore(directory / "state")
        await nursery.start(store.run, Bus())
        for changes in records:
            await store.commit(changes)
        nursery.cancel_scope.cancel()


def database(directory: Path) -> sqlite3.Connection:
    return sqlite3.connect(directory / "state" / "dfud.sqlite3")


def peak_rss(daemon: DaemonProcess) -> int:
    """Return the most memory that the process has had, in bytes."""
    process = daemon._process
    assert process is not None
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no VmHWM of {process.pid}")


async def raw(url: str, method: str, path: str, token: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Send a request whose path nobody has touched; return (status, body)."""

    def ask() -> tuple[int, bytes]:
        address = httpx.URL(url)
        connection = http.client.HTTPConnection(address.host, address.port or 80, timeout=60)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in {"authorization": f"Bearer {token}", "content-length": str(len(body)), **headers}.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    return await trio.to_thread.run_sync(ask)


async def ask(client: httpx.AsyncClient, status: int, method: str, path: str, **options: Any) -> Any:
    """Send a request, insist on its status, return the JSON (or None)."""
    answer = await client.request(method, path, **options)
    assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
    return answer.json() if answer.content and "json" in answer.headers["content-type"] else None
