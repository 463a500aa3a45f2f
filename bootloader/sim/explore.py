"""Exploring power cuts to closure: at every flash operation the power may go, before it or with part of it done, and then again
in the recovery from that, any number of times; sectors of the flash may be worn (worn.py). Every distinct state is booted once; the
exploration ends when no new one appears.

Two states are the same if slots and stage are equal byte for byte and the logs are equal in all that is ever read of them: the
newest record, the first free place of its sector, and which sectors are blank, counted from that one.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import msgspec

from bootloader.sim.boot import Bootloader, Hang
from bootloader.sim.images import DIAG_AT, KEYS_AT, SECTOR, STATE_AT, Flash, with_crc
from bootloader.sim.worn import Faults, WornFlash

POWER_ON, SOFTWARE = 0x1, 0xC
PANIC = 0x80040004
LOGS = ((STATE_AT, 32, 2, b"DFUS", True), (KEYS_AT, 256, 2, b"DFUK", True), (DIAG_AT, 512, 4, b"DFUD", False))
LOG_SECTORS = {at // SECTOR + i for at, _, sectors, _, _ in LOGS for i in range(sectors)}
BOOTS_WITHOUT_CUT_MAX = 16
REPORTED = "the agent was told that the flash does not keep it"
Key = tuple[object, ...]


class Node(msgspec.Struct, frozen=True):
    """The flash, and what the next reset is: a panic, or anything that is no crash."""

    flash: Flash
    crashed: bool = False


class Found(msgspec.Struct):
    """What an exploration came to. `ends`: how often which outcome was reached; bad: what must not be, with the way to it."""

    states: int = 0
    boots: int = 0
    operations: int = 0
    closed: bool = False
    ends: dict[str, int] = {}
    bad: list[str] = []

    def line(self, name: str) -> str:
        verdict = "closed" if self.closed else "NOT closed"
        ends = ", ".join(f"{end} {count}" for end, count in sorted(self.ends.items()))
        return f"{name}: {self.states} states, {self.boots} boots, {self.operations} operations, {verdict}; {ends}"


class Scenario(msgspec.Struct):
    """after(flash, slot, record) is the booted image: it does its flash operations and returns None to go on with a software reset,
    "crash" for a panic, or the name of an end. `images`: what may stand in a slot that is booted, whole."""

    name: str
    flash: Flash
    after: Callable[[Flash, int], str | None]
    images: dict[str, bytes]
    good_ends: frozenset[str]  # the flash begins with a state record, which may never be without a successor
    faults: Faults = {}


@lru_cache(maxsize=1 << 16)
def _sector(content: bytes, size: int, magic: bytes) -> tuple[int, bytes, int]:
    """Return of one sector of a log: the newest record's number and content, and the first free place."""
    newest = (-1, b"")
    for place in range(0, SECTOR, size):
        record = content[place : place + size]
        if record[:4] == magic and with_crc(record[:-4]) == record:
            newest = max(newest, (struct.unpack_from("<I", record, 4)[0], record[8:-4]))
    return (*newest, -(-len(content.rstrip(b"\xff")) // size))


@lru_cache(maxsize=1 << 16)
def _log(contents: tuple[bytes, ...], size: int, magic: bytes, with_content: bool) -> tuple[int, tuple[object, ...]]:
    """Return of the sectors of one log: the newest record's number, and everything that decides what is done next."""
    found = [_sector(content, size, magic) for content in contents]
    sectors = len(contents)
    sector = max(range(sectors), key=lambda i: (found[i][0], -i))
    if found[sector][0] < 0:
        sector = 0
    # Sectors count from the newest record's: which of the ring's sectors that is makes no difference.
    blank = tuple(contents[(sector + i) % sectors] == Flash.BLANK for i in range(sectors))
    number, content, free = found[sector]
    return number, (number < 0, content if with_content else b"", free, blank)


def log_of(flash: Flash, at: int, size: int, sectors: int, magic: bytes, with_content: bool) -> tuple[int, tuple[object, ...]]:
    """Return what _log() says of this log in this flash."""
    get, first = flash.sectors.get, at // SECTOR
    return _log(tuple([get(first + i, Flash.BLANK) for i in range(sectors)]), size, magic, with_content)


def log_key(flash: Flash, at: int, size: int, sectors: int, magic: bytes, with_content: bool) -> tuple[object, ...]:
    """Return everything of a log that decides what is done next."""
    return log_of(flash, at, size, sectors, magic, with_content)[1]


def key_of(node: Node) -> tuple[object, ...]:
    """Return the identity of a state."""
    rest = [(k, v) for k, v in node.flash.sectors.items() if k not in LOG_SECTORS and v != Flash.BLANK]
    return (node.crashed, *[log_of(node.flash, *log)[1] for log in LOGS], tuple(sorted(rest)))


def newest(flash: Flash) -> tuple[int, ...]:
    """Return the numbers of the newest records of state and keys, as the cells hold them; -1: none."""
    return tuple([log_of(flash, *log)[0] for log in LOGS[:2]])


def _any_bit(a: bytes, b: bytes) -> bytes:
    """Return a | b, as long as the shorter of them."""
    size = min(len(a), len(b))
    return (int.from_bytes(a[:size], "big") | int.from_bytes(b[:size], "big")).to_bytes(size, "big")


def torn(flash: Flash, kind: str, offset: int, data: bytes) -> Iterator[tuple[str, Flash]]:
    """Yield what a power cut in this operation may leave: nothing done, half of it, some of its bits."""
    yield "before", flash.copy()
    mask = hashlib.sha256(f"{kind}{offset}".encode()).digest() * (SECTOR // 32)
    if kind == "erase":
        old = Flash(flash.sectors).read(offset, SECTOR)
        half = b"\xff" * (SECTOR // 2) + old[SECTOR // 2 :]
        some = _any_bit(old, mask)
        for name, content in (("half", half), ("some bits", some)):
            copy = flash.copy()
            copy.force(offset, content)
            yield name, copy
    else:
        for name, part in (
            ("half", data[: len(data) // 2]),
            ("some bits", _any_bit(data, mask)),
        ):
            copy = flash.copy()
            try:
                if part:
                    copy.program(offset, part)
            except OSError:
                pass  # then it is as before
            yield name, copy


class _Forking(WornFlash):
    """Tells of every operation before it is done."""

    __slots__ = ("on",)

    def __init__(self, node: Flash, faults: Faults, on: Callable[[Flash, str, int, bytes], None]) -> None:
        super().__init__(node.sectors, faults)
        self.on = on

    def erase(self, offset: int) -> None:
        self.on(self, "erase", offset, b"")
        super().erase(offset)

    def program(self, offset: int, data: bytes) -> None:
        self.on(self, "program", offset, data)
        super().program(offset, data)


class _Ways:
    """How every state was come to, as links to the one before."""

    def __init__(self, start: Key) -> None:
        self._before: dict[Key, tuple[Key, str] | None] = {start: None}

    def add(self, key: Key, before: Key, what: str) -> None:
        self._before[key] = (before, what)

    def __getitem__(self, key: Key) -> tuple[str, ...]:
        out: list[str] = []
        while (found := self._before[key]) is not None:
            key = found[0]
            out.append(found[1])
        return tuple(reversed(out))


def explore(
    scenario: Scenario,
    elf: Path | None = None,
    *,
    limit: int = 2_000_000,
    cuts: int | None = None,
    sample: int | None = None,
) -> Found:
    """Boot every state that the scenario can come into. `limit` boots at most; `cuts`: power cuts at most, None: any number;
    `sample`: a seed, with which the state to boot next is drawn, so that `limit` of them come from everywhere.
    """
    machine = Bootloader(elf)
    found = Found(ends={}, bad=[])
    draw = None if sample is None else random.Random(sample)
    start = Node(Flash(WornFlash(scenario.flash.sectors, scenario.faults).sectors))
    seen = {key_of(start)}
    ways = _Ways(key_of(start))
    next_without_cut: dict[Key, Key | str] = {}
    queue: deque[tuple[Node, Key, int]] = deque([(start, key_of(start), 0)])
    while queue and found.boots < limit:
        if draw is not None:
            queue.rotate(draw.randrange(len(queue)))
        node, key, depth = queue.popleft()
        found.boots += 1

        def add(child: Node, what: str, cut: int, key: Key = key, depth: int = depth) -> Key:
            name = key_of(child)
            if name not in seen and (cuts is None or depth + cut <= cuts):
                seen.add(name)
                ways.add(name, key, what)
                queue.append((child, name, depth + cut))
            return name

        numbers = newest(node.flash)

        def check(flash: Flash, what: str, key: Key = key, numbers: tuple[int, ...] = numbers) -> None:
            if any(now < was for now, was in zip(newest(flash), numbers, strict=True)):
                found.bad.append(f"the newest record is lost by {what} after {ways[key]}")

        def fork(flash: Flash, kind: str, offset: int, data: bytes) -> None:
            found.operations += 1
            check(flash, f"what came before {kind} {offset:#x}")  # called within this turn of the loop
            for name, copy in torn(flash, kind, offset, data):
                check(copy, f"{name} {kind} {offset:#x}")
                add(Node(Flash(copy.sectors)), f"{name} {kind} {offset:#x}", 1)

        if not node.flash.state():
            found.bad.append(f"the state is lost after {ways[key]}")
            continue
        flash = _Forking(node.flash, scenario.faults, fork)
        store = [0] * 8
        if node.crashed:
            store[6] = PANIC
        try:
            result = machine.boot(flash, reset_reason=SOFTWARE if node.crashed else POWER_ON, store=store)
        except Hang as error:
            found.bad.append(f"{error} after {ways[key]}")
            continue
        slot = result.slot
        if slot is None:
            found.bad.append(f"nothing boots after {ways[key]}: {result.console}")
            continue
        cells = Flash(flash.sectors)
        standing = [
            n for n, data in scenario.images.items() if cells.read((0x10000, 0x1C0000)[slot], len(data)) == data
        ]
        if not standing:
            found.bad.append(f"slot {slot} was booted, but holds no whole image, after {ways[key]}")
            continue
        try:
            end = scenario.after(flash, slot)
        except OSError:
            end = REPORTED
        check(flash, "this start")
        if end in (None, "crash"):
            next_without_cut[key] = add(Node(Flash(flash.sectors), end == "crash"), f"{standing[0]} ran", 0)
        else:
            next_without_cut[key] = end or ""
            found.ends[str(end)] = found.ends.get(str(end), 0) + 1
            if end not in scenario.good_ends and not (end == REPORTED and scenario.faults):
                found.bad.append(f"{end} after {ways[key]}")
    found.states = len(seen)
    found.closed = not queue and cuts is None
    _check_progress(next_without_cut, ways, found)
    return found


def _check_progress(successor: dict[Key, Key | str], ways: _Ways, found: Found) -> None:
    """From every state, a few starts without a power cut must come to an end."""
    for key in successor:
        at: Key | str | None = key
        for _ in range(BOOTS_WITHOUT_CUT_MAX):
            at = successor.get(at) if isinstance(at, tuple) else at
        if isinstance(at, tuple):
            found.bad.append(f"no end after {BOOTS_WITHOUT_CUT_MAX} starts, beginning with {ways[key]}")
            return
