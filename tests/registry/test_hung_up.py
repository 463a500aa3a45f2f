"""A user hangs up right behind a request: what it changed is so everywhere, seen from outside."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import trio

from dfud.testing.daemon import DaemonProcess
from dfud.wire.messages import Status, encode_status
from tests.registry.served import APPS, DFU

ROUNDS = 8
STATUS = encode_status(Status("1.0", bytes(32), "esp32c3", 2, 4160, 1 << 20))


def send_and_hang_up(url: str, request: str) -> None:
    at = urlsplit(url)
    with socket.create_connection((at.hostname, at.port or 80)) as connection:
        connection.sendall(request.encode())


async def test_a_secret_that_is_revoked_by_a_user_who_hangs_up_ends_at_once(tmp_path: Path, nursery: trio.Nursery) -> None:
    daemon = DaemonProcess(tmp_path)
    await daemon.init()
    await nursery.start(daemon.run)
    url, bearer = daemon.urls["registry"], f"Bearer {daemon.token}"
    async with (
        httpx.AsyncClient(base_url=url, headers={"authorization": bearer}, timeout=60) as user,
        httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as device,
    ):
        (await user.post(APPS, json={"metadata": {"name": "a"}})).raise_for_status()
        for name in (f"d{number}" for number in range(ROUNDS)):
            made = {"metadata": {"name": name, "application": "a"}, "spec": {}}
            (await user.post(f"{APPS}/a/devices", json=made)).raise_for_status()
            secret = (await user.post(f"{DFU}/secret/{name}")).json()["secret"]
            answer = await device.post("/v1/dfu", content=STATUS, auth=(f"{name}@a", secret))
            assert answer.status_code == 200, "it is logged in"
            line = f"POST {DFU}/secret/{name}?revoke=true HTTP/1.1"
            send_and_hang_up(url, f"{line}\r\nhost: x\r\nauthorization: {bearer}\r\ncontent-length: 0\r\n\r\n")
            with trio.fail_after(60):
                while True:
                    entries = await user.get("/api/dfu/v1/audit", params={"target": f"a/{name}"})
                    if entries.text.count("rotate-secret") == 2:
                        break
            codes: list[int] = []
            while 403 not in codes and len(codes) < 20:  # it can be read a moment before everybody has been told
                codes.append((await device.post("/v1/dfu", content=STATUS, auth=(f"{name}@a", secret))).status_code)
            assert codes[-1] == 403, "it is on record that the secret was revoked"
