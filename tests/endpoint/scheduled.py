"""A store that waits at every step until the test says who goes on, and an oracle of what is true meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

import trio

from dfud.api import App, AppChanged, Bus, Capability, Device, DeviceChanged, DeviceView, Metadata

T = TypeVar("T")


class Gates:
    """Who waits, in order of coming. `step()` lets one of them go on as far as the next gate, or a few of them at once.

    Those who go on at once take turns at every other checkpoint on their way (locks, events, bare ones), as trio's scheduler
    draws it; hypothesis seeds that, so a failure comes again.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._waiting: list[trio.Event] = []

    async def pass_(self) -> None:
        event = trio.Event()
        self._waiting.append(event)
        await event.wait()

    async def step(self) -> bool:
        """Return whether anybody was waiting."""
        await trio.testing.wait_all_tasks_blocked()
        if not self._waiting:
            return False
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            if self._waiting:
                self._waiting.pop(self._random.randrange(len(self._waiting))).set()
        await trio.testing.wait_all_tasks_blocked()
        return True

    async def settle(self) -> None:
        while await self.step():
            pass


class GatedStore:
    """What the authenticator asks of a store. Every answer was true at some moment between its two gates."""

    capabilities: frozenset[Capability] = frozenset()

    def __init__(self, gates: Gates, bus: Bus) -> None:
        self._gates = gates
        self._bus = bus
        self.app_specs: dict[str, dict[str, Any]] = {}
        self.specs: dict[tuple[str, str], dict[str, Any]] = {}
        self.aliases: dict[tuple[str, str], str] = {}

    async def _read(self, what: Callable[[], T]) -> T:
        await self._gates.pass_()
        found = what()
        await self._gates.pass_()
        return found

    async def app(self, name: str) -> App | None:
        return await self._read(lambda: App(Metadata(name), self.app_specs[name]) if name in self.app_specs else None)

    async def apps(self, **options: Any) -> list[App]:
        offset = options.get("offset", 0)
        return (await self._read(lambda: [App(Metadata(n), s) for n, s in self.app_specs.items()]))[offset:]

    async def find_alias(self, app: str, name: str) -> str | None:
        return await self._read(lambda: name if (app, name) in self.specs else self.aliases.get((app, name)))

    async def device(self, app: str, name: str) -> DeviceView | None:
        def view() -> DeviceView | None:
            spec = self.specs.get((app, name))
            return DeviceView(Device(Metadata(name, app), spec)) if spec is not None else None

        return await self._read(view)

    async def views(self, app: str, names: Sequence[str]) -> dict[str, DeviceView]:
        return await self._read(
            lambda: {n: DeviceView(Device(Metadata(n, app), self.specs[app, n])) for n in names if (app, n) in self.specs}
        )

    # Changes are one step: stored, and said on the bus.

    def put(self, app: str, name: str, spec: dict[str, Any] | None) -> None:
        if spec is None:
            self.specs.pop((app, name), None)
        else:
            self.specs[app, name] = spec
        self._bus.publish(DeviceChanged(app, name, deleted=spec is None))

    def put_app(self, app: str, spec: dict[str, Any]) -> None:
        self.app_specs[app] = spec
        self._bus.publish(AppChanged(app))

    def move_alias(self, app: str, alias: str, name: str) -> None:
        old = self.aliases.get((app, alias))
        self.aliases[app, alias] = name
        for changed in {old, name} - {None}:
            self._bus.publish(DeviceChanged(app, str(changed)))
