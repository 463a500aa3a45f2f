"""Tells each sink what waits for it in the outbox: at least once, the changes of one device in their order, each sink for itself.

A change is deleted when its sink has taken it over. Where that fails, it and what is behind it of the same device wait and
are tried again; others go on. What a sink refuses again and again, or what nobody takes for too long, becomes a dead letter.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from dfud.api import (
    Bus,
    Change,
    ChangeEvent,
    DeleteDocument,
    DeploymentChanged,
    DeviceStateChanged,
    EventSink,
    NotFoundError,
    PutDocument,
    RolloutChanged,
    Store,
    StoreError,
    TrimDocuments,
    note,
    read_record,
)
from dfud.controller.outbox import PAGE, Outbox, dead, time_of_key, waiting

log = logging.getLogger("dfud")
WINDOW = 1000  # changes of one sink that are in memory
ROOM_MIN = WINDOW // 4  # so much of it has to be free before more is read
LOOK_S = 30.0  # between looks at the whole outbox, however quiet it is
GATHER_S = 0.05  # what comes so close together is read at once
LATE_NS = 500_000_000  # so much later than its key a change is mostly committed
QUIET_S = 60.0  # between two lines of the log about dead letters
RECOUNT_S = 60.0
STORE_S = 1.0  # between attempts to store what became of a change
AWAY_AFTER = 3  # failures in a row after which a sink counts as away, and its first success wakes all that wait


class Letter(msgspec.Struct, frozen=True):
    """A change that was given up. problem: what the sink said last."""

    event: ChangeEvent
    problem: str
    at_s: float
    attempts: int = 0


class Delivery:
    """One sink. now: seconds since the epoch. problem: why it takes nothing now, or ""."""

    def __init__(self, store: Store, bus: Bus, outbox: Outbox, sink: EventSink, now: Callable[[], float]) -> None:
        self.sink = sink
        self.problem = ""
        self.delivered = 0
        self.failed = 0
        self.dead = 0
        self._store = store
        self._outbox = outbox
        self._config = outbox.config
        self._now = now
        self._news = trio.Event()
        self._lines: dict[str, deque[tuple[str, ChangeEvent]]] = {}
        self._held: set[str] = set()
        self._gone: set[str] = set()
        self._again = trio.lowlevel.ParkingLot()
        self._failures = 0
        self._behind = ""
        self._unlogged = 0
        self._log_at = float("-inf")
        bus.subscribe(DeploymentChanged, self._woken)
        bus.subscribe(RolloutChanged, self._woken)
        bus.subscribe(DeviceStateChanged, self._woken)  # of another process, which has put something there as well

    def _woken(self, event: object) -> None:
        self._news.set()

    def wake(self) -> None:
        """Look at the outbox: something was put there."""
        self._news.set()

    @property
    def name(self) -> str:
        return self.sink.name

    async def run(self) -> None:
        """Tell until cancelled, while no other process on the same store does. May be called again after it has raised."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._recount)
            while True:
                async with self._store.lead(f"outbox.{self.name}"):
                    await self._lead()

    async def _lead(self) -> None:
        self._behind = ""
        self._lines.clear()
        self._held.clear()
        self._gone.clear()
        self.dead = await self._count_dead()
        limiter = trio.CapacityLimiter(self._config.concurrent)
        async with trio.open_nursery() as nursery:
            whole = True
            while True:
                self._news = trio.Event()
                await self._bound()
                while await self._fill(nursery, limiter, whole=whole or not self._held):
                    whole = False
                with trio.move_on_after(LOOK_S) as scope:
                    await self._news.wait()
                whole = scope.cancelled_caught
                await trio.sleep(GATHER_S)

    async def _recount(self) -> None:
        """Where much seems to wait, count it: another process may have told it."""
        while True:
            await trio.sleep(RECOUNT_S)
            if self._outbox.numbers[self.name] > self._config.waiting_max // 2:
                await self._outbox.count(self.name)

    async def _fill(self, nursery: trio.Nursery, limiter: trio.CapacityLimiter, *, whole: bool) -> bool:
        """Take what waits into memory, the oldest first; say whether there was something new.

        whole: read it from the beginning, else from a little before what was read last, for a key may be older than those that
        were committed before it. What was committed later still is found by the next whole look.
        """
        room = WINDOW - len(self._held)
        if room < ROOM_MIN:
            return False  # what is under way would be read again for each one that is done
        found, after = False, "" if whole else self._behind
        for key, raw in await self._store.documents(waiting(self.name), after=after, limit=WINDOW):
            if key in self._held:
                continue
            if room <= 0:
                break
            self._behind = max(self._behind, f"{max(0, time_of_key(key) - LATE_NS):020d}")
            event = read_record("outbox.record", raw, ChangeEvent, sink=self.name, key=key)
            if event is None:
                await self._forget(key)
                continue
            room, found = room - 1, True
            self._held.add(key)
            partition = f"{event.kind}/{event.app}/{event.subject}"
            line = self._lines.get(partition)
            if line is None:
                line = self._lines[partition] = deque()
                nursery.start_soon(self._tell_line, partition, line, limiter)
            line.append((key, event))
        return found

    async def _tell_line(
        self, partition: str, line: deque[tuple[str, ChangeEvent]], limiter: trio.CapacityLimiter
    ) -> None:
        while line:
            key, event = line[0]
            await self._tell(key, event, limiter)
            line.popleft()
            self._held.discard(key)
            self._gone.discard(key)
        del self._lines[partition]
        self._news.set()

    async def _tell(self, key: str, event: ChangeEvent, limiter: trio.CapacityLimiter) -> None:
        """Tell one change until it is taken or given up."""
        config, number, refused = self._config, 0, 0
        while key not in self._gone:
            async with limiter:
                problem, again = await self._once(event)
            if not problem:
                await self._taken(key)
                return
            number += 1
            self.failed += 1
            self.problem = problem
            refused += not again
            self._failures += again
            if refused >= config.attempts or self._now() - event.at_s > config.keep_s:
                await self._give_up(key, Letter(event, problem, self._now(), number))
                return
            with trio.move_on_after(min(config.retry_s * 2.0 ** min(number - 1, 30), config.retry_max_s)):
                if again:
                    await self._again.park()
                else:
                    await trio.sleep_forever()

    async def _once(self, event: ChangeEvent) -> tuple[str, bool]:
        """Return what went wrong, or "", and whether that was the sink's being away and not its judging the change."""
        try:
            with trio.fail_after(self._config.timeout_s):
                await self.sink.tell(event)
        except trio.TooSlowError:
            return f"no answer in {self._config.timeout_s:g} s", True
        except StoreError as error:
            return str(error) or type(error).__name__, error.retryable
        except Exception as error:
            note(f"sink.{self.name}", error, app=event.app, subject=event.subject)
            return f"{type(error).__name__}: {error}"[:300], False
        return "", False

    async def _taken(self, key: str) -> None:
        self.delivered += 1
        self.problem = ""
        if self._failures >= AWAY_AFTER:
            self._again.unpark_all()
        self._failures = 0
        await self._forget(key)

    async def _forget(self, key: str) -> None:
        """Delete a change. Until that is done it may be told again, after a restart."""
        while True:
            try:
                await self._store.commit([DeleteDocument(waiting(self.name), key)])
            except NotFoundError:
                pass
            except StoreError:
                await trio.sleep(STORE_S)
                continue
            self._outbox.numbers[self.name] = max(0, self._outbox.numbers[self.name] - 1)
            return

    async def _give_up(self, key: str, letter: Letter) -> None:
        self._unlogged += 1
        if trio.current_time() >= self._log_at:
            extra: dict[str, object] = {"sink": self.name, "app": letter.event.app, "id": key, "reason": letter.problem}
            log.warning("events became dead letters", extra={**extra, "number": self._unlogged})
            self._unlogged, self._log_at = 0, trio.current_time() + QUIET_S
        changes: list[Change] = [
            DeleteDocument(waiting(self.name), key),
            PutDocument(dead(self.name), key, msgspec.json.encode(letter)),
            TrimDocuments(dead(self.name), self._config.dead_max),
        ]
        while True:
            try:
                await self._store.commit(changes)
            except NotFoundError:
                return
            except StoreError:
                await trio.sleep(STORE_S)
                continue
            self.dead = min(self.dead + 1, self._config.dead_max)
            self._outbox.numbers[self.name] = max(0, self._outbox.numbers[self.name] - 1)
            return

    async def _bound(self) -> None:
        """Where too much waits, give up the oldest."""
        while (beyond := self._outbox.numbers[self.name] - self._config.waiting_max) > 0:
            page = await self._store.documents(waiting(self.name), limit=min(beyond, PAGE))
            if not page:
                self._outbox.numbers[self.name] = 0
                return
            for key, raw in page:
                self._gone.add(key)
                event = read_record("outbox.record", raw, ChangeEvent, sink=self.name, key=key)
                if event is None:
                    await self._forget(key)
                else:
                    text = f"more than {self._config.waiting_max} changes waited"
                    await self._give_up(key, Letter(event, self.problem or text, self._now()))
                if key not in self._held:
                    self._gone.discard(key)

    async def _count_dead(self) -> int:
        number, after = 0, ""
        while page := await self._store.documents(dead(self.name), after=after, limit=PAGE):
            number, after = number + len(page), page[-1][0]
        return number


