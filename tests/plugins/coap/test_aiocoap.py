"""aiocoap as the device: OSCORE, observing, blocks both ways; and over a link that loses, repeats and reorders."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiocoap
import aiocoap.numbers.constants
import pytest
import trio

from dfud.api import Code, Reply
from dfud.testing.link import FaultyUdpLink, UdpFaults
from dfud.testing.transport import AUTHORIZATION
from tests.plugins.coap.peers import COMMAND, AioClient, dotted, option, oscore_credentials, request
from tests.plugins.coap.world import CHUNK, IDENTITY, KEY, LIMIT_S, PACKAGE, World, until

BOOT = b"\1\2\3\4\5\6\7\x08"


class Device:
    """One client, under OSCORE or with option 4209."""

    def __init__(self, client: AioClient, url: str, secured: bool) -> None:
        self.client, self.url, self.secured = client, url, secured

    def request(self, code: Any, path: list[str], payload: bytes = b"", **more: Any) -> aiocoap.Message:
        auth = None if self.secured else AUTHORIZATION
        return request(code, self.url, path, payload, auth=auth, **more)

    async def ask(self, code: Any, path: list[str], payload: bytes = b"", **more: Any) -> aiocoap.Message:
        with trio.fail_after(LIMIT_S):
            return await self.client.ask(self.request(code, path, payload, **more))


@pytest.fixture
async def world(nursery: trio.Nursery) -> AsyncIterator[World]:
    yield await World().start(nursery)
    nursery.cancel_scope.cancel()


@pytest.fixture
async def clients() -> AsyncIterator[list[AioClient]]:
    found: list[AioClient] = []
    yield found
    for client in found:
        await client.close()


async def connect(clients: list[AioClient], url: str, directory: Path | None) -> Device:
    client = AioClient()
    clients.append(client)
    await client.open(oscore_credentials(directory, url, KEY, IDENTITY, BOOT) if directory else None)
    return Device(client, url, directory is not None)


@pytest.fixture(params=[False, True], ids=["plain", "oscore"])
async def device(request: pytest.FixtureRequest, world: World, clients: list[AioClient], tmp_path: Path) -> Device:
    return await connect(clients, world.url, tmp_path / "context" if request.param else None)


async def test_a_status_a_chunk_and_a_long_body(world: World, device: Device) -> None:
    answer = await device.ask(aiocoap.POST, ["v1", "dfu"], b"status")
    assert (dotted(answer), option(answer, COMMAND), answer.payload) == ("2.05", b"dfu", b"status")
    answer = await device.ask(aiocoap.GET, ["v1", "dfu", PACKAGE, "1"])
    assert answer.payload == CHUNK
    assert answer.opt.etag == bytes.fromhex("01234567") + (1 << 12).to_bytes(4, "big")
    answer = await device.ask(aiocoap.POST, ["v1", "telemetry"], CHUNK, query={"as": "other"})
    assert dotted(answer) == "2.04"
    got = world.endpoint.requests[-1]
    assert (got.body, got.as_device) == (CHUNK, "other")
    assert got.credentials.identity == (IDENTITY if device.secured else "")
    assert got.encrypted is device.secured


async def test_a_held_answer_comes_when_there_is_one(world: World, device: Device, nursery: trio.Nursery) -> None:
    answers = []

    async def wait() -> None:
        answers.append(await device.ask(aiocoap.POST, ["v1", "dfu"], b"status", query={"ct": "50"}))

    async with trio.open_nursery() as waiting:
        waiting.start_soon(wait)
        await until(lambda: world.endpoint.parked)
        world.endpoint.wake(Reply(Code.COMMAND, "dfu", b"update"))
    assert [(dotted(a), a.payload) for a in answers] == [("2.05", b"update")]


async def test_an_observer_hears_of_every_change(world: World, device: Device) -> None:
    kept: list[Any] = []
    with trio.fail_after(LIMIT_S):
        await device.client.observe(device.request(aiocoap.FETCH, ["v1", "dfu"], b"status", observe=0), kept)
        assert (dotted(kept[0]), kept[0].payload, option(kept[0], COMMAND)) == ("2.05", b"status", b"dfu")
        await until(lambda: world.endpoint.parked)
        world.endpoint.wake(Reply(Code.COMMAND, "dfu", b"update"))
        await until(lambda: len(kept) > 1)
    assert (dotted(kept[1]), kept[1].payload, option(kept[1], COMMAND)) == ("2.05", b"update", b"dfu")
    assert len(world.server.observers) == 1
    # What the device says itself supersedes what it registered with.
    await device.ask(aiocoap.POST, ["v1", "dfu"], b"another status")
    assert len(world.server.observers) == 0


async def test_a_restarted_server_is_told_who_it_talks_to(
    world: World, clients: list[AioClient], tmp_path: Path, nursery: trio.Nursery
) -> None:
    """A context that the server has forgotten costs one more round trip and nothing else (RFC 8613, B.1.2)."""
    device = await connect(clients, world.url, tmp_path / "context")
    await device.ask(aiocoap.POST, ["v1", "x"], b"1")
    world.server.securing.contexts.forget(BOOT + IDENTITY.encode())
    await device.ask(aiocoap.POST, ["v1", "x"], b"2")
    assert [r.body for r in world.endpoint.requests] == [b"1", b"2"]


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another time scale, at both ends: a bad link is as bad, and a test does not take minutes."""
    monkeypatch.setattr(aiocoap.numbers.constants.TransportTuning, "ACK_TIMEOUT", 0.04)
    monkeypatch.setattr(aiocoap.numbers.constants.TransportTuning, "MAX_RETRANSMIT", 10)
    monkeypatch.setattr("dfud_coap.reliability.ACK_TIMEOUT_S", 0.04)
    monkeypatch.setattr("dfud_coap.reliability.MAX_RETRANSMIT", 10)


