"""Devices that live through anything: each says what it has to say until it is answered, by whichever process.

They speak dfu/1 and write no flash; what they do with a command is dfud.testing.device's. `Fleet` remembers what each was answered,
for tests/cluster/checker.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio

from dfud.testing.device import SimulatedDevice
from dfud.wire.messages import (
    Command,
    Outcome,
    Phase,
    Progress,
    Result,
    Status,
    Type,
    decode_command_untrusted,
    decode_status_untrusted,
)
from tests.plugins.postgres.cluster import APP

AGAIN_S = 0.2  # after a connection that broke; Retry-After where one is told, at most so long:
AGAIN_MAX_S = 1.0
POLL_S = 2  # how long a device that has nothing to do is parked


class Answered:
    """What a device said and was told to it, in order; only what was answered."""

    def __init__(self) -> None:
        self.said: list[Status] = []
        self.told: list[Command | None] = []


class LivingDevice(SimulatedDevice):
    """urls: of balancers or processes, asked in turn, the next one after one that failed."""

    def __init__(self, name: str, secret: str, urls: Sequence[str], image: bytes, version: str) -> None:
        self.name = name
        self.answers = Answered()
        self.codes: Counter[int] = Counter()  # 0: a connection that broke
        self.without_retry_after = 0
        self.leaves: set[str] = set()  # versions that it boots and goes back from
        self._urls = urls
        self._turn = sum(name.encode())
        self.auth = (f"{name}@{APP}", secret)
        self._wait_s = 0
        self._due_s = float("inf")
        super().__init__(self._say, self._get, image, version)

    async def live(self) -> None:
        """Poll and update until cancelled."""
        limits = httpx.Limits(max_keepalive_connections=4)
        async with httpx.AsyncClient(auth=self.auth, timeout=POLL_S + 20.0, limits=limits, verify=False) as self._client:
            while True:
                self._wait_s = POLL_S
                command = await self.poll()
                if command is not None and command.type is Type.UPDATE:
                    await self._take(command)
                elif command is not None:
                    await trio.sleep(AGAIN_S)

    async def _take(self, command: Command) -> None:
        image = await self.download(command)
        await self.poll(progress=Progress(command.package, command.chunks, Phase.WRITTEN))
        old = self.image, self.version
        self.image, self.version = image, command.version
        await self.poll(trial=True)
        if self.version in self.leaves:
            self.image, self.version = old
            text = f"{self.name} left {command.version}"
            await self.poll(result=Result(Outcome.ROLLED_BACK, hashlib.sha256(image).digest(), 1, text, 3, 12))

    async def _say(self, said: bytes) -> bytes | None:
        wait_s, self._wait_s = self._wait_s, 0
        answer = await self._until_answered("POST", "/v1/dfu", content=said, params={"ct": wait_s})
        body = answer.content if answer.status_code == 200 else None
        self.answers.said.append(decode_status_untrusted(said))
        self.answers.told.append(decode_command_untrusted(body) if body is not None else None)
        return body

    async def _get(self, package: str, number: int) -> bytes:
        return (await self._until_answered("GET", f"/v1/dfu/{package}/{number}")).content

    async def _until_answered(self, method: str, path: str, **given: Any) -> httpx.Response:
        while True:
            url = self._urls[self.at]
            wait_s = AGAIN_S
            self._due_s = trio.current_time() + float(given.get("params", {}).get("ct", 0))
            try:
                answer = await self._client.request(method, url + path, **given)
                self.codes[answer.status_code] += 1
                if answer.is_success:
                    return answer
                if answer.status_code not in (502, 503, 504):
                    raise AssertionError(f"{self.name}: {method} {path}: {answer.status_code} {answer.text}")
                told = answer.headers.get("retry-after")
                if answer.status_code == 503 and told is None:
                    self.without_retry_after += 1
                wait_s = min(float(told or AGAIN_S), AGAIN_MAX_S)
            except httpx.TransportError:
                self.codes[0] += 1
            finally:
                self._due_s = float("inf")
            self._turn += 1
            await trio.sleep(wait_s)

    @property
    def late_s(self) -> float:
        """How long it has waited for an answer, beyond the time that it is parked."""
        return trio.current_time() - self._due_s

    @property
    def at(self) -> int:
        """Which of the URLs it asks now."""
        return self._turn % len(self._urls)

    def has_said(self, version: str) -> bool:
        """Whether it was answered after it said that it runs the version for good, and nothing else."""
        last = self.answers.said[-1] if self.answers.said else None
        return last is not None and last.version == version and not last.trial and last.progress is None


class Fleet:
    """Runs its devices in a nursery until that is cancelled."""

    def __init__(self, secrets: dict[str, str], urls: Sequence[str], image: bytes, version: str) -> None:
        self.devices = [LivingDevice(name, secret, urls, image, version) for name, secret in secrets.items()]

        self._scope = trio.CancelScope()
        self._goes_on = trio.Event()

    async def live(self) -> None:
        while True:
            self._goes_on, self._scope = trio.Event(), trio.CancelScope()
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for device in self.devices:
                        nursery.start_soon(device.live)
            await self._goes_on.wait()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Have nobody say anything meanwhile. Only between two rounds: whoever is cut short begins with a poll."""
        self._scope.cancel()
        try:
            yield
        finally:
            self._goes_on.set()

    def count(self, version: str) -> int:
        return sum(device.has_said(version) for device in self.devices)

    async def reach(self, version: str, number: int | None = None) -> None:
        """Return when so many devices (None: all) have said that they run the version."""
        while self.count(version) < (len(self.devices) if number is None else number):
            await trio.sleep(0.02)

    @property
    def codes(self) -> Counter[int]:
        return sum((device.codes for device in self.devices), Counter())
