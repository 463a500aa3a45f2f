"""Which states of the flash are the same to everybody who reads it, so that exploring them comes to an end.

Slots, stage and whatever else stands there count byte for byte. Of a log only what a reader or an append ever looks at counts:

- the newest record's content; not its number, nor older records, nor which of the ring's sectors it is in: sectors are
  counted from that one, each with its fault;
- the first place behind it that is blank (`free`), and which ones are from there on. What was torn or refused before it
  is skipped for good;
- of the other sectors, whether they are blank. They are erased before they are written otherwise; only where an erase
  does nothing does it matter which of their places are blank.

Of diagnostics nothing is ever read, so that nothing but the next append depends on them: where they are not what wears out,
they do not count at all.

Where nothing was ever written from `free` on, and more places are left there than a start can take (`reach`; taken() looks
that none takes more), it makes no difference how many: code and fault treat all places alike, or as those PERIOD further on,
so a start does the same there, some places on. All these states are one, "many"; it is explored where `free` is first. A
start from it takes places, after which many may be left or few, so each number up to the reach is explored as well
(`fewer`). That is more than can happen, never less.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

import msgspec

from bootloader.sim.images import DIAG_AT, KEYS_AT, SECTOR, STATE_AT, Flash, with_crc
from bootloader.sim.worn import ERASE_IGNORED, ERASE_REFUSED, PERIOD, STUCK, WEAK, Faults, WornFlash, settled


class Log:
    """reach: records that one start may append at most; content: whether anybody reads records while this is explored."""

    def __init__(self, at: int, size: int, sectors: int, magic: bytes, reach: int, content: bool = True) -> None:
        self.size, self.sectors, self.magic, self.reach, self.content = size, sectors, magic, reach, content
        self.numbers = tuple(range(at // SECTOR, at // SECTOR + sectors))
        self.places = SECTOR // size


STATE, KEYS = Log(STATE_AT, 32, 2, b"DFUS", 2), Log(KEYS_AT, 256, 2, b"DFUK", 1)
DIAG = Log(DIAG_AT, 512, 4, b"DFUD", 1, content=False)
LOGS = (STATE, KEYS, DIAG)
LOG_SECTORS = {number for log in LOGS for number in log.numbers}
PLAIN = (None, ERASE_REFUSED, ERASE_IGNORED)


class View(msgspec.Struct, frozen=True):
    """The newest record, its sector and place; `free`: the first blank place behind it; `blank`: which of the sector are."""

    sector: int
    place: int
    record: bytes
    free: int
    blank: tuple[bool, ...]


@lru_cache(maxsize=1 << 16)
def _scan(content: bytes, size: int, magic: bytes) -> tuple[int, int, tuple[bool, ...]]:
    """Return of one sector: number and place of its newest record, -1 for none, and which places are blank."""
    newest, at = -1, -1
    blank = []
    for place in range(SECTOR // size):
        record = content[place * size : place * size + size]
        blank.append(record == b"\xff" * size)
        if record[:4] == magic and with_crc(record[:-4]) == record and struct.unpack_from("<I", record, 4)[0] > newest:
            newest, at = struct.unpack_from("<I", record, 4)[0], place
    return newest, at, tuple(blank)


def _sector(flash: Flash, log: Log, number: int) -> tuple[int, int, tuple[bool, ...]]:
    return _scan(flash.sectors.get(number, Flash.BLANK), log.size, log.magic)


def newest(flash: Flash) -> tuple[int, ...]:
    """Return the numbers of the newest records of state and keys, as the cells hold them; -1: none."""
    return tuple(max(_sector(flash, log, number)[0] for number in log.numbers) for log in (STATE, KEYS))


def view(flash: Flash, log: Log) -> View | None:
    """Return what there is of the newest record, None if there is none."""
    return _view(log, tuple(flash.sectors.get(number, Flash.BLANK) for number in log.numbers))


@lru_cache(maxsize=1 << 15)
def _view(log: Log, contents: tuple[bytes, ...]) -> View | None:
    found = [_scan(content, log.size, log.magic) for content in contents]
    at = max(range(log.sectors), key=lambda i: (found[i][0], -i))
    number, place, blank = found[at]
    if number < 0:
        return None
    free = next((p for p in range(place + 1, log.places) if blank[p]), log.places)
    content = contents[at]
    return View(log.numbers[at], place, content[place * log.size : (place + 1) * log.size], free, blank)


def _period(kind: str | None) -> int:
    """Return after how many places a sector with this fault is alike again; 0: never."""
    return PERIOD if kind in (WEAK, STUCK) else int(kind in PLAIN)


@lru_cache(maxsize=64)
def _erased(log: Log, kind: str | None) -> tuple[bool, ...]:
    """Return which places of an erased sector with this fault are blank."""
    number = log.numbers[0]
    flash = WornFlash({}, {number: kind} if kind else {})
    return _sector(flash, log, number)[2]


def most(log: Log, kind: str | None) -> int:
    """Return how many places one start takes at most of a sector with this fault; 0: nothing is said about it."""
    return log.reach * _period(kind)


def end(log: Log, seen: View, faults: Faults) -> int:
    """Return up to where the places from `free` on are as an erase leaves them: blank, but for those that the fault spoils."""
    kind = faults.get(seen.sector)
    if _period(kind) != 1:
        return log.places if _period(kind) and seen.blank[seen.free :] == _erased(log, kind)[seen.free :] else seen.free
    return next((p for p in range(seen.free, log.places) if not seen.blank[p]), log.places)


def many(log: Log, seen: View, faults: Faults) -> bool:
    """Say whether more places are left there than a start can take."""
    left = end(log, seen, faults) - seen.free
    return left > 0 and left > most(log, faults.get(seen.sector))


def _open(flash: Flash, log: Log, faults: Faults) -> list[int]:
    """Return the sectors, not the newest record's, whose erase does nothing and which have many blank places behind used ones."""
    seen, found = view(flash, log), []
    for number in log.numbers if ERASE_IGNORED in faults.values() else ():
        blank = _sector(flash, log, number)[2]
        free = log.places - sum(blank)
        if faults.get(number) == ERASE_IGNORED and (seen is None or number != seen.sector):
            if 0 < free < log.places - log.reach and all(blank[free:]):
                found.append(number)
    return found


