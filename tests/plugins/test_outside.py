"""The plugin of docs/plugins.md, installed from outside of the tree, carries a whole update."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path

import httpx
import pytest
import trio

from devicefw.sim.firmware import build
from dfud.api import Code, Reply, Transport
from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import HttpDevice, SimulatedDevice
from dfud.testing.transport import AUTHORIZATION, Publish, TransportContainment, TransportPeer
from dfud.wire.messages import Command, Type
from tests.plugins.documents import blocks, install, module_of


class FramesPeer(TransportPeer):
    """A device behind the gateway of the document."""

    async def _ask(self, url: str, frame: dict[str, object]) -> bytes:
        stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
        async with stream:
            await stream.send_all(json.dumps(frame).encode() + b"\n")
            data = b""
            while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
                more = await stream.receive_some(65536)
                assert more, "closed without an answer"
                data += more
            return data[4:]

    async def publish(self, url: str, publish: Publish) -> Reply:
        status = base64.b64encode(publish.body).decode()
        body = await self._ask(url, {"auth": publish.authorization.decode(), "status": status})
        return Reply(Code.COMMAND, "dfu", body)

    async def fetch(
        self, url: str, package: str, first: int, last: int, *, authorization: bytes = AUTHORIZATION
    ) -> tuple[Code, bytes]:
        body = await self._ask(url, {"auth": authorization.decode(), "package": package, "chunk": first})
        return Code.COMMAND, body

    def samples(self) -> list[bytes]:
        status = {"auth": AUTHORIZATION.decode(), "status": "gQAB"}
        chunk = {"auth": "x", "package": "p", "chunk": 7}
        strange = [b'{"auth":"x","package":"p","chunk":1e999}\n', b'{"auth":"x","package":"p","chunk":18446744073709551616}\n']
        return [json.dumps(frame).encode() + b"\n" for frame in (status, chunk)] + [*strange, b"[" * 60_000 + b"\n"]


class TestTheDocumentsTransport(TransportContainment):
    @pytest.fixture
    def transport(self) -> Transport:
        (code,) = blocks("plugins.md", "python")
        module = vars(module_of("plugins.md", "dfud_frames", code))
        transport: Transport = module["FramesTransport"](module["FramesConfig"](port=0))
        return transport

    @pytest.fixture
    def peer(self) -> FramesPeer:
        return FramesPeer()


OLD, NEW = build("print(1)\n", "1.0"), build("print(2)\n" * 50, "1.1", bytes(range(256)) * 300)
APP = "/api/dfu/v1/apps/a"


async def prepared(daemon: DaemonProcess) -> str:
    async with daemon.client() as client:
        body = {"metadata": {"name": "a"}, "spec": {"signing": {"mode": "optional"}}}
        await client.post("/api/registry/v1alpha1/apps", json=body)
        await client.post("/api/registry/v1alpha1/apps/a/devices", json={"metadata": {"name": "d", "application": "a"}})
        for version, image in (("1.0", OLD), ("1.1", NEW)):
            parameters = {"version": version, "hardware": "esp32c3"}
            (await client.post(f"{APP}/firmware", params=parameters, content=image)).raise_for_status()
        body = {"device": "d", "firmware": {"version": "1.1"}}
        (await client.post(f"{APP}/update", json=body)).raise_for_status()
        return str((await client.post(f"{APP}/secret/d")).json()["secret"])


async def states(daemon: DaemonProcess) -> list[str]:
    async with daemon.client() as client:
        return [e["state"] for e in reversed((await client.get(f"{APP}/history/d")).json())]


async def test_a_strangers_transport_carries_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("plugins.md", "python")
    declared, configured = blocks("plugins.md", "toml")
    assert 'frames = "dfud_frames"' in declared
    install(tmp_path / "site", "dfud_frames", code, "frames = dfud_frames")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site") + os.pathsep + os.environ.get("PYTHONPATH", ""))
    section = re.search(r"\[transport\.frames\]\n.*", configured, re.DOTALL)
    assert section is not None
    daemon = DaemonProcess(tmp_path / "dfud", extra=section[0], plugins=("local", "http", "frames"))
    await daemon.init()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        secret = await prepared(daemon)
        authorization = "Basic " + base64.b64encode(f"d@a:{secret}".encode()).decode()
        stream = await trio.open_tcp_stream("127.0.0.1", int(daemon.urls["frames"].rpartition(":")[2]))

        async def ask(frame: dict[str, object]) -> bytes:
            await stream.send_all(json.dumps({"auth": authorization, **frame}).encode() + b"\n")
            data = b""
            while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
                data += await stream.receive_some(65536)
            return data[4:]

        async def exchange(status: bytes) -> bytes | None:
            return await ask({"status": base64.b64encode(status).decode()}) or None

        async def fetch(package: str, number: int) -> bytes:
            return await ask({"package": package, "chunk": number})

        device = SimulatedDevice(exchange, fetch, OLD, "1.0")
        with trio.fail_after(120):
            while (command := await device.poll()) is None or command.type is not Type.UPDATE:
                await trio.sleep(0.05)  # its package is being made
        last = await device.update()
        assert last is not None and last.type is Type.SYNC
        assert device.image == NEW
        assert await states(daemon) == ["pending", "notified", "fetching", "written", "trial", "done"]
        await stream.send_all(b"nonsense\n")
        async with daemon.client() as client:
            assert (await client.get("/healthz")).status_code == 200
        nursery.cancel_scope.cancel()


async def test_the_thin_path_over_http_with_a_bad_update_and_a_restart(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        secret = await prepared(daemon)
        async with httpx.AsyncClient(base_url=daemon.urls["http"], auth=("d@a", secret), timeout=60) as client:
            device = HttpDevice(client, OLD, "1.0", payload=4160)

            async def told() -> Command:
                """Ask until there is an update: its package may be made first."""
                with trio.fail_after(120):
                    while (command := await device.poll()) is None or command.type is not Type.UPDATE:
                        await trio.sleep(0.05)
                return command

            await device.download(await told())
            last = await device.update(good=False, text="Traceback: boom")
            assert last is not None and last.type is Type.WAIT
            async with daemon.client() as user:
                found = (await user.get("/api/registry/v1alpha1/apps/a/devices/d")).json()["status"]["firmware"]
                assert found["deployment"]["state"] == "rolled-back"
                assert found["deployment"]["result"]["text"] == "Traceback: boom"
                again = await device.poll()
                assert again is not None and again.type is Type.WAIT
                await user.post(f"{APP}/retry/d")
            await told()
            last = await device.update()
            assert last is not None and last.type is Type.SYNC
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("secret", ["wrong", "", "x" * 3000])
async def test_a_stranger_learns_nothing(tmp_path: Path, secret: str) -> None:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        await prepared(daemon)
        answers = set()
        for user in ("d@a", "nobody@a", "d@nothing", "d"):
            async with httpx.AsyncClient(base_url=daemon.urls["http"], auth=(user, secret), timeout=60) as client:
                answer = await client.post("/v1/dfu", content=b"\x80")
                answers.add((answer.status_code, answer.content))
        assert len(answers) == 1
        assert answers.pop()[0] == 403
        nursery.cancel_scope.cancel()
