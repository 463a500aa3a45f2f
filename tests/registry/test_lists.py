"""Every list is paged through by whoever asks: a short page is the last one, whatever roles he has and whatever cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from dfud.api import App, Device, Metadata, PutApp, PutDevice
from tests.registry.served import APPS, ask, database, prepared

NAMES = [f"app{number:02}" for number in range(24)]
BROKEN = ("app04", "app09")
MINE = [name for number, name in enumerate(NAMES) if number % 3]  # others' lie between them, at the beginning, at the end


def readable(names: list[str]) -> list[str]:
    return [name for name in names if name not in BROKEN]


def flat(found: list[list[str]]) -> list[str]:
    return [name for page in found for name in page]


async def pages(client: httpx.AsyncClient, path: str, limit: int, **params: Any) -> list[list[str]]:
    """Page through as clients do: by offset, until a page is short."""
    found: list[list[str]] = []
    while True:
        offset = sum(map(len, found))
        page = await ask(client, 200, "GET", path, params={**params, "limit": limit, "offset": offset})
        found.append([one["metadata"]["name"] for one in page])
        if len(page) < limit:
            return found


@pytest.mark.parametrize(
    "roles",
    [
        {name: "reader" for name in MINE},
        {name: ("reader", "manager", "admin")[number % 3] for number, name in enumerate(MINE)} | {"gone": "admin"},
        {"*": "reader"},
        {"*": "reader", "app03": "admin"},
    ],
    ids=["readers", "mixed", "all", "all and more"],
)
async def test_apps_are_paged_through_with_any_roles(nursery: trio.Nursery, tmp_path: Path, roles: dict[str, str]) -> None:
    apps = [PutApp(App(Metadata(n, resource_version="1", labels={"odd": str(i % 2)}))) for i, n in enumerate(NAMES)]
    daemon = await prepared(tmp_path / "dfud", "", [apps])
    with database(tmp_path / "dfud") as rows:
        for name in BROKEN:
            rows.execute("UPDATE app SET body=? WHERE name=?", (b"\xc1", name))
    await nursery.start(daemon.run)
    async with daemon.client() as admin:
        await ask(admin, 201, "POST", APPS, json={"metadata": {"name": "gone"}})
        made = await ask(admin, 200, "POST", "/api/tokens/v1alpha1", json={"user": "eve", "roles": roles})
        await ask(admin, 204, "DELETE", f"{APPS}/gone")
    headers = {"authorization": f"Bearer {made['token']}"}
    seen = readable(NAMES if "*" in roles else MINE)
    async with httpx.AsyncClient(base_url=daemon.urls["registry"], headers=headers, timeout=60) as eve:
        for limit in (1, 2, 5, 11, 1000):
            found = await pages(eve, APPS, limit)
            assert flat(found) == seen, limit
            assert all(len(page) == limit for page in found[:-1])
        odd = [name for name in seen if int(name[3:]) % 2]
        assert flat(await pages(eve, APPS, 3, labels="odd=1")) == odd
    nursery.cancel_scope.cancel()


async def test_devices_are_paged_through_whatever_cannot_be_read(nursery: trio.Nursery, tmp_path: Path) -> None:
    devices = [PutDevice(Device(Metadata(name, "a", resource_version="1"))) for name in NAMES]
    daemon = await prepared(tmp_path / "dfud", "", [[PutApp(App(Metadata("a", resource_version="1"))), *devices]])
    with database(tmp_path / "dfud") as rows:
        for name in BROKEN:
            rows.execute("UPDATE device SET body=? WHERE name=?", (b"\xc1", name))
    await nursery.start(daemon.run)
    async with daemon.client() as admin:
        for limit in (1, 2, 11):
            assert flat(await pages(admin, f"{APPS}/a/devices", limit)) == readable(NAMES), limit
        found, after = [], ""
        while page := await ask(admin, 200, "GET", f"{APPS}/a/devices", params={"limit": 5, "after": after}):
            found += [one["metadata"]["name"] for one in page]
            after = found[-1]
        assert found == readable(NAMES)
    nursery.cancel_scope.cancel()


async def test_an_apps_admin_pages_through_its_part_of_the_audit_log(nursery: trio.Nursery, tmp_path: Path) -> None:
    daemon = await prepared(tmp_path / "dfud")
    await nursery.start(daemon.run)
    async with daemon.client() as admin:
        for number in range(12):
            await ask(admin, 201, "POST", APPS, json={"metadata": {"name": "mine" if number == 0 else f"other{number}"}})
            made = {"metadata": {"name": f"d{number}", "application": "mine"}}
            await ask(admin, 201, "POST", f"{APPS}/mine/devices", json=made)
        made = await ask(admin, 200, "POST", "/api/tokens/v1alpha1", json={"user": "eve", "roles": {"mine": "admin"}})
        headers = {"authorization": f"Bearer {made['token']}"}
        await ask(admin, 403, "GET", "/api/dfu/v1/audit", params={}, headers={"authorization": f"Bearer {made['token']}"})
        for order, edge in (("oldest", "after"), ("newest", "before")):
            found: list[str] = []
            key = ""
            while True:
                params = {"app": "mine", "order": order, "limit": 4, **({edge: key} if key else {})}
                page = await ask(admin, 200, "GET", "/api/dfu/v1/audit", params=params, headers=headers)
                found += [one["target"] for one in page]
                if len(page) < 4:
                    break
                key = page[-1]["key"]
            expected = ["mine", *(f"mine/d{number}" for number in range(12))]
            assert found == (expected if order == "oldest" else expected[::-1])
    nursery.cancel_scope.cancel()