def _used(flash: Flash, log: Log, number: int, places: int) -> Flash:
    """Return the flash with a sector of which so many places are used, by nothing that can be read."""
    out = flash.copy()
    out.sectors[number] = (b"\0" * (places * log.size)).ljust(SECTOR, b"\xff")
    return out


def log_key(flash: Flash, log: Log, faults: Faults, whole: bool) -> tuple[object, ...]:
    seen = view(flash, log)
    if seen is None:
        return (None, *(_sector(flash, log, number)[2] for number in log.numbers))
    behind: object = seen.blank[seen.free :]
    if not whole and many(log, seen, faults):
        behind = ("many", seen.free % _period(faults.get(seen.sector)), seen.blank[end(log, seen, faults) :])
    others: list[object] = []
    first = seen.sector - log.numbers[0]
    for i in range(1, log.sectors):
        number = log.numbers[(first + i) % log.sectors]
        kind, blank = faults.get(number), _sector(flash, log, number)[2]
        if kind != ERASE_IGNORED:
            others += [kind, all(blank)]
        elif not whole and number in _open(flash, log, faults):
            others += [kind, "many"]
        else:
            others += [kind, blank]
    return (seen.record[8:-4] if log.content else b"", faults.get(seen.sector), behind, *others)


def key_of(flash: Flash, faults: Faults, logs: tuple[Log, ...] = LOGS, *, whole: bool = False) -> tuple[object, ...]:
    """Return the identity of what stands in flash. logs: those that count; whole: each number of places is told from the others."""
    rest = tuple(sorted((k, v) for k, v in flash.sectors.items() if k not in LOG_SECTORS and v != Flash.BLANK))
    return (*(log_key(flash, log, faults, whole) for log in logs), rest)


