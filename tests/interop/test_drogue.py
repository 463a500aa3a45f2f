"""A real dfud and what Drogue's devices send over HTTP: Ajour's update protocol, telemetry. Clients: the other files."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from dfud_drogue.cbor import decode_untrusted, encode

from dfud.testing.daemon import DaemonProcess

IMAGE = random.Random(3).randbytes(5003)


@pytest.fixture
async def daemon(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[DaemonProcess]:
    extra = f'[events.log]\npath = "{tmp_path}/events.jsonl"\n'
    daemon = DaemonProcess(tmp_path, extra=extra, plugins=("local", "http", "drogue"))
    await daemon.init()
    await nursery.start(daemon.run)
    yield daemon
    nursery.cancel_scope.cancel()


async def make_app_and_device(daemon: DaemonProcess) -> None:
    spec = {"authentication": {"credentials": [{"pass": "hey"}]}}
    async with daemon.client() as client:
        base = "/api/registry/v1alpha1/apps"
        assert (
            await client.post(base, json={"metadata": {"name": "app1"}, "spec": {"signing": {"mode": "optional"}}})
        ).status_code == 201
        for name in ("dev1", "gw1"):
            body: dict[str, Any] = {"metadata": {"name": name, "application": "app1"}, "spec": spec}
            if name == "dev1":
                body["spec"] = {**spec, "gatewaySelector": {"matchNames": ["gw1"]}}
            assert (await client.post(f"{base}/app1/devices", json=body)).status_code == 201


async def publish_firmware(client: httpx.AsyncClient, version: str, image: bytes, sequence: int) -> None:
    answer = await client.post(
        "/api/dfu/v1/apps/app1/firmware",
        params={"version": version, "hardware": "board", "sequence": str(sequence), "kind": "raw"},
        content=image,
    )
    assert answer.status_code == 201, answer.text


async def want(client: httpx.AsyncClient, firmware: dict[str, Any]) -> None:
    url = "/api/registry/v1alpha1/apps/app1/devices/dev1"
    device = (await client.get(url)).json()
    device["spec"]["firmware"] = firmware
    assert (await client.put(url, json=device)).status_code == 204


async def status_of(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/api/registry/v1alpha1/apps/app1/devices/dev1")).json()
    firmware: dict[str, Any] = found["status"]["firmware"]
    return firmware


class AjourDevice:
    """Drives as embedded-update's FirmwareUpdater does: one status after the other, state in RAM."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, auth=("dev1@app1", "hey"), timeout=30)
        self.version = "0.1.0"
        self.flash = b""

    async def ask(self, update: dict[int, Any] | None = None) -> dict[int, Any]:
        body = encode({0: self.version.encode(), 1: 512, 2: None, 3: update})
        answer = await self._client.post("/v1/dfu?ct=1", content=body)
        assert (answer.status_code, answer.headers["command"]) == (200, "dfu"), answer.text
        found: dict[int, Any] = decode_untrusted(answer.content)
        return found

    async def update(self) -> dict[int, Any]:
        """Ask and write until something other than a write comes; return that."""
        self.flash = b""
        answer = await self.ask()
        while 2 in answer:
            write = answer[2]
            assert write[2] == len(self.flash)
            self.flash += write[3]
            answer = await self.ask({0: write[0], 1: len(self.flash)})
        return answer


async def test_a_device_of_ajours_is_updated_and_one_that_reverts_is_left_alone(daemon: DaemonProcess) -> None:
    await make_app_and_device(daemon)
    device = AjourDevice(daemon.urls["http"])
    async with daemon.client() as client:
        assert 0 in await device.ask()  # nothing is wanted: wait
        await publish_firmware(client, "0.2.0", IMAGE, 2)
        await want(client, {"version": "0.2.0"})
        answer = await device.update()
        assert answer[3][2] == hashlib.sha256(IMAGE).digest()
        assert device.flash == IMAGE
        device.version = "0.2.0"
        assert 1 in await device.ask()
        status = await status_of(client)
        assert (status["current"], status["conditions"][0]["status"]) == ("0.2.0", "True")
        assert status["deployment"]["state"] == "done"

        await publish_firmware(client, "0.3.0", IMAGE[::-1], 3)
        await want(client, {"version": "0.3.0"})
        assert 3 in await device.update()
        # It boots, fails, and its bootloader goes back.
        for _ in range(3):
            assert 0 in await device.ask()
        status = await status_of(client)
        assert status["deployment"]["state"] == "rolled-back"
        assert status["deployment"]["blocked"] is True
        # It still hears that it runs what it should, once that is so.
        await want(client, {"version": "0.2.0"})
        assert 1 in await device.ask()


