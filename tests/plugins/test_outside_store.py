"""The store of docs/stores.md keeps the promise of every store, and dfud runs on it when it is installed from outside of the tree."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import pytest
import trio

from devicefw.sim.firmware import build
from dfud.api import Bus
from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import HttpDevice
from dfud.testing.store import StoreConformance
from dfud.wire.messages import Type
from tests.plugins.documents import blocks, install, module_of

CODE, ITS_TEST = blocks("stores.md", "python")
JournalStore = module_of("stores.md", "dfud_journal", CODE).JournalStore
exec(compile(ITS_TEST, "docs/stores.md", "exec"))  # defines TestJournalStore, in the names of this module
USED_BY_THE_DOCUMENT = (Bus, StoreConformance, pytest, json)

OLD, NEW = build("print(1)\n", "1.0"), build("print(2)\n" * 50, "1.1")
APP = "/api/dfu/v1/apps/a"


async def test_dfud_updates_a_device_on_it_over_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", "dfud_journal", CODE, "journal = dfud_journal")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site") + os.pathsep + os.environ.get("PYTHONPATH", ""))
    section = f'[store.journal]\npath = "{tmp_path}/journal"'
    daemon = DaemonProcess(tmp_path / "dfud", plugins=("journal", "http"), store="journal", store_section=section)
    await daemon.init()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as user:
            body = {"metadata": {"name": "a"}, "spec": {"signing": {"mode": "optional"}}}
            (await user.post("/api/registry/v1alpha1/apps", json=body)).raise_for_status()
            body = {"metadata": {"name": "d", "application": "a"}}
            (await user.post("/api/registry/v1alpha1/apps/a/devices", json=body)).raise_for_status()
            for version, image in (("1.0", OLD), ("1.1", NEW)):
                parameters = {"version": version, "hardware": "esp32c3"}
                (await user.post(f"{APP}/firmware", params=parameters, content=image)).raise_for_status()
            (await user.post(f"{APP}/update", json={"device": "d", "firmware": {"version": "1.1"}})).raise_for_status()
            secret = str((await user.post(f"{APP}/secret/d")).json()["secret"])
        async with httpx.AsyncClient(base_url=daemon.urls["http"], auth=("d@a", secret), timeout=60) as client:
            first = await HttpDevice(client, OLD, "1.0").poll()
            assert first is not None and first.type in (Type.UPDATE, Type.WAIT)
        daemon.kill()
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with httpx.AsyncClient(base_url=daemon.urls["http"], auth=("d@a", secret), timeout=60) as client:
            device = HttpDevice(client, OLD, "1.0")
            with trio.fail_after(120):
                while device.image != NEW:
                    await device.update()
        async with daemon.client() as user:
            events = [entry["event"] for entry in (await user.get(f"{APP}/history/d")).json()]
            assert events.count("created") == 1 and events.count("confirmed") == 1, events
        nursery.cancel_scope.cancel()
