"""What breaks at random, by one seed, and the devices that update meanwhile.

Nothing breaks for the app `calm`: whoever belongs to it must not notice that anything breaks.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import inspect
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import trio
from dfud_coap.answering import Answering
from dfud_coap.message import Code as CoapCode
from dfud_coap.notifying import Notifying
from dfud_coap.observe import Observers
from dfud_coap.securing import Securing
from dfud_coap.server import Server
from dfud_coap.transfers import Transfers
from dfud_coap.waiting import WaitingRoom
from dfud_coap.work import Work

from devicefw.sim.firmware import build
from dfud.api import Bus, EventSink, Store, StoreError, Telemetry
from dfud.testing.device import HttpDevice, SimulatedDevice
from dfud.wire.messages import Type
from tests.plugins.coap.oscoredevice import Device
from tests.plugins.coap.plainclient import CoapDevice, Failed, PlainClient

ROUNDS_MAX = 10_000  # whoever runs them has a time limit: packages may be long in the making
ASKED_AGAIN = 10
OLD, NEW = build("print(1)\n", "1.0"), build("print(2)\n" * 50, "1.1", bytes(range(256)) * 40)
COAP_HANDLERS: list[tuple[type[Any], str]] = [
    *((Server, name) for name in ("_read", "_act", "_publish", "_tell")),
    *((Transfers, name) for name in ("assemble", "later_block", "fetch", "_send_chunks")),
    *((Notifying, name) for name in ("notify", "post_again")),
    *((Securing, name) for name in ("take", "_keyed", "_unprotected", "read_request")),
    *((Answering, name) for name in ("finish", "cut", "acknowledge")),
    (WaitingRoom, "park"),
    (Work, "start"),
    *((Observers, name) for name in ("register", "_told", "_watch", "_again")),
]
_BASIC = re.compile(r"Basic ([A-Za-z0-9+/=]+)")


def is_calm(*about: object) -> bool:
    """Whether a call with these arguments is for the app `calm`, by its name or by what its device logs in with."""
    text = repr([_whole(one) for one in about])
    if "calm" in text:
        return True
    for found in _BASIC.findall(text):
        try:
            if b"@calm:" in base64.b64decode(found):
                return True
        except binascii.Error:
            continue
    return False


def _whole(one: object) -> object:
    """Return what tells whose an object of CoAP's is: an exchange has its datagram, an observation its request."""
    for inside in ("exchange", "request", "data"):
        found = getattr(one, inside, None)
        if found is not None and not callable(found):
            return _whole(found) if inside != "data" else found
    return one


def coap_breaks(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each handler of the CoAP transport break, before it does anything."""
    for kind, name in COAP_HANDLERS:
        monkeypatch.setattr(kind, name, chaos.within(f"coap.{kind.__name__}.{name}", getattr(kind, name), share=0.3))


class Chaos:
    """Says when what breaks, from one seed; while `calm` is set, nothing does. `spared` are calls that never break."""

    def __init__(self, seed: int, rate: float) -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self.calm = True
        self.raised: Counter[str] = Counter()
        self.spared: set[str] = set()

    def perhaps(self, where: str, share: float = 1.0) -> None:
        if self.calm or self._random.random() >= self._rate * share:
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

    def within(self, where: str, call: Callable[..., Any], *, after: bool = False, share: float = 1.0) -> Callable[..., Any]:
        """Return `call`, sync or async, that breaks before it does anything; with `after` also when it is done.

        share: of the rate, for calls of which each request makes many.
        """

        def breaks(arguments: tuple[object, ...], options: dict[str, object]) -> bool:
            return f"{where}{arguments}" not in self.spared and not is_calm(*arguments, *options.values())

        @functools.wraps(call)
        async def asynchronous(*arguments: Any, **options: Any) -> Any:
            may = breaks(arguments, options)
            if may:
                self.perhaps(where, share)
            result = await call(*arguments, **options)
            if may and after:
                self.perhaps(where)
            return result

        @functools.wraps(call)
        def synchronous(*arguments: Any, **options: Any) -> Any:
            if breaks(arguments, options):
                self.perhaps(where, share)
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


class _Patient(PlainClient):
    """Asks again what was refused, as an agent does: it goes on where it was."""

    tries = 1
    refused: Counter[str]

    async def ask(self, code: int, path: str, payload: bytes = b"", *, query: str = "") -> bytes:
        for left in range(self.tries - 1, -1, -1):
            try:
                return await super().ask(code, path, payload, query=query)
            except Failed as error:
                if not left or error.code not in (CoapCode.FAILED, CoapCode.UNAVAILABLE, CoapCode.INCOMPLETE, 0):
                    raise
                self.refused[str(error.code)] += 1
        raise AssertionError("unreachable")


class Fleet:
    """Devices that update over HTTP, or over CoAP at `coap`, plain or with OSCORE under `keys`.

    One that is told to come again, or hung up on, does so; a calm one must never be.
    """

    def __init__(
        self, url: str, chaos: Chaos, secrets: dict[str, str], *, coap: str = "", keys: dict[str, bytes] | None = None
    ) -> None:
        self._url = url
        self._coap = coap
        self._keys = keys or {}
        self._chaos = chaos
        self._secrets = secrets
        self.refused: Counter[str] = Counter()
        self.done: list[str] = []

    async def update(self, name: str, app: str) -> None:
        calm = app == "calm"
        auth = (f"{name}@{app}", self._secrets.get(name, "pw"))
        async with httpx.AsyncClient(base_url=self._url, auth=auth, timeout=60) as client:

            async def telemetry() -> None:
                (await client.post("/v1/temp", content=b"1e999")).raise_for_status()

            await self._until_done(name, HttpDevice(client, OLD, "1.0", payload=4160), telemetry, calm=calm)

    async def update_by_coap(self, name: str, app: str) -> None:
        """The same over CoAP, with OSCORE for those that have a key."""
        key = self._keys.get(name)
        authorization = b"Basic " + base64.b64encode(f"{name}@{app}:{self._secrets.get(name, 'pw')}".encode())
        security = Device(1, key, f"{name}@{app}") if key is not None else None
        tries = 1 if app == "calm" else ASKED_AGAIN
        async with _Patient(self._coap, authorization, security, repeat_s=0.3) as client:
            client.tries, client.refused = tries, self.refused

            async def telemetry() -> None:
                await client.ask(CoapCode.POST, "v1/temp", b"1e999" * 500)

            device = CoapDevice(client, OLD, "1.0", payload=4160, wait_s=0)
            await self._until_done(name, device, telemetry, calm=app == "calm")

    async def talk_by_coap(self, name: str, app: str) -> None:
        """Send telemetry for ever, with OSCORE and without."""
        authorization = b"Basic " + base64.b64encode(f"{name}@{app}:{self._secrets.get(name, 'pw')}".encode())
        for boot in range(2, 250):
            security = Device(boot, self._keys[name], f"{name}@{app}") if boot % 2 else None
            async with PlainClient(self._coap, authorization, security, repeat_s=0.3) as client:
                for _ in range(20):
                    with contextlib.suppress(Failed):
                        await client.ask(CoapCode.POST, "v1/temp", b"1" * 3000)

    async def _until_done(
        self, name: str, device: SimulatedDevice, telemetry: Callable[[], Awaitable[None]], *, calm: bool
    ) -> None:
        for _ in range(ROUNDS_MAX):
            try:
                await telemetry()
                last = await device.update()
            except (httpx.HTTPError, Failed, AssertionError) as error:
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