async def test_a_target_that_changes_while_it_is_written_waits_for_its_end(daemon: DaemonProcess) -> None:
    await make_app_and_device(daemon)
    device = AjourDevice(daemon.urls["http"])
    async with daemon.client() as client:
        await publish_firmware(client, "0.2.0", IMAGE, 2)
        await publish_firmware(client, "0.3.0", IMAGE[::-1], 3)
        await want(client, {"version": "0.2.0"})
        first = (await device.ask())[2]
        await want(client, {"version": "0.3.0"})
        second = (await device.ask({0: b"0.2.0", 1: len(first[3])}))[2]
        assert (second[0], second[2]) == (b"0.2.0", len(first[3]))
        assert (await device.ask())[2][0] == b"0.3.0"


async def test_a_firmware_that_is_taken_back_is_not_written_any_further(daemon: DaemonProcess) -> None:
    await make_app_and_device(daemon)
    device = AjourDevice(daemon.urls["http"])
    half: dict[int, Any] = {0: b"0.2.0", 1: 512}
    whole: dict[int, Any] = {0: b"0.2.0", 1: len(IMAGE)}
    async with daemon.client() as client:
        await publish_firmware(client, "0.1.0", IMAGE[1:], 1)
        await publish_firmware(client, "0.2.0", IMAGE, 2)
        await want(client, {"version": "0.2.0"})
        assert 2 in await device.ask()
        assert 2 in await device.ask(half)
        # Back to what runs; nothing; hold: none of them lets it go on, even if all of it is there.
        for firmware, number in (({"version": "0.1.0"}, 1), ({}, 0), ({"version": "0.2.0", "hold": True}, 0)):
            await want(client, {"version": "0.2.0"})
            assert 3 in await device.ask(whole)
            await want(client, firmware)
            for update in (half, whole):
                assert number in await device.ask(update)
        # Wanted again, it goes on where it is; nothing of this was taken for a failure of the device.
        await want(client, {"version": "0.2.0"})
        assert (await device.ask(half))[2][2] == 512
        assert 3 in await device.ask(whole)


async def test_a_device_that_goes_back_after_it_was_in_sync_is_left_alone_until_somebody_says_retry(
    daemon: DaemonProcess,
) -> None:
    """It booted, reported, and crashed before it had confirmed: to Ajour that was a device to update, for ever."""
    await make_app_and_device(daemon)
    device = AjourDevice(daemon.urls["http"])
    async with daemon.client() as client:
        await publish_firmware(client, "0.1.0", IMAGE[1:], 1)
        await publish_firmware(client, "0.2.0", IMAGE, 2)
        await want(client, {"version": "0.2.0"})
        assert 3 in await device.update()
        device.version = "0.2.0"
        assert 1 in await device.ask()
        device.version = "0.1.0"
        for _ in range(3):
            assert 0 in await device.ask()
        status = await status_of(client)
        assert (status["current"], status["deployment"]["blocked"]) == ("0.1.0", True)
        condition = status["conditions"][0]
        assert (condition["status"], condition["reason"]) == ("False", "rolled-back")
        assert "its old one again" in condition["message"]
        assert (await client.post("/api/dfu/v1/apps/app1/retry/dev1")).status_code == 202
        while 0 in (answer := await device.ask()):
            pass  # the retry is on its way
        assert answer[2][0] == b"0.2.0"
        assert 3 in await device.update()
        device.version = "0.2.0"
        assert 1 in await device.ask()
        # Somebody who wants the old one gets it, and the new one after that: nothing was left by the device itself.
        for version in ("0.1.0", "0.2.0"):
            await want(client, {"version": version})
            assert 3 in await device.update()
            device.version = version
            assert 1 in await device.ask()


@pytest.mark.parametrize("at", ["app", "device"])
async def test_drogues_other_stores_are_refused_at_the_device(daemon: DaemonProcess, at: str) -> None:
    await make_app_and_device(daemon)
    url = "/api/registry/v1alpha1/apps/app1" + ("/devices/dev1" if at == "device" else "")
    device = AjourDevice(daemon.urls["http"])
    async with daemon.client() as client:
        await publish_firmware(client, "0.2.0", IMAGE, 2)
        for key in ("container", "oci", "hawkbit", "file"):
            found = (await client.get(url)).json()
            found["spec"]["firmware"] = {key: {"image": "x:1", "build": {"any": 1}}}
            assert (await client.put(url, json=found)).status_code == 204
            (condition,) = (await status_of(client))["conditions"]
            assert (condition["type"], condition["status"], condition["reason"]) == ("InSync", "Unknown", "BadSpec")
            assert f"{key} is not understood" in condition["message"]
            assert 0 in await device.ask(), "it waits"
            # Which of two would count, nobody can tell.
            found = (await client.get(url)).json()
            found["spec"]["firmware"] = {"version": "0.2.0", key: {}}
            refused = await client.put(url, json=found)
            assert (refused.status_code, refused.json()["error"]) == (400, "InvalidRequest")
            assert key in refused.json()["message"]


