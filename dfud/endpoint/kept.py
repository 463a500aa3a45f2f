"""Users' commands that wait for their device, as documents of the store: each is handed on once, also over a restart.

In memory is only which devices have some, so that a device for which there is none costs no look at the store. A command is
forgotten in the store before it is handed on: whoever is killed in between has lost it rather than done it twice.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

import msgspec
import trio

from dfud.api import Change, DeleteDocument, NotFoundError, PutDocument, Store, StoreError, read_record

COLLECTION = "command"
READ_AT_ONCE = 16  # each may be as large as a body
SWEEP_S = 60.0
PAUSE_S = 1.0


class Record(msgspec.Struct, frozen=True):
    """What is stored. uid: of the device that it was meant for; expires_s: since the epoch; keep_s: how long it was to wait."""

    app: str
    device: str
    uid: str
    name: str
    payload: bytes
    expires_s: float
    keep_s: float


class Ticket:
    """One command in memory. until_s: on the clock that only moves forward. record: only while it is not stored yet."""

    __slots__ = ("device", "key", "record", "saving", "size", "until_s")

    def __init__(self, device: tuple[str, str], key: str, size: int, until_s: float) -> None:
        self.device = device
        self.key = key
        self.size = size
        self.until_s = until_s
        self.record: Record | None = None
        self.saving = False


class Kept:
    """The commands that wait. clock: one that only moves forward, in seconds; now: the wall's.

    per_device, most, most_bytes: how many there may be of one device, of all, and of how many bytes. available: told which
    device may be handed one that it could not be handed before. `run()` must be running.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        now: Callable[[], float],
        *,
        per_device: int,
        most: int,
        most_bytes: int,
        available: Callable[[str, str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._now = now
        self._per_device = per_device
        self._most = most
        self._most_bytes = most_bytes
        self._available = available
        self._of: dict[tuple[str, str], deque[Ticket]] = {}
        self._reserved: dict[tuple[str, str], int] = {}
        self._number = 0
        self._total = 0
        self._bytes = 0
        self._unsaved: deque[Ticket] = deque()
        self._gone: deque[str] = deque()
        self._changed: deque[str] = deque()
        self._missed = False
        self._work = trio.Event()
        self._idle = trio.Event()

    def __len__(self) -> int:
        return self._total

    def has(self, app: str, device: str) -> bool:
        """Say whether anything waits for the device; costs nothing."""
        return (app, device) in self._of

    # Keeping

    def reserve(self, record: Record) -> Ticket | None:
        """Return a place for a command, to be given to `put()` or `give_up()`; None: there is none."""
        device = (record.app, record.device)
        self._drop_expired(device)
        size = len(record.payload)
        held = len(self._of.get(device, ())) + self._reserved.get(device, 0)
        if held >= self._per_device or self._total >= self._most or self._bytes + size > self._most_bytes:
            return None
        return self._ticket(record)

    def _ticket(self, record: Record) -> Ticket:
        device = (record.app, record.device)
        self._number = max(self._number + 1, int(max(0.0, self._now()) * 1e6))
        ticket = Ticket(
            device,
            f"{record.app}/{record.device}/{self._number:020d}-{secrets.token_hex(4)}",
            len(record.payload),
            self._clock() + record.keep_s,
        )
        self._reserved[device] = self._reserved.get(device, 0) + 1
        self._total += 1
        self._bytes += ticket.size
        return ticket

    def give_up(self, ticket: Ticket) -> None:
        self._release(ticket)
        self._total -= 1
        self._bytes -= ticket.size

    def _release(self, ticket: Ticket) -> None:
        left = self._reserved.pop(ticket.device) - 1
        if left:
            self._reserved[ticket.device] = left

    async def put(self, ticket: Ticket, record: Record, also: Sequence[Change]) -> None:
        """Store the command, `also` with it, and keep it. Raises StoreError, and then nothing is kept."""
        try:
            await self._store.commit([_put(ticket.key, record), *also])
        except BaseException:
            self.give_up(ticket)
            raise
        self._release(ticket)
        self._of.setdefault(ticket.device, deque()).append(ticket)

    def put_back(self, record: Record) -> None:
        """Keep a command that could not be handed on after all, beyond any limit; it is stored as soon as that can be done."""
        ticket = self._ticket(record)
        self._release(ticket)
        ticket.record = record
        self._of.setdefault(ticket.device, deque()).appendleft(ticket)
        self._unsaved.append(ticket)
        self._wake()

    # Handing on

    async def take(self, app: str, device: str) -> Record | None:
        """Return the oldest command for the device; it waits no longer. None: there is none, or the store does not answer."""
        self._drop_expired((app, device))
        while ticket := next((t for t in self._of.get((app, device), ()) if not t.saving), None):
            self._remove(ticket)
            if ticket.record is not None:
                return ticket.record
            try:
                record = await self._fetch(ticket)
            except StoreError:
                self._restore(ticket)
                return None
            except BaseException:
                self._restore(ticket)
                raise
            if record is not None:
                return record
        return None

    async def _fetch(self, ticket: Ticket) -> Record | None:
        """Read a command and have the store forget it. None: it is no longer there, or meant for a device that is not."""
        stored = await self._store.document(COLLECTION, ticket.key)
        view = await self._store.device(*ticket.device)
        record = _read(ticket.key, stored) if stored is not None else None
        try:
            await self._store.commit([DeleteDocument(COLLECTION, ticket.key, tell=True)])
        except NotFoundError:
            return None  # somebody else handed it on
        if record is None or view is None or view.device.metadata.uid != record.uid:
            return None  # another device has that name now
        return record

    def _restore(self, ticket: Ticket) -> None:
        self._of.setdefault(ticket.device, deque()).appendleft(ticket)
        self._total += 1
        self._bytes += ticket.size

    def _remove(self, ticket: Ticket) -> None:
        tickets = self._of[ticket.device]
        tickets.remove(ticket)
        if not tickets:
            del self._of[ticket.device]
        self._total -= 1
        self._bytes -= ticket.size
        if ticket.record is not None:
            with suppress(ValueError):
                self._unsaved.remove(ticket)

    # Forgetting

    def forget(self, app: str, device: str | None = None) -> None:
        """Forget what waits for a device, or for all devices of an app."""
        for key in [(app, device)] if device is not None else [k for k in self._of if k[0] == app]:
            for ticket in tuple(self._of.get(key, ())):
                self._drop(ticket)

    def _drop_expired(self, device: tuple[str, str]) -> None:
        now_s = self._clock()
        for ticket in [t for t in self._of.get(device, ()) if t.until_s <= now_s]:
            self._drop(ticket)

    def _drop(self, ticket: Ticket) -> None:
        self._remove(ticket)
        if ticket.record is None or ticket.saving:
            self._gone.append(ticket.key)
            self._wake()

    # What other processes do

    def changed(self, key: str) -> None:
        """Another process has stored a command, or handed one on."""
        self._changed.append(key)
        self._wake()

    def missed(self) -> None:
        """What others did may not have been heard."""
        self._missed = True
        self._wake()

    async def _hear(self) -> None:
        while self._missed or self._changed:
            if self._missed:
                await self._load()
                self._missed = False
                for device in list(self._of):
                    self._available(*device)
                continue
            key = self._changed[0]
            stored = await self._store.document(COLLECTION, key)
            self._changed.popleft()
            held = next((t for tickets in self._of.values() for t in tickets if t.key == key), None)
            if stored is None and held is not None and held.record is None:
                self._remove(held)
            elif stored is not None and held is None and (ticket := self._found(key, stored)) is not None:
                self._available(*ticket.device)

    # What the store still has to hear

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read what waits, report started, then keep the store in line until cancelled. Raises StoreError before that."""
        await self._load()
        task_status.started()
        while True:
            with trio.move_on_after(SWEEP_S):
                await self._work.wait()
            for device in list(self._of):
                self._drop_expired(device)
            try:
                await self._hear()
                await self._tidy()
            except StoreError:
                await trio.sleep(PAUSE_S)
                self._wake()

    async def settled(self) -> None:
        """Return when the store knows everything."""
        while self._unsaved or self._gone:
            self._idle = trio.Event()
            await self._idle.wait()

    def _wake(self) -> None:
        self._work.set()

    async def _load(self) -> None:
        """Bring memory in line with the store; what is being stored or handed on meanwhile may be known twice, and is had once."""
        before = {t.key: t for tickets in self._of.values() for t in tickets if t.record is None}
        async for key, stored in self._all():
            if before.pop(key, None) is None:
                self._found(key, stored)
        for ticket in before.values():
            if ticket in self._of.get(ticket.device, ()):
                self._remove(ticket)

    def _found(self, key: str, stored: bytes) -> Ticket | None:
        """Take note of what the store has; None: nobody is to have it any longer, and it is forgotten there."""
        record = _read(key, stored)
        left_s = min(record.keep_s, record.expires_s - self._now()) if record is not None else 0.0
        if record is None or left_s <= 0:
            self._gone.append(key)
            self._wake()
            return None
        ticket = Ticket((record.app, record.device), key, len(record.payload), self._clock() + left_s)
        self._of.setdefault(ticket.device, deque()).append(ticket)
        self._total += 1
        self._bytes += ticket.size
        self._number = max(self._number, _number(key))
        return ticket

    async def _all(self) -> AsyncGenerator[tuple[str, bytes], None]:
        after = ""
        while page := await self._store.documents(COLLECTION, after=after, limit=READ_AT_ONCE):
            after = page[-1][0]
            for item in page:
                yield item

    async def _tidy(self) -> None:
        self._work = trio.Event()
        while self._unsaved or self._gone:
            if self._unsaved:
                await self._save(self._unsaved[0])
            else:
                key = self._gone[0]
                with suppress(NotFoundError):
                    await self._store.commit([DeleteDocument(COLLECTION, key, tell=True)])
                self._gone.popleft()
        self._idle.set()

    async def _save(self, ticket: Ticket) -> None:
        """Store a command that was put back. Nobody hands it on meanwhile: after a kill it would be there again."""
        assert ticket.record is not None
        ticket.saving = True
        try:
            await self._store.commit([_put(ticket.key, ticket.record)])
        except StoreError:
            ticket.saving = False
            raise
        ticket.saving, ticket.record = False, None
        with suppress(ValueError):
            self._unsaved.remove(ticket)
        self._available(*ticket.device)


def _put(key: str, record: Record) -> Change:
    return PutDocument(COLLECTION, key, msgspec.msgpack.encode(record), create=True, tell=True)


def _read(key: str, stored: bytes) -> Record | None:
    return read_record("endpoint.command", stored, Record, decode=msgspec.msgpack.decode, key=key)


def _number(key: str) -> int:
    digits = key.rpartition("/")[2][:20]
    return int(digits) if digits.isascii() and digits.isdigit() else 0
