"""Two whole dfud on one PostgreSQL, and devices over CoAP that may reach either at any moment."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiocoap
import pytest
import trio

from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import SimulatedDevice
from dfud.wire.enrol import Enrolment, encode_enrolment
from dfud.wire.messages import Status, Type, decode_command_untrusted, encode_status
from tests.e2e.fleet import Fleet, firmware
from tests.plugins.coap.peers import COMMAND, AioClient, dotted, option, oscore_credentials, request
from tests.plugins.coap.switch import Switch
from tests.plugins.postgres.cluster import APP, LATEST_S, OLD, Cluster, running
from tests.plugins.postgres.server import Server
from tests.real_parts import require

LARGE = random.Random(7).randbytes(60_000)


class CoapCluster(Cluster):
    """Each has packages of its own on its disk, as on a machine of its own."""

    plugins = ("postgres", "http", "coap")
    coap = ""

    def process(self, number: int, directory: Path, **given: Any) -> DaemonProcess:
        return DaemonProcess(directory, **{**given, "coap": self.coap, "packages": ""})


class PlainCluster(CoapCluster):
    coap = "plain = true"


class Devices:
    """A cluster with a switch in front of it, and devices as aiocoap is one."""

    def __init__(self, cluster: Cluster, switch: Switch, directory: Path) -> None:
        self.cluster, self.switch, self._directory = cluster, switch, directory
        self.clients: list[AioClient] = []

    @property
    def url(self) -> str:
        return f"coap://127.0.0.1:{self.switch.port}"

    def url_of(self, number: int) -> str:
        return self.cluster.daemons[number].urls["coap"]

    async def key_of(self, device: str, number: int = 0) -> bytes:
        answer = await self.cluster.ask("POST", f"/api/dfu/v1/apps/{APP}/psk/{device}", number)
        return bytes.fromhex(answer.json()["psk"])

    async def boot(self, key: bytes, *urls: str, device: str = "dev0") -> AioClient:
        client = AioClient()
        credentials: dict[str, Any] = {}
        for url in urls or (self.url,):
            at = self._directory / f"boot{len(self.clients)}-{url.rpartition(':')[2]}"
            credentials |= oscore_credentials(at, url, key, f"{device}@{APP}", os.urandom(8))
        await client.open(credentials)
        self.clients.append(client)
        return client

    def device(self, client: AioClient, image: bytes = OLD, version: str = "1.0") -> SimulatedDevice:
        async def exchange(status: bytes) -> bytes | None:
            answer = await client.ask(request(aiocoap.POST, self.url, ["v1", "dfu"], status))
            assert dotted(answer) in ("2.04", "2.05"), (dotted(answer), answer.payload)
            return bytes(answer.payload) or None

        async def fetch(package: str, number: int) -> bytes:
            answer = await client.ask(request(aiocoap.GET, self.url, ["v1", "dfu", package, str(number)]))
            assert dotted(answer) == "2.05", (dotted(answer), answer.payload)
            return bytes(answer.payload)

        return SimulatedDevice(exchange, fetch, image, version, payload=16640)


@asynccontextmanager
async def devices(directory: Path, kind: type[CoapCluster] = CoapCluster) -> AsyncIterator[Devices]:
    cluster = kind(directory, 2)
    async with running(cluster), trio.open_nursery() as nursery:
        switch = Switch([daemon.ports["coap"] for daemon in cluster.daemons])
        await nursery.start(switch.run)
        found = Devices(cluster, switch, directory)
        with trio.fail_after(4 * LATEST_S):
            yield found
        for client in found.clients:
            await client.close()
        nursery.cancel_scope.cancel()


async def prepared(w: Devices) -> None:
    await w.cluster.prepare(1)
    parameters = {"version": "3.0", "hardware": "esp32c3", "kind": "raw"}
    await w.cluster.ask("POST", f"/api/dfu/v1/apps/{APP}/firmware", 0, params=parameters, content=LARGE)
    await w.cluster.want("3.0", 1)


async def updated(w: Devices, device: SimulatedDevice, number: int = 0) -> None:
    with trio.fail_after(LATEST_S):
        while device.version != "3.0":
            await device.update()
    assert device.image == LARGE
    history = (await w.cluster.ask("GET", f"/api/dfu/v1/apps/{APP}/history/dev0", number)).json()
    events = [entry["event"] for entry in history]
    assert events.count("created") == 1 and events.count("confirmed") == 1, events


@pytest.mark.parametrize("every", [1, 5])
async def test_an_update_goes_through_whichever_process_each_datagram_reaches(
    postgres: Server, tmp_path: Path, every: int
) -> None:
    """Also in the middle of the blocks of one chunk."""
    async with devices(tmp_path) as w:
        await prepared(w)
        w.switch.every = every
        await updated(w, w.device(await w.boot(await w.key_of("dev0", 1))))
        assert min(w.switch.passed) > 5, w.switch.passed


async def test_an_update_goes_on_when_its_process_is_killed_in_the_middle(postgres: Server, tmp_path: Path) -> None:
    async with devices(tmp_path) as w:
        await prepared(w)
        device = w.device(await w.boot(await w.key_of("dev0")))
        with trio.fail_after(LATEST_S):
            while (command := await device.poll()) is None or command.type is not Type.UPDATE:
                await trio.sleep(0.05)
        await device._fetch(command.package.hex(), 0)
        w.cluster.daemons[0].kill()
        w.switch.at = 1
        await updated(w, device, 1)


async def test_a_body_in_blocks_that_changes_the_process_begins_again(postgres: Server, tmp_path: Path) -> None:
    async with devices(tmp_path) as w:
        await w.cluster.prepare(1)
        client = await w.boot(await w.key_of("dev0"))
        body = bytes(range(256)) * 20
        for every in (0, 3):
            w.switch.every = every
            codes = []
            for _ in range(8):
                answer = await client.ask(request(aiocoap.POST, w.url, ["v1", "report"], body))
                codes.append(dotted(answer))
                w.switch.every = 0  # from now on it stays where it is
                if codes[-1] == "2.04":
                    break
            assert codes[-1] == "2.04" and set(codes[:-1]) <= {"4.08"} and len(codes) <= 2, codes


async def test_who_observes_at_one_is_told_what_another_was_asked(postgres: Server, tmp_path: Path) -> None:
    async with devices(tmp_path) as w:
        await w.cluster.prepare(1)
        client = await w.boot(await w.key_of("dev0"), w.url_of(1))
        status = encode_status(Status("1.0", bytes(32), "esp32c3", 2, 16640, 1 << 22))
        told: list[Any] = []
        with trio.fail_after(LATEST_S):
            while not told:
                try:
                    await client.observe(request(aiocoap.FETCH, w.url_of(1), ["v1", "dfu"], status, observe=0), told)
                except aiocoap.oscore.NotAProtectedMessage as error:
                    # On a loaded machine the store is slow to say whose the context is; a device asks again.
                    if dotted(error.plain_message) != "5.03":
                        raise
                    await trio.sleep(0.2)
        assert dotted(told[0]) == "2.05"
        await w.cluster.want("2.0", 0, "dev0")
        with trio.fail_after(LATEST_S):
            while not any(_is_news(message) for message in told[1:]):
                await trio.sleep(0.02)


def _is_news(message: Any) -> bool:
    """The package may have to be made first; then the device asks again soon."""
    assert isinstance(message, aiocoap.Message), message
    if not message.payload:
        return False
    command = decode_command_untrusted(message.payload)
    return command.version == "2.0" or "being made" in command.reason


async def test_a_command_reaches_the_device_that_waits_at_the_other(postgres: Server, tmp_path: Path) -> None:
    async with devices(tmp_path) as w:
        await w.cluster.prepare(1)
        client = await w.boot(await w.key_of("dev0"), w.url_of(1))
        answers: list[Any] = []

        async def wait() -> None:
            answers.append(await client.ask(request(aiocoap.POST, w.url_of(1), ["v1", "state"], b"x", query={"ct": "50"})))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            path = f"/api/command/v1alpha1/apps/{APP}/devices/dev0"
            await w.cluster.ask("POST", path, 0, params={"command": "blink"}, content=b"now")
        assert (dotted(answers[0]), option(answers[0], COMMAND), answers[0].payload) == ("2.05", b"blink", b"now")


async def test_a_key_is_good_and_ends_at_every_process(postgres: Server, tmp_path: Path) -> None:
    async with devices(tmp_path) as w:
        await w.cluster.prepare(1)
        urls = [w.url_of(n) for n in (0, 1)]
        first = await w.key_of("dev0", 0)
        client = await w.boot(first, *urls)
        for url in urls:
            assert dotted(await client.ask(request(aiocoap.POST, url, ["v1", "state"], b"x"))) == "2.04"
        second = await w.key_of("dev0", 1)
        with trio.fail_after(LATEST_S):
            for url in urls:  # the other process hears of it within milliseconds
                with pytest.raises(aiocoap.error.Error):
                    while True:
                        await client.ask(request(aiocoap.POST, url, ["v1", "state"], b"x"))
        client = await w.boot(second, *urls)
        for url in urls:
            assert dotted(await client.ask(request(aiocoap.POST, url, ["v1", "state"], b"x"))) == "2.04"


async def test_a_claim_code_of_one_is_taken_by_the_other_and_once(postgres: Server, tmp_path: Path) -> None:
    async with devices(tmp_path, PlainCluster) as w:
        await w.cluster.prepare(0)
        answer = await w.cluster.ask("POST", f"/api/dfu/v1/apps/{APP}/claims", 0, json={"uses": 1})
        code = answer.json()["code"]
        client = AioClient()
        await client.open()
        w.clients.append(client)
        said = encode_enrolment(Enrolment(APP, "lamp7", code, "a secret of lamp7, long enough"))
        for number in (1, 0):  # its answer was lost, and it asks another process
            found = await client.ask(request(aiocoap.POST, w.url_of(number), ["v1", "enrol"], said))
            assert dotted(found) == "2.05", (dotted(found), found.payload)
        other = encode_enrolment(Enrolment(APP, "lamp8", code, "a secret of lamp8, long enough"))
        for number in (0, 1):
            found = await client.ask(request(aiocoap.POST, w.url_of(number), ["v1", "enrol"], other))
            assert dotted(found) == "4.03", "it was for one device"


async def test_our_agent_is_updated_while_it_goes_from_one_to_the_other(postgres: Server, tmp_path: Path) -> None:
    require("micropython")
    old, new = firmware("good", "1.0"), firmware("good", "1.1", code=os.urandom(40_000))
    async with devices(tmp_path) as w, trio.open_nursery() as nursery:
        fleet = Fleet(w.cluster.daemons[0], nursery, tmp_path)
        await fleet.add_app()
        await fleet.publish(old, "1.0")
        await fleet.publish(new, "1.1")
        board = await fleet.board("lamp1", old, url=w.url, transport="coap", ack_timeout_ms=500)
        board.config["psk"] = await fleet.add_psk("lamp1")
        del board.config["secret"]
        await fleet.want("lamp1", "1.1")
        w.switch.every = 7
        nursery.start_soon(board.run)
        status = await fleet.wait("lamp1", "done", timeout_s=120)
        assert status["current"] == "1.1" and min(w.switch.passed) > 5
        states = await fleet.history("lamp1")
        assert states.count("done") == 1 and "failed" not in states, states
        # It waits now, at whichever process; the other one is asked for something.
        await fleet.publish(again := firmware("good", "1.2", code=os.urandom(20_000)), "1.2")
        w.switch.every = 0
        body = {"device": "lamp1", "firmware": {"version": "1.2"}}
        await w.cluster.ask("POST", f"/api/dfu/v1/apps/{APP}/update", 1 - w.switch.at, json=body)
        with trio.fail_after(120):
            while (await fleet.status("lamp1"))["current"] != "1.2":
                await trio.sleep(0.1)
        assert again
        nursery.cancel_scope.cancel()
