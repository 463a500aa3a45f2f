"""Many parked devices for which something changes: told in one commit, without a task for each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from dfud.api import (
    App,
    AppChanged,
    Change,
    Credentials,
    DeleteDevice,
    Device,
    DeviceChanged,
    Firmware,
    Metadata,
    PutApp,
    PutDeployment,
    PutDevice,
    PutFirmware,
    Reply,
    StoreError,
    Waiting,
)
from dfud.controller.sending import Order
from dfud.endpoint import waking
from dfud.model.credentials import protect
from dfud.testing.store import a_blob
from dfud.wire.manifest import Manifest, unsigned
from dfud.wire.messages import Status, Type, decode_command_untrusted, encode_status
from tests.endpoint.world import KEY, World, basic, start_world

OLD, NEW = b"old" * 3000, bytes(range(256)) * 60
DEVICES = 200
BODY = encode_status(Status("1.0", hashlib.sha256(OLD).digest(), "esp32c3", 2, 16384, 1 << 20))


class Watched:
    """The store, with its commits noted; `fails` of them raise."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.commits: list[Sequence[Change]] = []
        self.fails = 0
        self.gate: trio.Event | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, changes: Sequence[Change]) -> None:
        self.commits.append(changes)
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            self.fails -= 1
            raise StoreError("the disk is full", retryable=True)
        await self._store.commit(changes)


async def parked_world(nursery: trio.Nursery, tmp_path: Path) -> tuple[World, Watched, dict[str, list[Reply]]]:
    """Return a world in which DEVICES devices wait, the store, and what they are answered."""
    watched: list[Watched] = []

    def wrap(store: Any) -> Any:
        watched.append(Watched(store))
        return watched[0]

    world = await start_world(nursery, tmp_path, wrap)
    spec = protect({"authentication": {"credentials": [{"pass": "pw"}]}}, KEY)
    await world.store.commit([PutDevice(Device(Metadata(f"p{n}", "app1"), spec)) for n in range(DEVICES)])
    for version, image in (("1.0", OLD), ("1.1", NEW)):
        async with a_blob(world.store, image) as sha256:
            manifest = unsigned(Manifest("app1", version, "esp32c3", 1, len(image), bytes.fromhex(sha256)))
            await world.store.commit(
                [
                    PutFirmware(
                        Firmware(
                            app="app1",
                            version=version,
                            hardware="esp32c3",
                            sequence=1,
                            size_bytes=len(image),
                            sha256=sha256,
                            manifest=manifest,
                            kind="raw",
                        )
                    )
                ]
            )
    answers: dict[str, list[Reply]] = {}
    for n in range(DEVICES):
        found = await world.post(Credentials(basic(f"p{n}@app1:pw")), channel="dfu", body=BODY, timeout_s=250.0)
        assert isinstance(found, Waiting)
        found.listen(answers.setdefault(f"p{n}", []).append)
    return world, watched[0], answers


async def want(world: World, version: str = "1.1") -> None:
    spec = {"firmware": {"version": version}, "signing": {"mode": "optional"}}
    await world.store.commit([PutApp(App(Metadata("app1"), spec))])
    world.bus.publish(AppChanged("app1"))


async def answered(answers: dict[str, list[Reply]], count: int = DEVICES) -> None:
    with trio.fail_after(60):
        while sum(map(len, answers.values())) < count:
            await trio.sleep(0.01)


async def test_devices_that_wait_are_told_in_one_commit_without_a_task_each(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        world, store, answers = await parked_world(nursery, tmp_path)
        before = trio.lowlevel.current_statistics().tasks_living
        assert before < DEVICES, "a task for each device that waits"
        store.commits.clear()
        await want(world)
        await answered(answers)
        assert trio.lowlevel.current_statistics().tasks_living <= before + 10
        deploying = [c for c in store.commits if any(isinstance(change, PutDeployment) for change in c)]
        assert len(deploying) == 1, f"{len(deploying)} commits for {DEVICES} devices"
        for name, replies in answers.items():
            assert [decode_command_untrusted(r.body).type for r in replies] == [Type.UPDATE]
            entries = await world.store.history("app1", name)
            assert [e.event for e in entries] == ["sent", "created"]
        nursery.cancel_scope.cancel()


async def test_a_device_that_goes_away_meanwhile_keeps_no_other_from_being_told(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        world, _, answers = await parked_world(nursery, tmp_path)
        await world.store.commit([DeleteDevice("app1", "p7")])
        await want(world)
        world.bus.publish(DeviceChanged("app1", "p7", deleted=True))
        await answered(answers)
        assert [int(r.code) for r in answers.pop("p7")] == [403]
        for replies in answers.values():
            assert [decode_command_untrusted(r.body).type for r in replies] == [Type.UPDATE]
        nursery.cancel_scope.cancel()


async def test_when_the_common_commit_fails_each_is_told_by_itself(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        world, store, answers = await parked_world(nursery, tmp_path)
        store.fails = 1
        await want(world)
        await answered(answers)
        for name, replies in answers.items():
            assert [decode_command_untrusted(r.body).type for r in replies] == [Type.UPDATE], name
            assert [e.event for e in await world.store.history("app1", name)] == ["sent", "created"]
        nursery.cancel_scope.cancel()


async def test_the_next_ones_are_looked_at_while_some_are_stored_and_nobody_is_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trio.open_nursery() as nursery:
        world, store, answers = await parked_world(nursery, tmp_path)
        target = await world.store.firmware("app1", "1.1")
        assert target is not None
        await world.packages.get(Order(target, None, 2, 16384), ("app1", "p0"))
        monkeypatch.setattr(waking, "TOGETHER", 30)
        store.commits.clear()
        await want(world)
        store.gate = trio.Event()
        with trio.fail_after(60):
            while len(store.commits) < 2:
                await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.01)
        deploying = [c for c in store.commits if any(isinstance(change, PutDeployment) for change in c)]
        assert len(deploying) == 2, "as many groups as may be stored, and no more"
        assert not any(answers.values()), "nobody hears of what is not stored yet"
        store.fails = 1
        store.gate.set()
        await answered(answers)
        for name, replies in answers.items():
            assert [decode_command_untrusted(r.body).type for r in replies] == [Type.UPDATE], name
            assert [e.event for e in await world.store.history("app1", name)] == ["sent", "created"]
        nursery.cancel_scope.cancel()
