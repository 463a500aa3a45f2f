"""A device that asks for the same again, or for the next part of a chunk: it gets what it would get on the long way, or nothing."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from dfud_local.store import LocalStore

from dfud.api import (
    App,
    AppChanged,
    Chunks,
    Credentials,
    DeviceChanged,
    Firmware,
    FirmwareChanged,
    Metadata,
    PutApp,
    PutFirmware,
    Recall,
    Reply,
    Request,
    faults,
)
from dfud.testing.store import a_blob
from dfud.wire.manifest import Manifest, unsigned
from dfud.wire.messages import decode_command_untrusted
from tests.endpoint.world import World, a_status, basic, start_world

ME = Credentials(basic("dev1@app1:pw"))
SPEC = {"authentication": {"credentials": [{"pass": "pw"}]}}


async def publish(store: LocalStore, version: str, image: bytes) -> Firmware:
    async with a_blob(store, image) as sha256:
        manifest = unsigned(Manifest("app1", version, "esp32c3", 1, len(image), bytes.fromhex(sha256)))
        firmware = Firmware(
            app="app1",
            version=version,
            hardware="esp32c3",
            sequence=1,
            size_bytes=len(image),
            sha256=sha256,
            manifest=manifest,
            kind="raw",
        )
        await store.commit([PutFirmware(firmware)])
    return firmware


class Fetching:
    """A device that is being sent the second chunk of a package. `again` is what it was given that chunk by."""

    def __init__(self, world: World, firmware: Firmware, package: str) -> None:
        self.world, self.firmware, self.package = world, firmware, package
        self.again: Callable[[float], bytes | None] = lambda now_s: None

    def long_way(self, number: int = 1) -> Chunks | Reply | None:
        return self.world.endpoint.quick_chunks("127.0.0.1", ME, self.package, number, number)

    async def begin(self) -> bytes:
        for _ in range(3):  # it is known to be fetching from its first chunk on
            await self.world.endpoint.chunks("127.0.0.1", ME, self.package, 0, 0)
            await trio.testing.wait_all_tasks_blocked()
        found = self.long_way()
        assert type(found) is Chunks
        again = self.world.endpoint.chunk_again(ME, self.package)
        assert again is not None
        self.again = partial(again, 1)
        return found.bodies[0]

    async def change_password(self) -> None:
        await self.world.put("dev1", {"authentication": {"credentials": [{"pass": "new"}]}})

    async def want_another(self) -> None:
        await publish(self.world.store, "3.0", random.Random(3).randbytes(40_000))
        await self.world.put("dev1", {**SPEC, "firmware": {"version": "3.0"}})
        await self.world.post(ME, channel="dfu", body=a_status())

    async def recall(self) -> None:
        recalled = msgspec.structs.replace(self.firmware, recalled=Recall("it burns"))
        await self.world.store.commit([PutFirmware(recalled, expect=self.firmware)])
        self.world.bus.publish(FirmwareChanged(recalled))

    async def forget_package(self) -> None:
        self.world.packages._memory.clear()

    async def ask_for_another(self) -> None:
        assert type(self.long_way(0)) is Chunks

    async def change_app(self) -> None:
        self.world.bus.publish(AppChanged("app1"))

    async def delete(self) -> None:
        self.world.bus.publish(DeviceChanged("app1", "dev1", access=True, deleted=True))


@pytest.fixture
async def fetching(nursery: trio.Nursery, tmp_path: Path) -> Fetching:
    world = await start_world(nursery, tmp_path)
    await world.store.commit([PutApp(App(Metadata("app1"), {"signing": {"mode": "optional"}}))])
    world.bus.publish(AppChanged("app1"))
    firmware = await publish(world.store, "2.0", random.Random(1).randbytes(40_000))
    await world.put("dev1", {**SPEC, "firmware": {"version": "2.0"}})
    with trio.fail_after(120):
        while True:
            found = await world.post(ME, channel="dfu", body=a_status())
            assert isinstance(found, Reply)
            command = decode_command_untrusted(found.body)
            if command.package:
                return Fetching(world, firmware, command.package.hex())
            await trio.sleep(0.01)


async def test_it_gives_the_chunk_as_the_long_way_does(fetching: Fetching) -> None:
    chunk = await fetching.begin()
    now_s = trio.current_time()
    assert fetching.again(now_s) == chunk
    assert fetching.again(now_s + 3600) is None, "its progress is to be stored"
    assert fetching.again(now_s) == chunk
    stranger = Credentials(basic("dev1@app1:guess"))
    assert fetching.world.endpoint.chunk_again(stranger, fetching.package) is None
    for package, number in (("ab" * 16, 1), (fetching.package, 0), (fetching.package, 99)):
        other = fetching.world.endpoint.chunk_again(ME, package)
        assert other is not None and other(number, now_s) is None, "it is not what was fetched last"


@pytest.mark.parametrize(
    "change",
    [
        Fetching.change_password,
        Fetching.want_another,
        Fetching.recall,
        Fetching.forget_package,
        Fetching.ask_for_another,
        Fetching.change_app,
        Fetching.delete,
    ],
)
async def test_it_gives_nothing_that_the_long_way_would_not(
    fetching: Fetching, change: Callable[[Fetching], Awaitable[None]]
) -> None:
    chunk = await fetching.begin()
    await change(fetching)
    assert fetching.again(trio.current_time()) is None
    await trio.testing.wait_all_tasks_blocked()
    again = fetching.again(trio.current_time())
    found = fetching.long_way()
    assert again is None or (type(found) is Chunks and found.bodies[0] == again == chunk)


# Polls


class Polling(Fetching):
    """A device that has nothing to do."""

    request: Request

    def poll(self) -> Reply | None:
        found = self.world.endpoint.quick(self.request)
        assert found is None or isinstance(found, Reply)
        return found

    async def want_the_same(self) -> None:
        await self.world.put("dev1", {**SPEC, "firmware": {"version": "1.0"}})

    async def wait_long(self) -> None:
        self.world.let_pass(100_000.0)


@pytest.fixture
async def polling(nursery: trio.Nursery, tmp_path: Path) -> Polling:
    world = await start_world(nursery, tmp_path)
    firmware = await publish(world.store, "2.0", random.Random(1).randbytes(40_000))
    found = Polling(world, firmware, "")
    found.request = Request("coap", "127.0.0.1", ME, "dfu", a_status())
    return found


async def test_a_poll_again_has_the_same_answer(polling: Polling) -> None:
    await polling.world.endpoint.post(polling.request)
    reply = polling.poll()
    again = polling.world.endpoint.quick_again(polling.request)
    assert reply is not None and again is not None and again() is reply
    others: tuple[dict[str, Any], ...] = ({"timeout_s": 9.0}, {"channel": "temp"}, {"as_device": "dev2"})
    for other in others:
        assert polling.world.endpoint.quick_again(msgspec.structs.replace(polling.request, **other)) is None
    others = ({"body": a_status(sequence=1)}, {"credentials": Credentials(basic("dev1@app1:guess"))})
    for other in others:
        unknown = polling.world.endpoint.quick_again(msgspec.structs.replace(polling.request, **other))
        assert unknown is not None and unknown() is None


@pytest.mark.parametrize(
    "change",
    [
        Polling.change_password,
        Polling.want_another,
        Polling.want_the_same,
        Polling.wait_long,
        Polling.change_app,
        Polling.delete,
        Polling.recall,
    ],
)
async def test_a_poll_again_has_no_answer_that_quick_would_not_give(
    polling: Polling, change: Callable[[Polling], Awaitable[None]]
) -> None:
    await polling.world.endpoint.post(polling.request)
    again = polling.world.endpoint.quick_again(polling.request)
    assert again is not None and again() is polling.poll() is not None
    await change(polling)
    for _ in range(2):
        assert again() is polling.poll()
        await trio.testing.wait_all_tasks_blocked()
        await polling.world.endpoint.post(polling.request)


async def test_an_exception_in_it_has_the_chunk_asked_for_anew(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    await fetching.begin()

    def broken(*arguments: object) -> object:
        raise RuntimeError("a bug")

    monkeypatch.setattr(fetching.world.endpoint._controller.fetches, "chunk", broken)
    before = faults().get("endpoint.chunk_again", 0)
    assert fetching.again(0.0) is None
    polls = fetching.world.endpoint.quick_again(Request("coap", "127.0.0.1", ME, "dfu", a_status()))
    monkeypatch.setattr(fetching.world.endpoint._auth, "slot_of", broken)
    assert polls is not None and polls() is None and faults()["endpoint.quick_again"]
    assert fetching.world.endpoint.chunk_again(ME, fetching.package) is None
    assert faults()["endpoint.chunk_again"] == before + 2