async def test_keys_beside_the_version_are_kept_as_they_are(daemon: DaemonProcess) -> None:
    await make_app_and_device(daemon)
    async with daemon.client() as client:
        await want(client, {"version": "0.2.0", "build": {"source": {"git": {"uri": "x"}}}})
        device = (await client.get("/api/registry/v1alpha1/apps/app1/devices/dev1")).json()
    assert device["spec"]["firmware"] == {"version": "0.2.0", "build": {"source": {"git": {"uri": "x"}}}}


async def test_drogues_http_endpoint_is_as_its_clients_know_it(daemon: DaemonProcess, tmp_path: Path) -> None:
    await make_app_and_device(daemon)
    async with httpx.AsyncClient(base_url=daemon.urls["http"], timeout=30) as client:
        forms: list[tuple[str, tuple[str, str] | None]] = [
            ("/v1/t", ("dev1@app1", "hey")),
            ("/v1/t?application=app1", ("dev1", "hey")),
        ]
        for path, auth in forms:
            assert (await client.post(path, content=b"{}", auth=auth)).status_code == 202
        denied = await client.post("/v1/t", content=b"{}", auth=("dev1@app1", "no"))
        assert (denied.status_code, denied.json()) == (
            403,
            {"code": 403, "error": "AuthenticationError", "message": "Authentication failed"},
        )
        bearer = await client.post("/v1/t", content=b"{}", headers={"authorization": "Bearer hey"})
        assert bearer.status_code == 403
        bad = await client.post(
            "/v1/t", content=b"{", auth=("dev1@app1", "hey"), headers={"content-type": "application/json"}
        )
        assert (bad.status_code, bad.content) == (406, b"")
        through = await client.post("/v1/t?as=dev1", content=b"1", auth=("gw1@app1", "hey"))
        assert through.status_code == 202
        assert (await client.post("/v1/t?as=gw1", content=b"1", auth=("dev1@app1", "hey"))).status_code == 403
        async with daemon.client() as user, trio.open_nursery() as nursery:
            answers: list[httpx.Response] = []

            async def wait() -> None:
                answers.append(await client.post("/v1/t?commandTimeout=20", content=b"1", auth=("dev1@app1", "hey")))

            nursery.start_soon(wait)
            url = "/api/command/v1alpha1/apps/app1/devices/dev1"
            assert (await user.post(url, params={"command": "blink"}, content=b'{"n":1}')).status_code == 202
        assert (answers[0].status_code, answers[0].headers["command"], answers[0].content) == (200, "blink", b'{"n":1}')
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    assert [(e["device"], e["sender"]) for e in events] == [("dev1", "dev1")] * 2 + [("dev1", "gw1"), ("dev1", "dev1")]


async def test_an_answer_to_a_board_of_drogue_devices_fits_its_buffer(daemon: DaemonProcess) -> None:
    """Its OTA task asks for 2048 bytes and holds the whole answer, headers and all, in 2048."""
    await make_app_and_device(daemon)
    async with daemon.client() as client:
        await publish_firmware(client, "0.2.0", IMAGE, 2)
        await want(client, {"version": "0.2.0"})
    body = encode({0: b"0.1.0", 1: 2048, 2: None, 3: {0: b"0.2.0", 1: 1024}})
    async with httpx.AsyncClient(base_url=daemon.urls["http"], auth=("dev1@app1", "hey"), timeout=60) as board:
        headers = {"content-type": "application/cbor"}
        answer = await board.post("/v1/dfu?ct=30", content=body, headers=headers)
    size = len("HTTP/1.1 200 OK\r\n\r\n") + sum(len(k) + len(v) + 4 for k, v in answer.headers.raw) + len(answer.content)
    assert size <= 2048
    assert decode_untrusted(answer.content)[2] == {0: b"0.2.0", 1: None, 2: 1024, 3: IMAGE[1024:2048]}