class Deliveries:
    """All sinks that want to hear of changes, and what users ask about them."""

    def __init__(
        self, store: Store, bus: Bus, outbox: Outbox, sinks: list[EventSink], now: Callable[[], float]
    ) -> None:
        self._store = store
        self._outbox = outbox
        self.all = {sink.name: Delivery(store, bus, outbox, sink, now) for sink in sinks if sink.changes}

    def status(self) -> list[dict[str, Any]]:
        """Return how it stands with each sink."""
        return [
            {
                "sink": name,
                "waiting": self._outbox.numbers[name],
                "dead": one.dead,
                "delivered": one.delivered,
                "failedAttempts": one.failed,
                "lost": self._outbox.lost[name],
                "problem": one.problem,
            }
            for name, one in self.all.items()
        ]

    async def letters(self, sink: str, *, after: str = "", limit: int = PAGE) -> list[tuple[str, Letter | None]]:
        """Return dead letters, the oldest first; None for one that cannot be read, which can only be dropped.

        Raises NotFoundError for a sink that is not there, StoreError.
        """
        self._of(sink)
        return [
            (key, read_record("outbox.letter", raw, Letter, sink=sink, key=key))
            for key, raw in await self._store.documents(dead(sink), after=after, limit=limit)
        ]

    async def retry(self, sink: str, keys: list[str] | None = None) -> int:
        """Have dead letters (none named: all that can be read) told again, behind what waits; return how many: no more than may wait.

        Raises NotFoundError, StoreError.
        """
        one = self._of(sink)
        number = 0
        for key, letter in await self._chosen(sink, keys):
            if letter is None:
                continue
            if self._outbox.numbers[sink] >= self._outbox.config.waiting_max:
                break
            # It begins anew: its age counts from now.
            event = msgspec.structs.replace(letter.event, at_s=one._now())
            changes = self._outbox.put_again(sink, event)
            await self._store.commit([DeleteDocument(dead(sink), key), *changes])
            one.dead = max(0, one.dead - 1)
            number += 1
        one.wake()
        return number

    async def drop(self, sink: str, keys: list[str] | None = None) -> int:
        """Forget dead letters (none named: all); return how many."""
        one = self._of(sink)
        number = 0
        for key, _ in await self._chosen(sink, keys):
            await self._store.commit([DeleteDocument(dead(sink), key)])
            one.dead = max(0, one.dead - 1)
            number += 1
        return number

    async def _chosen(self, sink: str, keys: list[str] | None) -> list[tuple[str, Letter | None]]:
        named = None if keys is None else set(keys)
        chosen: list[tuple[str, Letter | None]] = []
        after = ""
        while page := await self.letters(sink, after=after, limit=PAGE):
            after = page[-1][0]
            chosen += page if named is None else [pair for pair in page if pair[0] in named]
        if named is not None and (missing := named - {key for key, _ in chosen}):
            raise NotFoundError(f"no dead letter {min(missing)[:60]} of sink {sink}")
        return chosen

    def _of(self, sink: str) -> Delivery:
        one = self.all.get(sink)
        if one is None:
            names = ", ".join(self.all) or "none"
            raise NotFoundError(f"no sink {sink[:40]} that takes changes, there are: {names}")
        return one
