"""Several dfud on one database, and a user and devices who talk to any of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio

from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import HttpDevice
from tests.plugins.postgres.server import config_for

APP = "lamps"
LATEST_S = 120.0  # for a test to fail, not what is promised
OLD, NEW = b"old image" * 200, b"new image" * 300
IMAGES: Mapping[str, bytes] = {"1.0": OLD, "2.0": NEW}


class Cluster:
    """plugins: of every process."""

    plugins: tuple[str, ...] = ("postgres", "http")

    def __init__(self, directory: Path, size: int, socket: str = "", extra: str = "") -> None:
        self.directory = directory
        self.config = config_for(directory / "database", socket)
        self.daemons = [
            self.process(
                n,
                directory / f"dfud{n}",
                plugins=self.plugins,
                store="postgres",
                store_section=self.section(n),
                credential_key=f"{directory}/credential.key",
                packages=f"{directory}/packages",
                extra=extra,
            )
            for n in range(size)
        ]

    def process(self, number: int, directory: Path, **given: Any) -> DaemonProcess:
        return DaemonProcess(directory, **given)

    def section(self, number: int) -> str:
        """Return [store.postgres] of one process."""
        return f"""
[store.postgres]
host = "{self.config.host}"
database = "{self.config.database}"
blobs_path = "{self.directory}/blobs"
"""

    def user(self, number: int = 0) -> httpx.AsyncClient:
        return self.daemons[number].client()

    async def ask(self, method: str, path: str, number: int = 0, **options: Any) -> httpx.Response:
        async with self.user(number) as client:
            answer = await client.request(method, path, **options)
        assert answer.is_success, answer.text
        return answer

    async def prepare(self, devices: int, images: Mapping[str, bytes] = IMAGES) -> dict[str, str]:
        """Make the app, devices and their firmware, by version; return the devices' secrets."""
        body: dict[str, Any] = {"metadata": {"name": APP}, "spec": {"signing": {"mode": "optional"}}}
        await self.ask("POST", "/api/registry/v1alpha1/apps", json=body)
        secrets = {}
        for n in range(devices):
            name, at = f"dev{n}", n % len(self.daemons)
            body = {"metadata": {"name": name, "application": APP}}
            await self.ask("POST", f"/api/registry/v1alpha1/apps/{APP}/devices", at, json=body)
            answer = await self.ask("POST", f"/api/dfu/v1/apps/{APP}/secret/{name}", at)
            secrets[name] = str(answer.json()["secret"])
        for number, (version, image) in enumerate(images.items()):
            parameters = {"version": version, "hardware": "esp32c3", "kind": "raw"}
            at = number % len(self.daemons)
            await self.ask("POST", f"/api/dfu/v1/apps/{APP}/firmware", at, params=parameters, content=image)
        return secrets

    async def want(self, version: str, number: int = 0, device: str = "") -> None:
        whom = {"device": device} if device else {}
        await self.ask("POST", f"/api/dfu/v1/apps/{APP}/update", number, json={**whom, "firmware": {"version": version}})

    async def firmware_of(self, device: str, number: int = 0) -> dict[str, Any]:
        answer = await self.ask("GET", f"/api/registry/v1alpha1/apps/{APP}/devices/{device}", number)
        found: dict[str, Any] = answer.json()["status"]["firmware"]
        return found

    @asynccontextmanager
    async def client_of(self, device: str, secret: str, number: int) -> AsyncIterator[httpx.AsyncClient]:
        """Lend a device's client of one of the processes."""
        url = self.daemons[number].urls["http"]
        async with httpx.AsyncClient(base_url=url, auth=(f"{device}@{APP}", secret), timeout=LATEST_S) as client:
            yield client


@asynccontextmanager
async def running(cluster: Cluster) -> AsyncIterator[Cluster]:
    """Start every process; the first makes the key and the administrator's token."""
    token = await cluster.daemons[0].init()
    async with trio.open_nursery() as nursery:
        for daemon in cluster.daemons:
            daemon.token = token
            daemon.secrets.add(token)
            await nursery.start(daemon.run)
        yield cluster
        nursery.cancel_scope.cancel()


class RoamingDevice(HttpDevice):
    """Says each thing to another process: `clients` in turn."""

    def __init__(self, clients: list[httpx.AsyncClient], image: bytes, version: str) -> None:
        super().__init__(clients[0], image, version)
        turn = 0

        def following() -> httpx.AsyncClient:
            nonlocal turn
            turn += 1
            return clients[turn % len(clients)]

        async def exchange(status: bytes) -> bytes | None:
            answer = await following().post("/v1/dfu", content=status)
            answer.raise_for_status()
            return answer.content if answer.status_code == 200 else None

        async def fetch(package: str, number: int) -> bytes:
            answer = await following().get(f"/v1/dfu/{package}/{number}")
            answer.raise_for_status()
            return answer.content

        self._exchange = exchange
        self._fetch = fetch
