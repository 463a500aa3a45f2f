"""A whole dfud as a process, seen from outside: what it takes, and whether honest devices are answered meanwhile."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import trio
from dfud_coap.message import Code

from devicefw.sim.firmware import build
from dfud.testing.daemon import DaemonProcess
from dfud.testing.device import HttpDevice
from dfud.wire.messages import Command
from tests.plugins.coap.plainclient import PlainClient
from tests.registry.served import peak_rss

MIB = 1 << 20
APPS = "/api/registry/v1alpha1/apps"
DFU = "/api/dfu/v1/apps"
OLD, NEW = build("print(1)\n", "1.0"), build("print(2)\n" * 50, "1.1", bytes(range(256)) * 40)
OTHER = build("print(3)\n" * 50, "1.1", bytes(range(255, -1, -1)) * 40)


class Outside(DaemonProcess):
    """settings: lines for sections of dfud.toml. `secrets_of` are the devices' secrets by name."""

    def __init__(self, directory: Path, settings: dict[str, str], plugins: tuple[str, ...]) -> None:
        super().__init__(directory, plugins=plugins, coap="plain = true")
        self._settings = settings
        self.secrets_of: dict[str, str] = {}

    def write_config(self) -> None:
        super().write_config()
        text = self.config.read_text()
        for section, lines in self._settings.items():
            head = f"[{section}]\n"
            text = text.replace(head, f"{head}{lines}\n") if head in text else f"{text}\n{head}{lines}\n"
        self.config.write_text(text)

    def _hear(self, line: bytes) -> None:
        plain = self.urls.get("coap", "")
        super()._hear(line)
        if self.urls.get("coap", "").startswith("coaps:"):
            self.urls["coaps"], self.urls["coap"] = self.urls["coap"], plain

    async def device(self, user: httpx.AsyncClient, app: str, name: str, **spec: Any) -> None:
        made = {"metadata": {"name": name, "application": app}, "spec": spec}
        (await user.post(f"{APPS}/{app}/devices", json=made)).raise_for_status()
        if not spec:
            self.secrets_of[name] = str((await user.post(f"{DFU}/{app}/secret/{name}")).json()["secret"])

    async def publish(self, user: httpx.AsyncClient, app: str, *versions: tuple[str, bytes]) -> None:
        for version, image in versions:
            parameters = {"version": version, "hardware": "esp32c3"}
            (await user.post(f"{DFU}/{app}/firmware", params=parameters, content=image)).raise_for_status()

    def authorization(self, app: str, name: str) -> bytes:
        return b"Basic " + base64.b64encode(f"{name}@{app}:{self.secrets_of[name]}".encode())

    def http(self, app: str, name: str, secret: str = "", *, local: str = "127.0.0.1") -> httpx.AsyncClient:
        """Return a device's connection, from an address of its own."""
        return httpx.AsyncClient(
            base_url=self.urls["http"],
            auth=(f"{name}@{app}", secret or self.secrets_of[name]),
            timeout=60,
            transport=httpx.AsyncHTTPTransport(local_address=local, limits=httpx.Limits(max_connections=200)),
        )

    async def counted(self, user: httpx.AsyncClient, metric: str, label: str = "") -> float:
        """Return the sum of a metric's lines that hold `label`."""
        lines = (await user.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(metric) and label in line)


@contextlib.asynccontextmanager
async def outside(
    directory: Path,
    settings: dict[str, str] | None = None,
    plugins: tuple[str, ...] = ("local", "http", "coap", "drogue"),
) -> AsyncIterator[tuple[Outside, httpx.AsyncClient]]:
    """A running dfud with the apps `good` and `bad`, and the devices h0 and h1 of good, b0 and b1 of bad."""
    daemon = Outside(directory, settings or {}, plugins)
    await daemon.init()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with daemon.client() as user:
            for app, names in (("good", ("h0", "h1")), ("bad", ("b0", "b1"))):
                spec = {"signing": {"mode": "optional"}}
                (await user.post(APPS, json={"metadata": {"name": app}, "spec": spec})).raise_for_status()
                for name in names:
                    await daemon.device(user, app, name)
            yield daemon, user
        assert daemon.exit_code is None, "dfud has ended"
        nursery.cancel_scope.cancel()


class Honest:
    """What others do while somebody attacks: each of their exchanges must succeed. `answered` by kind."""

    def __init__(self, daemon: Outside) -> None:
        self._daemon = daemon
        self.answered: dict[str, int] = {}

    async def by_http(self) -> Command | None:
        """One status of h0 on a connection of its own."""
        async with self._daemon.http("good", "h0") as client:
            return await HttpDevice(client, OLD, "1.0", payload=4160).poll()

    async def by_coap(self) -> bytes:
        """One telemetry in three blocks of h1, from a port of its own."""
        url, authorization = self._daemon.urls["coap"], self._daemon.authorization("good", "h1")
        async with PlainClient(url, authorization, repeat_s=1.0) as client:
            return await client.ask(Code.POST, "v1/temp", b"t" * 2500)

    async def by_user(self) -> None:
        async with self._daemon.client() as user:
            (await user.get(f"{APPS}/good/devices/h0")).raise_for_status()

    async def meanwhile(self, attack: Callable[[], Awaitable[Any]], *, least: int = 3, rest: float = 0.02, rounds: int = 1) -> int:
        """Run `attack`, and each kind of others over and over until it ends, `least` times at the least.

        Return by how many bytes the process has grown at its peak. Each kind must have been answered `least` times before the
        attack was over: whoever has to wait for its end is not. rounds: how often at most the attack is repeated for that.
        """
        for ask in (self.by_http, self.by_coap, self.by_user):
            await ask()
        before = peak_rss(self._daemon)
        over = trio.Event()
        during: dict[str, int] = {}

        async def again(kind: str, ask: Callable[[], Awaitable[Any]]) -> None:
            count = 0
            with trio.fail_after(120):
                while not over.is_set() or count < least:
                    await ask()
                    count += 1
                    if not over.is_set():
                        during[kind] = count
                    await trio.sleep(rest)
            self.answered[kind] = count

        async with trio.open_nursery() as nursery:
            nursery.start_soon(again, "http", self.by_http)
            nursery.start_soon(again, "coap", self.by_coap)
            nursery.start_soon(again, "user", self.by_user)
            for _ in range(rounds):
                await attack()
                if all(during.get(kind, 0) >= least for kind in ("http", "coap", "user")):
                    break
            over.set()
        assert all(during.get(kind, 0) >= least for kind in ("http", "coap", "user")), during
        return peak_rss(self._daemon) - before


async def together(*work: Callable[[], Awaitable[Any]]) -> None:
    async with trio.open_nursery() as nursery:
        for one in work:
            nursery.start_soon(one)