async def over_a_bad_link(
    world: World, clients: list[AioClient], tmp_path: Path, nursery: trio.Nursery, secured: bool, loss: float, seed: int
) -> None:
    faults = UdpFaults(loss=loss, duplicate=0.1, reorder=0.1, hold_s=0.02)
    link = FaultyUdpLink(world.port, faults, seed=seed)
    url = f"coap://127.0.0.1:{await nursery.start(link.run)}"
    device = await connect(clients, url, tmp_path / "context" if secured else None)
    for number in range(3):
        answer = await device.ask(aiocoap.POST, ["v1", "telemetry"], b"%d " % number + CHUNK[:2500])
        assert dotted(answer) == "2.04"
        answer = await device.ask(aiocoap.GET, ["v1", "dfu", PACKAGE, str(1 + number % 2)])
        assert answer.payload == (CHUNK, CHUNK[::-1])[number % 2]
    # Whatever was lost or came twice on the way: each body was taken exactly once.
    assert [r.body for r in world.endpoint.requests] == [b"%d " % n + CHUNK[:2500] for n in range(3)]
    kept: list[Any] = []
    with trio.fail_after(LIMIT_S):
        await device.client.observe(device.request(aiocoap.FETCH, ["v1", "dfu"], b"status", observe=0), kept)
        await until(lambda: world.endpoint.parked)
        world.endpoint.wake(Reply(Code.COMMAND, "dfu", b"update"))
        await until(lambda: len(kept) > 1)
    assert [k.payload for k in kept] == [b"status", b"update"]
    assert (link.lost > 0) is (loss > 0) and link.duplicated > 0
    print(
        f"seed {seed}: {link.passed} datagrams, {link.lost} lost, {link.repeated} retransmitted, {link.reordered} reordered"
    )


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(
    ("secured", "loss", "seed"), [(False, 0.1, 1), (True, 0.2, 2), (False, 0.3, 3), (True, 0.3, 4)]
)
async def test_everything_arrives_once_over_a_bad_link(
    world: World, clients: list[AioClient], tmp_path: Path, nursery: trio.Nursery, secured: bool, loss: float, seed: int
) -> None:
    await over_a_bad_link(world, clients, tmp_path, nursery, secured, loss, seed)


@pytest.mark.slow
@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("seed", range(10, 14))
@pytest.mark.parametrize("loss", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
@pytest.mark.parametrize("secured", [False, True], ids=["plain", "oscore"])
async def test_everything_arrives_once_over_every_link(
    world: World, clients: list[AioClient], tmp_path: Path, nursery: trio.Nursery, secured: bool, loss: float, seed: int
) -> None:
    await over_a_bad_link(world, clients, tmp_path, nursery, secured, loss, seed)
