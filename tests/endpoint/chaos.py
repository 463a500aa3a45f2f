"""What breaks at random, by one seed, and the devices that update meanwhile.

Nothing breaks for the app `calm`: whoever belongs to it must not notice that anything breaks.
"""

from __future__ import annotations

import base64
import binascii
import functools
import inspect
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import trio

from devicefw.sim.firmware import build
from dfud.api import Bus, EventSink, Store, StoreError, Telemetry
from dfud.testing.device import HttpDevice
from dfud.wire.messages import Type

ROUNDS_MAX = 400
OLD, NEW = build("print(1)\n", "1.0"), build("print(2)\n" * 50, "1.1", bytes(range(256)) * 40)
_BASIC = re.compile(r"Basic ([A-Za-z0-9+/=]+)")


def is_calm(*about: object) -> bool:
    """Whether a call with these arguments is for the app `calm`, by its name or by what its device logs in with."""
    text = repr(about)
    if "calm" in text:
        return True
    for found in _BASIC.findall(text):
        try:
            if b"@calm:" in base64.b64decode(found):
                return True
        except binascii.Error:
            continue
    return False


class Chaos:
    """Says when what breaks, from one seed; while `calm` is set, nothing does. `spared` are calls that never break."""

    def __init__(self, seed: int, rate: float) -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self.calm = True
        self.raised: Counter[str] = Counter()
        self.spared: set[str] = set()

    def perhaps(self, where: str) -> None:
        if self.calm or self._random.random() >= self._rate:
            return
        self.raised[where] += 1
        raise self._random.choice(
            (
                StoreError(f"chaos in {where}", retryable=True),
                RuntimeError(f"chaos in {where}"),
                RecursionError(f"chaos in {where}"),
                ExceptionGroup(f"chaos in {where}", [KeyError("chaos")]),
            )
        )

    def within(self, where: str, call: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
        """Return `call`, sync or async, that breaks before it does anything; with `after` also when it is done."""

        def breaks(arguments: tuple[object, ...], options: dict[str, object]) -> bool:
            return f"{where}{arguments}" not in self.spared and not is_calm(*arguments, *options.values())

        @functools.wraps(call)
        async def asynchronous(*arguments: Any, **options: Any) -> Any:
            may = breaks(arguments, options)
            if may:
                self.perhaps(where)
            result = await call(*arguments, **options)
            if may and after:
                self.perhaps(where)
            return result

        @functools.wraps(call)
        def synchronous(*arguments: Any, **options: Any) -> Any:
            if breaks(arguments, options):
                self.perhaps(where)
            return call(*arguments, **options)

        return asynchronous if inspect.iscoroutinefunction(call) else synchronous


class ChaosStore:
    """A store each of whose calls breaks, reads also when they are done: what is stored may not be told as an error.

    Not `run`, whose end is dfud's, and not `problem`, which is what dfud is told of the store's own end.
    """

    WHOLE = frozenset({"run", "check", "keep_in", "problem"})

    def __init__(self, store: Store, chaos: Chaos) -> None:
        self._store = store
        self._chaos = chaos
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name in self.WHOLE or not callable(found) or name.startswith("_"):
            return found
        if name == "new_blob":
            return self._new_blob
        call = self._chaos.within(f"store.{name}", found, after=name != "commit")

        @functools.wraps(call)
        def noted(*arguments: Any, **options: Any) -> Any:
            if self._chaos.calm:
                self.asked.append(f"store.{name}{arguments}")
            return call(*arguments, **options)

        return noted

    async def _new_blob(self) -> Any:
        self._chaos.perhaps("store.new_blob")
        return _ChaosBlob(await self._store.new_blob(), self._chaos)


class _ChaosBlob:
    def __init__(self, blob: Any, chaos: Chaos) -> None:
        self._blob = blob
        self.write = chaos.within("blob.write", blob.write)
        self.commit = chaos.within("blob.commit", blob.commit)
        self.aclose = blob.aclose


class ChaosSink(EventSink):
    """Breaks when it is given an event, and, with `also_runs`, while it runs."""

    def __init__(self, name: str, chaos: Chaos, *, also_runs: bool = False) -> None:
        self.name = name
        self._chaos = chaos
        self._also_runs = also_runs
        self.taken: Counter[str] = Counter()

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while self._also_runs:
            await trio.sleep(0.01)
            self._chaos.perhaps(f"sink.{self.name}.run")

    async def take(self, telemetry: Telemetry) -> None:
        if telemetry.app != "calm":
            self._chaos.perhaps(f"sink.{self.name}")
        self.taken[telemetry.app] += 1


class Fleet:
    """Devices that update over HTTP. One that is told to come again, or hung up on, does so; a calm one must never be."""

    def __init__(self, url: str, chaos: Chaos, secrets: dict[str, str]) -> None:
        self._url = url
        self._chaos = chaos
        self._secrets = secrets
        self.refused: Counter[str] = Counter()
        self.done: list[str] = []

    async def update(self, name: str, app: str) -> None:
        calm = app == "calm"
        auth = (f"{name}@{app}", self._secrets.get(name, "pw"))
        async with httpx.AsyncClient(base_url=self._url, auth=auth, timeout=60) as client:
            device = HttpDevice(client, OLD, "1.0", payload=4160)
            for _ in range(ROUNDS_MAX):
                try:
                    (await client.post("/v1/temp", content=b"1e999")).raise_for_status()
                    last = await device.update()
                except (httpx.HTTPError, AssertionError) as error:
                    if calm:
                        raise AssertionError(f"{name} was disturbed") from error
                    self.refused[type(error).__name__] += 1
                    continue
                if device.image == NEW and last is not None and last.type is Type.SYNC:
                    self.done.append(name)
                    return
                # Its package is being made, or it has to repeat what dfud could not store.
                await trio.sleep(0.01)
        raise AssertionError(f"{name} still runs {device.version}")
