"""What the end-to-end tests share: a real daemon, its API, and boards that run the real agent on real MicroPython."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio

from devicefw.sim.board import Board
from devicefw.sim.firmware import build, program
from dfud.testing.daemon import DaemonProcess

APP = "lamps"
CONFIRM_S = 1.5


class Fleet:
    """A daemon with one app, and helpers to ask and wait."""

    def __init__(self, daemon: DaemonProcess, nursery: trio.Nursery, directory: Path) -> None:
        self.daemon = daemon
        self.nursery = nursery
        self.directory = directory
        self.boards: list[Board] = []
        self.secrets = [daemon.token]

    def check_logs(self) -> None:
        """No secret that this fleet used stands in what the daemon logged, in any form that it travels in."""
        told = "\n".join(json.dumps(line) for line in self.daemon.lines)
        assert self.daemon.lines, "nothing was logged: this would prove nothing"
        for secret in self.secrets:
            for form in (secret, base64.b64encode(secret.encode()).decode().rstrip("=")):
                assert form not in told, "a secret is in the log"

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async with self.daemon.client() as client:
            answer = await client.request(method, path, **options)
        assert answer.is_success, answer.text
        return answer

    async def add_app(self) -> None:
        body = {"metadata": {"name": APP}, "spec": {"signing": {"mode": "optional"}}}
        await self.request("POST", "/api/registry/v1alpha1/apps", json=body)

    async def add_device(self, name: str) -> str:
        """Return the new device's secret."""
        body = {"metadata": {"name": name, "application": APP}}
        await self.request("POST", f"/api/registry/v1alpha1/apps/{APP}/devices", json=body)
        answer = await self.request("POST", f"/api/dfu/v1/apps/{APP}/secret/{name}")
        secret = str(answer.json()["secret"])
        self.secrets += [secret, base64.b64encode(f"{name}@{APP}:{secret}".encode()).decode()]
        return secret

    async def add_psk(self, name: str) -> str:
        """Return the device's new key for OSCORE, in hexadecimal digits."""
        key = str((await self.request("POST", f"/api/dfu/v1/apps/{APP}/psk/{name}")).json()["psk"])
        self.secrets += [key, base64.b64encode(bytes.fromhex(key)).decode()]
        return key

    async def publish(self, image: bytes, version: str) -> None:
        parameters = {"version": version, "hardware": "esp32c3"}
        await self.request("POST", f"/api/dfu/v1/apps/{APP}/firmware", params=parameters, content=image)

    async def want(self, device: str, version: str) -> None:
        body = {"device": device, "firmware": {"version": version}}
        await self.request("POST", f"/api/dfu/v1/apps/{APP}/update", json=body)

    async def status(self, device: str) -> dict[str, Any]:
        async with self.daemon.client() as client:
            answer = await client.get(f"/api/registry/v1alpha1/apps/{APP}/devices/{device}")
        return dict(answer.json()["status"]["firmware"]) if answer.is_success else {}

    async def history(self, device: str) -> list[str]:
        """Return the states that the device's deployments went through, oldest first."""
        answer = await self.request("GET", f"/api/dfu/v1/apps/{APP}/history/{device}")
        return [entry["state"] for entry in reversed(answer.json())]

    async def wait(self, device: str, state: str, *, timeout_s: float = 120) -> dict[str, Any]:
        """Wait until the device's newest deployment is in `state`; return status.firmware."""
        found: dict[str, Any] = {}
        with trio.move_on_after(timeout_s):
            while True:
                found = await self.status(device)
                if found.get("deployment", {}).get("state") == state:
                    return found
                await trio.sleep(0.1)
        raise AssertionError(f"{device} is not {state} after {timeout_s} s: {found}\n" + "\n".join(self.consoles()))

    async def board(self, name: str, image: bytes, **config: Any) -> Board:
        """Make a device and its board, with `image` flashed into slot 0 as esptool does."""
        secret = await self.add_device(name)
        settings = {
            "url": self.daemon.urls["http"],
            "app": APP,
            "device": name,
            "secret": secret,
            "confirm_s": CONFIRM_S,
            "watchdog_s": 3,
            "backoff_ms": 300,
            **config,
        }
        board = Board(self.directory / name, settings, image=image)
        self.boards.append(board)
        return board

    def consoles(self) -> list[str]:
        """Return the end of what boards and daemon said, for a failing test."""
        boards = [line for board in self.boards for line in board.console[-40:]]
        return boards + [str(line) for line in self.daemon.lines[-20:]]


def firmware(kind: str, version: str, *, code: bytes = b"") -> bytes:
    return build(program(kind, version), version, code)


@asynccontextmanager
async def fleet(directory: Path, *, extra: str = "", controller: str = "", coap: str | None = None) -> AsyncIterator[Fleet]:
    """A daemon with the app; at the end its log is searched for every secret that was used. coap: what [transport.coap] says,
    None for no CoAP."""
    plugins = ("local", "http", "coap") if coap is not None else ("local", "http")
    daemon = DaemonProcess(directory / "dfud", extra=extra, controller=controller, plugins=plugins, coap=coap or "")
    await daemon.init()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        found = Fleet(daemon, nursery, directory)
        await found.add_app()
        yield found
        nursery.cancel_scope.cancel()
    found.check_logs()