def _moved(flash: Flash, log: Log, seen: View, free: int, until: int, kind: str | None) -> Flash:
    """Return the flash with the newest record moved so that the first blank place is `free`, or the next one that can be blank.

    Places from `until` on stay as they are.
    """
    whole = _erased(log, kind)
    place = max(p for p in range(free) if whole[p])
    sector = bytearray(b"\0" * (free * log.size)).ljust(until * log.size, b"\xff")
    sector += flash.sectors[seen.sector][until * log.size :]
    sector[place * log.size : (place + 1) * log.size] = seen.record
    out = flash.copy()
    out.sectors[seen.sector] = settled(kind, seen.sector, bytes(sector))
    return out


def standing(flash: Flash, faults: Faults) -> Flash:
    """Return the state to explore in place of this one: where many places are left, the record stands as far in front as it may."""
    for log in LOGS:
        seen = view(flash, log)
        if seen is not None and many(log, seen, faults):
            kind = faults.get(seen.sector)
            period = _period(kind)
            flash = _moved(flash, log, seen, seen.free % period + period, end(log, seen, faults), kind)
        for number in _open(flash, log, faults):
            flash = _used(flash, log, number, 1)
    return flash


def taken(flash: Flash, before: Flash, faults: Faults) -> tuple[tuple[Log, int], ...]:
    """Return the sectors with many places left that a start has changed. Raises ValueError if it took more than the reach."""
    out: list[tuple[Log, int]] = []
    for log in LOGS:
        for number in log.numbers if ERASE_IGNORED in faults.values() else ():
            used = [log.places - sum(_sector(f, log, number)[2]) for f in (before, flash)]
            if number in _open(before, log, faults) and used[1] - used[0] > log.reach:
                raise ValueError(f"{used[1] - used[0]} places of {log.magic.decode()}, more than its reach")
            if number in _open(flash, log, faults) and used[0] != used[1]:
                out.append((log, number))
        seen, was = view(flash, log), view(before, log)
        if seen is None or seen == was:
            continue
        if was is not None and seen.sector == was.sector and many(log, was, faults):
            if seen.free - was.free > most(log, faults.get(was.sector)):
                raise ValueError(f"{seen.free - was.free} places of {log.magic.decode()}, more than its reach")
        if (was is None or (was.sector, was.free) != (seen.sector, seen.free)) and many(log, seen, faults):
            out.append((log, seen.sector))
    return tuple(out)


def fewer(flash: Flash, changed: tuple[tuple[Log, int], ...], faults: Faults) -> Iterator[Flash]:
    """Yield the states with few places left that stand for this one; with several sectors every combination."""
    found = [flash]
    for log, number in changed:
        seen = view(flash, log)
        if seen is None or number != seen.sector:
            found += [_used(f, log, number, log.places - left) for f in found for left in range(log.reach + 1)]
            continue
        kind, until = faults.get(seen.sector), end(log, seen, faults)
        found += [_moved(f, log, seen, until - left, until, kind) for f in found for left in range(most(log, kind) + 1)]
    yield from found[1:]


def wearing(flash: Flash, faults: Faults) -> Iterator[Flash]:
    """Yield the states that this one, of sound flash, stands for when its sectors get `faults`, as they are then. Bits of the newest
    record do not change by that; what follows when they do, scenarios begin with (scenarios.rotten)."""
    found = [flash]
    for log in LOGS:
        seen = view(flash, log)
        if seen is None or (kind := faults.get(seen.sector)) is None or not many(log, seen, {}) or not _period(kind):
            continue
        until = end(log, seen, {})
        places = {1 + i for i in range(_period(kind))} | {until - left for left in range(most(log, kind) + 1)}
        found += [_moved(f, log, seen, place, until, kind) for f in found for place in sorted(places)]
    for state in found:
        settled_ = Flash(WornFlash(state.sectors, faults).sectors)
        if newest(settled_) == newest(state):
            yield settled_
