"""dfud in front of hawkBit within the test's own process: every part but the sockets of devices and users."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import trio
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.names import target_id
from dfud_hawkbit.records import LINKS, Link, get
from dfud_hawkbit.store import HawkbitStore
from dfud_local.store import LocalStore

from dfud.api import App, Bus, DeploymentChanged, Device, Metadata, Selector, State
from dfud.controller.config import ControllerConfig
from dfud.controller.controller import Controller
from dfud.controller.packages import Packages
from dfud.registry.firmware import FirmwareRegistry, Upload
from dfud.registry.registry import Registry
from dfud.testing.device import SimulatedDevice
from dfud.wire.messages import Command, Type, decode_status_untrusted, encode_command

PATIENCE_S = 60.0
OLD = b"old image" * 100
MGMT = "/rest/v1"


class Server(Protocol):
    """A hawkBit, real or the model."""

    url: str
    user: str
    password: str
    gateway_token: str
    tenant: str


async def until(
    what: str,
    ask: Callable[[], Awaitable[Any]],
    *,
    timeout_s: float = PATIENCE_S,
    moving: Callable[[], Any] | None = None,
) -> Any:
    """Wait until `ask()` gives something true, and return that.

    moving: what changes while things go on, such as a count of what is left: it may take any time as long as that moves, and
    fails when it has not for `timeout_s`.
    """
    found: Any = None
    before: Any = None
    with trio.move_on_after(timeout_s) as scope:
        while True:
            found = await ask()
            if found:
                return found
            if moving is not None and (now := moving()) != before:
                before = now
                scope.deadline = trio.current_time() + timeout_s
            await trio.sleep(0.05)
    if moving is not None:
        raise AssertionError(f"{what}: nothing moved for {timeout_s} s at {before!r}; last: {found!r}")
    raise AssertionError(f"not after {timeout_s} s: {what}; last: {found!r}")


async def sent(device: SimulatedDevice) -> Command:
    """Have a device poll until it is sent an update; return that."""

    async def ask() -> Command | None:
        command = await device.poll()
        return command if command is not None and command.type is Type.UPDATE else None

    found: Command = await until("the device is sent an update", ask)
    return found


async def whole_way(device: SimulatedDevice) -> None:
    """Have a device poll until it is sent an update, and go through with that. A wish is stored before it is told of."""
    before = device.image

    async def ask() -> bool:
        await device.update()
        return device.image is not before

    await until("the device is updated", ask)


class Person:
    """Somebody who works with hawkBit's own API, without dfud."""

    def __init__(self, server: Server, client: httpx.AsyncClient) -> None:
        self.server = server
        self._client = client

    async def ask(self, method: str, path: str, *, ok: tuple[int, ...] = (), **options: Any) -> Any:
        answer = await self._client.request(method, MGMT + path, **options)
        assert answer.is_success or answer.status_code in ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content and answer.is_success else None

    async def ddi(self, method: str, target: str, path: str = "", **options: Any) -> httpx.Response:
        """Speak as a device, or as a gateway that is not dfud."""
        headers = {"authorization": f"GatewayToken {self.server.gateway_token}"}
        url = f"/{self.server.tenant}/controller/v1/{target}{path}"
        return await self._client.request(method, url, headers=headers, auth=None, **options)

    async def module(
        self,
        name: str,
        version: str,
        files: dict[str, bytes],
        *,
        kind: str = "os",
        metadata: dict[str, str] | None = None,
    ) -> int:
        body = [{"name": name, "version": version, "type": kind}]
        number = int((await self.ask("POST", "/softwaremodules", json=body))[0]["id"])
        for filename, data in files.items():
            await self.ask(
                "POST",
                f"/softwaremodules/{number}/artifacts",
                files={"file": (filename, data, "application/octet-stream")},
            )
        said = {"dfud.kind": "raw", "dfud.hardware": "esp32c3"} if metadata is None else metadata
        entries = [{"key": key, "value": value, "targetVisible": True} for key, value in said.items()]
        if entries:
            await self.ask("POST", f"/softwaremodules/{number}/metadata", json=entries)
        return number

    async def set(self, name: str, version: str, *modules: int, kind: str = "os") -> int:
        body = [{"name": name, "version": version, "type": kind, "modules": [{"id": n} for n in modules]}]
        return int((await self.ask("POST", "/distributionsets", json=body))[0]["id"])

    async def simple_set(self, version: str, image: bytes) -> int:
        name = f"by-hand-{uuid.uuid4().hex[:8]}"
        return await self.set(name, version, await self.module(name, version, {"image.bin": image}))

    async def assign(self, number: int, *targets: str, **how: Any) -> int:
        """Assign a set; return the action of the first target."""
        body = [{"id": target, **how} for target in targets]
        answer = await self.ask("POST", f"/distributionsets/{number}/assignedTargets", json=body)
        actions = answer.get("assignedActions") or []
        return int(actions[0]["id"]) if actions else 0

    async def actions(self, target: str) -> list[dict[str, Any]]:
        """Return a target's actions, oldest first."""
        found = await self.ask("GET", f"/targets/{target}/actions", params={"limit": 100, "sort": "id:ASC"})
        return list(found["content"])

    async def action(self, target: str, number: int) -> dict[str, Any]:
        return dict(await self.ask("GET", f"/targets/{target}/actions/{number}"))

    async def statuses(self, target: str, number: int) -> list[dict[str, Any]]:
        """Return what was reported of an action, oldest first."""
        params = {"limit": 200, "sort": "id:ASC"}
        found = await self.ask("GET", f"/targets/{target}/actions/{number}/status", params=params)
        return list(found["content"])

    async def finished(self, target: str, number: int) -> bool:
        return str((await self.action(target, number))["status"]) == "finished"

    async def installed(self, target: str) -> str:
        found = await self.ask("GET", f"/targets/{target}/installedDS")
        return str(found["version"]) if found else ""

    async def assigned(self, target: str) -> str:
        found = await self.ask("GET", f"/targets/{target}/assignedDS")
        return str(found["version"]) if found else ""

    async def update_status(self, target: str) -> str:
        return str((await self.ask("GET", f"/targets/{target}"))["updateStatus"])

    async def settings(self, **values: Any) -> None:
        """Change the tenant's configuration; `__` in a name stands for a dot."""
        for key, value in values.items():
            await self.ask("PUT", f"/system/configs/{key.replace('__', '.')}", json={"value": value})


