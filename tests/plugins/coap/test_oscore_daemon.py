"""A whole dfud with CoAP: `dfuctl device psk` gives a device its key, aiocoap is the device, an update goes through."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiocoap
import httpx
import pytest
import trio

from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import SimulatedDevice
from tests.cli.test_dfuctl import Dfuctl
from tests.plugins.coap.peers import AioClient, dotted, oscore_credentials, request

OLD, NEW = b"old" * 1000, random.Random(5).randbytes(30_000)
LIMIT_S = 120.0


class World:
    def __init__(self, daemon: DaemonProcess, dfuctl: Dfuctl, tmp_path: Path) -> None:
        self.daemon, self.dfuctl, self._tmp_path = daemon, dfuctl, tmp_path
        self.boots = 0
        self.clients: list[AioClient] = []

    @property
    def url(self) -> str:
        return self.daemon.urls["coap"]

    async def boot(self, key: bytes, identity: str = "lamp1@lamps") -> AioClient:
        """Return a device that has just started."""
        self.boots += 1
        client = AioClient()
        directory = self._tmp_path / f"boot{self.boots}"
        await client.open(oscore_credentials(directory, self.url, key, identity, self.boots.to_bytes(8, "big")))
        self.clients.append(client)
        return client

    def device(self, client: AioClient) -> SimulatedDevice:
        async def exchange(status: bytes) -> bytes | None:
            answer = await client.ask(request(aiocoap.POST, self.url, ["v1", "dfu"], status))
            assert dotted(answer) == "2.05", (dotted(answer), answer.payload)
            return bytes(answer.payload)

        async def fetch(package: str, number: int) -> bytes:
            answer = await client.ask(request(aiocoap.GET, self.url, ["v1", "dfu", package, str(number)]))
            assert dotted(answer) == "2.05", (dotted(answer), answer.payload)
            return bytes(answer.payload)

        return SimulatedDevice(exchange, fetch, OLD, "1.0", payload=16640)


@pytest.fixture
async def world(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[World]:
    daemon = DaemonProcess(tmp_path / "dfud", plugins=("local", "http", "coap"))
    await daemon.init()
    await nursery.start(daemon.run)
    dfuctl = Dfuctl(tmp_path)
    await dfuctl("login", daemon.urls["registry"], "--token", daemon.token)
    async with daemon.client() as client:
        spec = {"signing": {"mode": "optional"}}
        made = await client.post("/api/registry/v1alpha1/apps", json={"metadata": {"name": "lamps"}, "spec": spec})
        made.raise_for_status()
        body = {"metadata": {"name": "lamp1", "application": "lamps"}}
        (await client.post("/api/registry/v1alpha1/apps/lamps/devices", json=body)).raise_for_status()
    await dfuctl("context", "--app", "lamps")
    found = World(daemon, dfuctl, tmp_path)
    yield found
    for device in found.clients:
        await device.close()
    nursery.cancel_scope.cancel()


async def test_a_device_with_a_key_from_dfuctl_updates_over_oscore(world: World) -> None:
    text = await world.dfuctl("device", "psk", "lamp1")
    key = bytes.fromhex(text)
    assert len(key) == 16
    shown = await world.dfuctl("device", "show", "lamp1")
    assert text not in shown and '"sealed"' in shown
    async with world.daemon.client() as client:
        for version, image in (("1.0", OLD), ("1.1", NEW)):
            parameters = {"version": version, "hardware": "esp32c3", "kind": "raw"}
            path = "/api/dfu/v1/apps/lamps/firmware"
            (await client.post(path, params=parameters, content=image)).raise_for_status()
        body = {"device": "lamp1", "firmware": {"version": "1.1"}}
        (await client.post("/api/dfu/v1/apps/lamps/update", json=body)).raise_for_status()
    with trio.fail_after(LIMIT_S):
        device = world.device(await world.boot(key))
        command = await device.update()
        assert command is not None and device.image == NEW
        # Another boot, with a context that nobody knows, speaks for the same device.
        assert await world.device(await world.boot(key)).poll() is not None
    assert "1.1" in await world.dfuctl("status", "lamp1")


async def test_an_old_key_ends_at_once_and_a_strangers_never_works(world: World) -> None:
    first = bytes.fromhex(await world.dfuctl("device", "psk", "lamp1"))
    with trio.fail_after(LIMIT_S):
        client = await world.boot(first)
        assert (await client.ask(request(aiocoap.POST, world.url, ["v1", "telemetry"], b"x"))).code.is_successful()
        second = bytes.fromhex(await world.dfuctl("device", "psk", "lamp1"))
        for stale in (
            client,
            await world.boot(first),
            await world.boot(b"\0" * 16),
            await world.boot(second, "x@lamps"),
        ):
            with pytest.raises(aiocoap.error.Error):  # what is not protected, aiocoap does not believe
                await stale.ask(request(aiocoap.POST, world.url, ["v1", "telemetry"], b"x"))
        client = await world.boot(second)
        assert (await client.ask(request(aiocoap.POST, world.url, ["v1", "telemetry"], b"x"))).code.is_successful()


async def test_unprotected_requests_are_refused_unless_the_config_says_so(world: World) -> None:
    client = AioClient()
    await client.open()
    world.clients.append(client)
    with trio.fail_after(LIMIT_S):
        answer = await client.ask(request(aiocoap.POST, world.url, ["v1", "dfu"], b"\x80", auth=b"Basic eDp5"))
    assert dotted(answer) == "4.01"
    async with httpx.AsyncClient(base_url=world.daemon.urls["http"], timeout=60) as http:
        assert (await http.post("/v1/dfu", content=b"\x80")).status_code == 403
