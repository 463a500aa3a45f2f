"""Who changed what: appended to the store, never changed.

Entries are in the order in which they were made, whatever the clock did: a key is a number that only grows in this process and
goes on behind the newest stored one (follow()). While the clock is right it is the time in microseconds.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from dfud.api import Change, PutDocument, Store, read_record
from dfud.model.text import visible

COLLECTION = "audit"
PAGE = 1000
DETAIL_MAX = 4096
LOOK_BACK_US = 3_600_000_000
END = 10**20 - 1
Page = list[tuple[str, bytes]]


class AuditEntry(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One change by one user. what: `create`, `update`, `delete`, `publish`, ...; target: `app/device` and the like."""

    at_s: float
    by: str
    what: str
    target: str
    detail: str = ""


class _Numbers:
    """The numbers of this process: each higher than all before."""

    last = 0

    def following(self, at_s: float) -> int:
        self.last = max(self.last + 1, min(END - 1, int(max(0.0, at_s) * 1e6)))
        return self.last

    def behind(self, number: int) -> None:
        self.last = max(self.last, number)


_numbers = _Numbers()


async def follow(store: Store) -> None:
    """Have new entries go behind those that the store has: call it once before the first entry. Raises StoreError."""
    _numbers.behind(await _newest(store))


def entry(at_s: float, by: str, what: str, target: str, detail: str = "") -> Change:
    """Return the change to commit together with the one it tells of. detail: no secrets."""
    key = f"{_numbers.following(at_s):020d}-{secrets.token_hex(4)}"
    value = msgspec.json.encode(AuditEntry(at_s, by, what, target, visible(detail)[:DETAIL_MAX]))
    return PutDocument(COLLECTION, key, value, create=True)


def key_at(at_s: float) -> str:
    """Return what the keys of entries from before `at_s` are below: a key is never below its time."""
    return f"{max(0, int(at_s * 1e6)):020d}"


class Filter(msgspec.Struct, frozen=True):
    """Which entries; "" and None: any. app: the app itself or what is in it; target: exactly, or what is below it.

    Times are those that the clock showed.
    """

    app: str = ""
    by: str = ""
    what: str = ""
    target: str = ""
    since_s: float | None = None
    until_s: float | None = None

    def takes(self, e: AuditEntry) -> bool:
        below = all(not name or e.target == name or e.target.startswith(name + "/") for name in (self.app, self.target))
        in_time = (self.since_s is None or e.at_s >= self.since_s) and (self.until_s is None or e.at_s < self.until_s)
        return below and in_time and self.by in ("", e.by) and self.what in ("", e.what)

    def lowest(self) -> str:
        """Return what all keys of wanted entries are above: a key is never below its time."""
        return key_at(self.since_s) if self.since_s is not None else ""


async def read(
    store: Store, wanted: Filter | None = None, *, after: str = "", limit: int = 200
) -> list[tuple[str, AuditEntry]]:
    """Return entries behind the key `after`, oldest first, with their keys."""
    wanted = wanted or Filter()
    after = max(after, wanted.lowest())
    found: list[tuple[str, AuditEntry]] = []
    while len(found) < limit:
        page = await store.documents(COLLECTION, after=after, limit=PAGE)
        found += [(key, entry) for key, value in page if (entry := _read(key, value)) and wanted.takes(entry)]
        if len(page) < PAGE:
            break
        after = page[-1][0]
    return found[:limit]


async def read_newest(
    store: Store, wanted: Filter | None = None, *, before: str = "", limit: int = 200
) -> list[tuple[str, AuditEntry]]:
    """Return entries before the key `before` ("": all), newest first, with their keys."""
    wanted = wanted or Filter()
    lowest = wanted.lowest()
    found: list[tuple[str, AuditEntry]] = []
    async with aclosing(_backwards(store, before)) as pages:
        async for page in pages:
            for key, value in reversed(page):
                if key <= lowest or len(found) >= limit:
                    return found
                entry = _read(key, value)
                if entry is not None and wanted.takes(entry):
                    found.append((key, entry))
    return found


async def _backwards(store: Store, before: str) -> AsyncGenerator[Page, None]:
    """Yield the documents before the key `before` ("": all) in pages, the newest page first.

    A store lists forwards only. So stretches of numbers are read from the newest down, each as long as a page will hold: longer
    behind one without entries, shorter where there are too many.
    """
    high, width = _number(before) if before else await _newest(store), LOOK_BACK_US
    while high >= 0:
        low = high - width
        page = await _between(store, low, high, PAGE if width > 1 else None)
        if page is None:
            width = max(1, width // 8)
            continue
        if page:
            yield [row for row in page if not before or row[0] < before]
        else:
            width *= 8
        high = low


async def _between(store: Store, low: int, high: int, most: int | None) -> Page | None:
    """Return the documents with numbers above `low` up to `high`, or None if they are more than `most`."""
    found: Page = []
    after = _above(low)
    while True:
        page = await store.documents(COLLECTION, after=after, limit=PAGE)
        found += [row for row in page if _number(row[0]) <= high]
        if len(page) < PAGE or _number(page[-1][0]) > high:
            return found if most is None or len(found) <= most else None
        if most is not None and len(found) >= most:
            return None
        after = page[-1][0]


async def _newest(store: Store) -> int:
    """Return the number of the newest entry, at least the last of this process."""
    low, high = _numbers.last, END
    if not await store.documents(COLLECTION, after=_above(low), limit=1):
        return low
    while high - low > 1:  # there are entries above low, and none above high
        middle = (low + high) // 2
        if await store.documents(COLLECTION, after=_above(middle), limit=1):
            low = middle
        else:
            high = middle
    return high


def _above(number: int) -> str:
    """Return what the keys with higher numbers are behind, and no other."""
    return f"{number:020d}~" if number >= 0 else ""


def _number(key: str) -> int:
    digits = key[:20]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _read(key: str, value: bytes) -> AuditEntry | None:
    """Return an entry, or None for one that cannot be read: the others are not lost with it."""
    return read_record("audit.read", value, AuditEntry, key=key)