@asynccontextmanager
async def person_at(server: Server) -> AsyncIterator[Person]:
    async with httpx.AsyncClient(base_url=server.url, auth=(server.user, server.password), timeout=60) as client:
        yield Person(server, client)


class Harness:
    """One dfud with one app of its own. It may be stopped and started: what it knows is in its directory."""

    def __init__(
        self, server: Server, directory: Path, nursery: trio.Nursery, *, app: str = "", **config: Any
    ) -> None:
        self.server = server
        self.directory = directory
        self.app = app or f"app-{uuid.uuid4().hex[:10]}"
        self._outer = nursery
        self._config = config
        self._scope: trio.CancelScope | None = None
        self._stopped = trio.Event()
        self.changes: list[DeploymentChanged] = []
        self.shift_s = 0.0  # how far the clock of those who decide is from the right one
        directory.mkdir(parents=True, exist_ok=True)
        self.password = directory / "password"
        self.token = directory / "token"
        self.password.write_text(server.password)
        self.token.write_text(server.gateway_token)
        self.devices: dict[str, SimulatedDevice] = {}

    def config(self) -> HawkbitConfig:
        fast: dict[str, Any] = {
            "poll_s": 0.1,
            "feedback_s": 0.0,
            "window_s": 0.2,
            "retry_s": 0.05,
            "retry_max_s": 0.2,
            "attributes_s": 0.0,
            "seen_per_s": 0.0,
            "timeout_s": 30.0,
        }
        return HawkbitConfig(
            url=self.server.url,
            tenant=self.server.tenant,
            user=self.server.user,
            password_file=str(self.password),
            gateway_token_file=str(self.token),
            **{**fast, **self._config},
        )

    async def start(self) -> None:
        self._stopped = trio.Event()
        await self._outer.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                self.bus = Bus()
                self.records = LocalStore(self.directory / "state")
                self.store = HawkbitStore(self.config())
                self.store.keep_in(self.records)
                await nursery.start(self.store.run, self.bus)
                policy = ControllerConfig(progress_s=0.0, retry_s=0)
                packages = Packages(
                    self.store, self.directory / "packages", disk_bytes=1 << 30, memory_bytes=1 << 24, workers=1
                )
                await nursery.start(packages.run)
                self.controller = Controller(self.store, self.bus, packages, policy, lambda: time.time() + self.shift_s)
                await nursery.start(self.controller.run)
                self.registry = Registry(self.store, self.bus, bytes(32), time.time)
                self.firmware = FirmwareRegistry(self.store, self.bus, time.time, 1 << 24)
                self.bus.subscribe(DeploymentChanged, self.changes.append)
                self.store.connect(self.registry, self.firmware, self.bus)
                if await self.store.app(self.app) is None:
                    spec = {"signing": {"mode": "optional"}}
                    await self.registry.create_app(App(Metadata(self.app), spec), "test")
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._stopped.set()

    async def stop(self) -> None:
        """End this dfud between two of its steps, whatever it is doing."""
        assert self._scope is not None
        self._scope.cancel()
        await self._stopped.wait()

    # What users do

    async def publish(self, version: str, image: bytes) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield image

        await self.firmware.publish(self.app, Upload(version, "esp32c3", None, "raw"), body(), "test")

    async def want(self, version: str | None, device: str | None = "d1", **more: Any) -> None:
        firmware = {"version": version, **more} if version is not None else None
        await self.registry.set_firmware(self.app, device, firmware, "test")

    async def wanted(self, device: str = "d1") -> Any:
        view = await self.store.device(self.app, device)
        assert view is not None
        return view.device.spec.get("firmware")

    async def is_wanted(self, version: str, device: str = "d1") -> bool:
        return ((await self.wanted(device)) or {}).get("version") == version

    async def all_devices(self) -> list[Any]:
        return await self.store.devices(self.app, Selector(), limit=100_000)

    # Devices

    def target(self, device: str = "d1") -> str:
        return target_id(self.app, device)

    async def device(
        self, name: str = "d1", image: bytes = OLD, version: str = "1.0", **labels: str
    ) -> SimulatedDevice:
        """Make a device, and wait until hawkBit knows it."""
        await self.registry.create_device(self.app, Device(Metadata(name, labels=labels)), "test")
        await self.registered(name)
        return self.simulate(name, image, version)

    def simulate(self, name: str, image: bytes = OLD, version: str = "1.0") -> SimulatedDevice:
        async def exchange(status: bytes) -> bytes:
            decoded = decode_status_untrusted(status)
            return encode_command(await self.controller.status(self.app, name, decoded, "test", patience_s=20.0))

        async def fetch(package: str, number: int) -> bytes:
            found = await self.controller.load_chunks(package)
            assert found is not None
            self.controller.fetched(self.app, name, package, number)
            return found.chunks[number]

        self.devices[name] = SimulatedDevice(exchange, fetch, image, version)
        return self.devices[name]

    async def registered(self, name: str = "d1") -> Link:
        async def ask() -> Link | None:
            link = await self.link(name)
            return link if link is not None and link.registered else None

        found: Link = await until(f"{name} is registered", ask)
        return found

    async def link(self, name: str = "d1") -> Link | None:
        return await get(self.records, LINKS, f"{self.app}/{name}", Link)

    async def action_of(self, name: str = "d1") -> int:
        """Wait until dfud has taken over an action; return its number."""

        async def ask() -> int:
            link = await self.link(name)
            return link.action if link is not None else 0

        return int(await until(f"{name} has an action", ask))

    async def quiet(self) -> None:
        """Wait until hawkBit has been told everything."""

        async def ask() -> bool:
            sync = self.store.sync
            return not sync.worker.work and not sync.publishing.work and not sync.devices.look

        def left() -> tuple[int, int]:
            sync = self.store.sync
            return len(sync.worker.work) + len(sync.publishing.work), len(sync.devices.look)

        await until("nothing waits for hawkBit", ask, moving=left)

    async def deployed(self, name: str, state: State) -> None:
        async def ask() -> bool:
            view = await self.store.device(self.app, name)
            return view is not None and view.deployment is not None and view.deployment.state is state

        await until(f"{name} is {state}", ask)


def digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


@asynccontextmanager
async def harness_at(server: Server, directory: Path, **config: Any) -> AsyncIterator[Harness]:
    """A running dfud; at the end it is stopped."""
    async with trio.open_nursery() as nursery:
        harness = Harness(server, directory, nursery, **config)
        await harness.start()
        yield harness
        nursery.cancel_scope.cancel()
