"""A path means one thing: names keep their slashes and dots, and what proxies and clients fold is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
import trio

from dfud.api import App, Device, Metadata, PutApp, PutDevice
from dfud.testing.daemon import DaemonProcess
from tests.registry.served import APPS, DFU, ask, prepared, raw

# What may be in the store from before there was a rule.
OLD_NAMES = ("..", ".", "a/b", "a//b", "x/", "/x", "a?b#c", "100%", "%2e%2e", "ü ", "b\u202ea", "tab\t")


@pytest.fixture
async def daemon(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[DaemonProcess]:
    app = App(Metadata("a", resource_version="1"), {"signing": {"mode": "optional"}})
    devices = [PutDevice(Device(Metadata(name, "a", resource_version="1"))) for name in OLD_NAMES]
    found = await prepared(tmp_path / "dfud", "", [[PutApp(app), *devices]])
    await nursery.start(found.run)
    yield found
    nursery.cancel_scope.cancel()


def encoded(name: str) -> str:
    """Encode every byte that is not a letter or digit: also dots, which quote() leaves alone."""
    return quote(name, safe="").replace(".", "%2E")


async def test_what_has_an_odd_name_is_read_changed_and_deleted_by_it(daemon: DaemonProcess) -> None:
    url, token = daemon.urls["registry"], daemon.token
    async with daemon.client() as admin:
        assert {d["metadata"]["name"] for d in await ask(admin, 200, "GET", f"{APPS}/a/devices")} == set(OLD_NAMES)
        for name in OLD_NAMES:
            path = f"{APPS}/a/devices/{encoded(name)}"
            assert (await raw(url, "GET", path, token))[0] == 200, name
            assert (await raw(url, "GET", f"{DFU}/history/{encoded(name)}", token))[0] == 200, name
            assert (await raw(url, "DELETE", path, token))[0] == 204, name
            assert (await raw(url, "GET", path, token))[0] == 404, name
        assert await ask(admin, 200, "GET", f"{APPS}/a/devices") == []
        await ask(admin, 200, "GET", f"{APPS}/a")


FOLDED = [
    f"{APPS}/a/devices/..",
    f"{APPS}/a/devices/.",
    f"{APPS}/a/devices/../../a",
    f"{APPS}/./a",
    f"{APPS}/a/",
    f"{APPS}/a/devices/",
]


async def test_dots_and_an_empty_end_delete_nothing(daemon: DaemonProcess) -> None:
    """`dfuctl device delete ..` deleted the whole app."""
    for path in FOLDED:
        status, body = await raw(daemon.urls["registry"], "DELETE", path, daemon.token)
        assert (status, b'"InvalidRequest"' in body) == (400, True), (path, body)
    async with daemon.client() as admin:
        await ask(admin, 200, "GET", f"{APPS}/a")
        assert len(await ask(admin, 200, "GET", f"{APPS}/a/devices")) == len(OLD_NAMES)


async def test_what_is_no_text_is_refused(daemon: DaemonProcess) -> None:
    for path in ("/%ff", f"{APPS}/a/devices/%c3", f"{APPS}/%00", f"{APPS}/a/devices/%ed%a0%80"):
        assert (await raw(daemon.urls["registry"], "GET", path, daemon.token))[0] in (400, 404)


async def test_a_version_with_a_slash_can_be_published_downloaded_and_deleted(daemon: DaemonProcess) -> None:
    url, token = daemon.urls["registry"], daemon.token
    async with daemon.client() as admin:
        for version in ("release/1.2", "a b+c%2F", "ünïcode"):
            params = {"version": version, "hardware": "x", "kind": "raw"}
            await ask(admin, 201, "POST", f"{DFU}/firmware", params=params, content=b"image")
            path = f"{DFU}/firmware/{encoded(version)}"
            assert (await raw(url, "GET", f"{path}/image", token)) == (200, b"image")
            assert (await raw(url, "GET", path, token))[0] == 200
            assert (await raw(url, "DELETE", path, token))[0] == 204
            assert (await raw(url, "GET", path, token))[0] == 404
        assert await ask(admin, 200, "GET", f"{DFU}/firmware") == []


async def test_nothing_new_gets_such_a_name(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        for name in ("..", ".", "a/../b", "a//b", "b\u202ea", "a\x00b", " a", "e\u0301"):
            for body in ({"metadata": {"name": name}}, {"metadata": {"name": "fine"}, "spec": {"alias": [name]}}):
                await ask(admin, 400, "POST", f"{APPS}/a/devices", json=body)
            await ask(admin, 400, "POST", f"{DFU}/claims", json={"device": name})
            params = {"version": name, "hardware": "x", "kind": "raw"}
            await ask(admin, 400, "POST", f"{DFU}/firmware", params=params, content=b"image")


async def test_an_old_device_can_be_changed_under_its_name(daemon: DaemonProcess) -> None:
    url, token = daemon.urls["registry"], daemon.token
    body = b'{"metadata": {"name": ".."}, "spec": {"x": 1}}'
    assert (await raw(url, "PUT", f"{APPS}/a/devices/%2E%2E", token, body))[0] == 204
    status, found = await raw(url, "GET", f"{APPS}/a/devices/%2e%2e", token)
    assert (status, b'"x":1' in found) == (200, True)
