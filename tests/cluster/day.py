"""Rounds of one cluster and its fleet: a new version for everybody while something fails, then everything is looked through."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio

from tests.cluster.checker import check
from tests.cluster.fleet import Fleet
from tests.cluster.whole import Whole
from tests.plugins.postgres.cluster import APP, LATEST_S

IMAGE_BYTES = 60_000
ROUND_S = 3 * LATEST_S  # for a test to fail
Fault = Callable[["Day"], Awaitable[None]]


def image_of(version: str) -> bytes:
    """Return an image that does not compress, so that it comes in several chunks; half of it is the same in all versions."""
    same = random.Random(APP).randbytes(IMAGE_BYTES // 2)
    return same + random.Random(version).randbytes(IMAGE_BYTES // 2)


class Day:
    """seed: of everything that is random in the faults; printed with a failure."""

    def __init__(self, cluster: Whole, fleet: Fleet, seed: int) -> None:
        self.cluster = cluster
        self.fleet = fleet
        self.seed = seed
        self.random = random.Random(seed)
        self.wanted: list[str] = []
        self.version = ""

    async def user(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask as a user who tries again, at another process, until it is answered."""
        while True:
            number = self.random.choice(sorted(self.cluster.alive)) if self.cluster.alive else 0
            try:
                async with self.cluster.user(number) as client:
                    answer = await client.request(method, path, **options)
                if answer.is_success:
                    return answer
                if answer.status_code == 409 and path.endswith("/firmware"):  # it was stored, and the answer lost
                    return answer
                assert answer.status_code == 503, answer.text
            except httpx.TransportError:
                pass
            await trio.sleep(0.1)

    async def publish(self, version: str, *, kind: str = "raw") -> None:
        parameters = {"version": version, "hardware": "esp32c3", "kind": kind}
        await self.user("POST", f"/api/dfu/v1/apps/{APP}/firmware", params=parameters, content=image_of(version))

    async def round(self, *faults: Fault) -> None:
        """Have everybody on a new version, while all `faults` happen; then check."""
        self.version = version = f"{len(self.wanted) + 2}.0"
        with trio.fail_after(ROUND_S):
            await self.publish(version)
            self.wanted.append(version)
            before, began = self.fleet.codes, trio.current_time()
            async with trio.open_nursery() as nursery:
                for fault in faults:
                    nursery.start_soon(fault, self)
                await self.user("POST", f"/api/dfu/v1/apps/{APP}/update", json={"firmware": {"version": version}})
                await self.fleet.reach(version)
            took_s = trio.current_time() - began
            reasons = {t.reason for d in self.fleet.devices for t in d.answers.told if t is not None and t.version in ("", version)}
            print(f"{version}: {took_s:.1f} s, answers {dict(self.fleet.codes - before)}, {sorted(reasons)}")
            await self.all_are_ready()
            await check(self.cluster, self.fleet, self.wanted)

    async def all_are_ready(self) -> None:
        """Return when every process says by itself that it can serve."""
        for number in sorted(self.cluster.alive):
            async with self.cluster.user(number) as client:
                while (await client.get("/readyz")).status_code != 200:
                    await trio.sleep(0.1)

    async def some_have_it(self) -> None:
        """Return when the round is under way, with half of it or more to come."""
        await self.fleet.reach(self.version, self.random.randrange(len(self.fleet.devices) // 2 + 1))


@asynccontextmanager
async def a_day(cluster: Whole, devices: int, urls: Sequence[str] = (), seed: int | None = None) -> AsyncIterator[Day]:
    """Make so many devices and have them live. urls: where they ask; (): every process itself. The cluster runs already."""
    seed = random.randrange(1 << 30) if seed is None else seed
    secrets = await cluster.prepare(devices, {"1.0": image_of("1.0")})
    fleet = Fleet(secrets, urls or [daemon.urls["http"] for daemon in cluster.daemons], image_of("1.0"), "1.0")
    day = Day(cluster, fleet, seed)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.live)
            with trio.fail_after(LATEST_S):
                await fleet.reach("1.0")
            yield day
            nursery.cancel_scope.cancel()
    except BaseException:
        print(f"seed {seed}, versions {day.wanted}, answers {dict(fleet.codes)}")
        raise
