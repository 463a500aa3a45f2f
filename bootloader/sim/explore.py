"""Exploring power cuts to closure: at every flash operation the power may go, before it or with part of it done, and then again
in the recovery from that, any number of times. Every distinct state is booted once; the exploration ends when no new one appears.

Two states are the same if slots and stage are equal byte for byte and the logs are equal in all that is ever read of them: the
newest record, the first free place of its sector, and which sectors are blank, counted from that one.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import msgspec

from bootloader.sim.boot import Bootloader, Hang
from bootloader.sim.images import DIAG_AT, KEYS_AT, SECTOR, STATE_AT, Flash, with_crc

POWER_ON, SOFTWARE = 0x1, 0xC
PANIC = 0x80040004
LOGS = ((STATE_AT, 32, 2, b"DFUS", True), (KEYS_AT, 256, 2, b"DFUK", True), (DIAG_AT, 512, 4, b"DFUD", False))
LOG_SECTORS = {at // SECTOR + i for at, _, sectors, _, _ in LOGS for i in range(sectors)}
BOOTS_WITHOUT_CUT_MAX = 12
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


@lru_cache(maxsize=1 << 16)
def _sector(content: bytes, size: int, magic: bytes) -> tuple[int, bytes, int]:
    """Return of one sector of a log: the newest record's number and content, and the first free place."""
    newest = (-1, b"")
    for place in range(0, SECTOR, size):
        record = content[place : place + size]
        if record[:4] == magic and with_crc(record[:-4]) == record:
            newest = max(newest, (struct.unpack_from("<I", record, 4)[0], record[8:-4]))
    return (*newest, -(-len(content.rstrip(b"\xff")) // size))


def log_key(flash: Flash, at: int, size: int, sectors: int, magic: bytes, with_content: bool) -> tuple[object, ...]:
    """Return everything of a log that decides what is done next."""
    contents = [flash.sectors.get(at // SECTOR + i, Flash.BLANK) for i in range(sectors)]
    found = [_sector(content, size, magic) for content in contents]
    sector = max(range(sectors), key=lambda i: (found[i][0], -i))
    if found[sector][0] < 0:
        sector = 0
    # Sectors count from the newest record's: which of the ring's sectors that is makes no difference.
    blank = tuple(contents[(sector + i) % sectors] == Flash.BLANK for i in range(sectors))
    return (found[sector][0] < 0, found[sector][1] if with_content else b"", found[sector][2], blank)


def key_of(node: Node) -> tuple[object, ...]:
    """Return the identity of a state."""
    sectors = node.flash.sectors
    rest = tuple(sorted((k, v) for k, v in sectors.items() if k not in LOG_SECTORS and v != Flash.BLANK))
    return (node.crashed, *(log_key(node.flash, *log) for log in LOGS), rest)


def torn(flash: Flash, kind: str, offset: int, data: bytes) -> Iterator[tuple[str, Flash]]:
    """Yield what a power cut in this operation may leave: nothing done, half of it, some of its bits."""
    yield "before", Flash(flash.sectors)
    mask = hashlib.sha256(f"{kind}{offset}".encode()).digest() * (SECTOR // 32)
    if kind == "erase":
        old = flash.read(offset, SECTOR)
        half = b"\xff" * (SECTOR // 2) + old[SECTOR // 2 :]
        some = bytes(a | b for a, b in zip(old, mask, strict=True))
        for name, content in (("half", half), ("some bits", some)):
            copy = Flash(flash.sectors)
            copy.put(offset, content)
            yield name, copy
    else:
        for name, part in (
            ("half", data[: len(data) // 2]),
            ("some bits", bytes(a | b for a, b in zip(data, mask, strict=False))),
        ):
            copy = Flash(flash.sectors)
            if part:
                copy.program(offset, part)
            yield name, copy


class _Forking(Flash):
    """Tells of every operation before it is done."""

    __slots__ = ("on",)

    def __init__(self, sectors: dict[int, bytes], on: Callable[[Flash, str, int, bytes], None]) -> None:
        super().__init__(sectors)
        self.on = on

    def erase(self, offset: int) -> None:
        self.on(self, "erase", offset, b"")
        super().erase(offset)

    def program(self, offset: int, data: bytes) -> None:
        self.on(self, "program", offset, data)
        super().program(offset, data)


def explore(scenario: Scenario, elf: Path | None = None, *, limit: int = 100_000, cuts: int | None = None) -> Found:
    """Boot every state that the scenario can come into. `limit` boots at most; `cuts`: power cuts at most, None: any number."""
    machine = Bootloader(elf)
    found = Found(ends={}, bad=[])
    start = Node(scenario.flash)
    seen = {key_of(start): 0}
    ways: dict[Key, tuple[str, ...]] = {key_of(start): ()}
    next_without_cut: dict[Key, Key | str] = {}
    queue: deque[tuple[Node, Key, int]] = deque([(start, key_of(start), 0)])
    while queue and found.boots < limit:
        node, key, depth = queue.popleft()
        found.boots += 1

        def add(child: Node, what: str, cut: int, key: Key = key, depth: int = depth) -> Key:
            name = key_of(child)
            if name not in seen and (cuts is None or depth + cut <= cuts):
                seen[name] = depth + cut
                ways[name] = (*ways[key], what)
                queue.append((child, name, depth + cut))
            return name

        def fork(flash: Flash, kind: str, offset: int, data: bytes) -> None:
            found.operations += 1
            for name, copy in torn(flash, kind, offset, data):  # called within this turn of the loop
                add(Node(copy), f"{name} {kind} {offset:#x}", 1)

        if not node.flash.state():
            found.bad.append(f"the state is lost after {ways[key]}")
            continue
        flash = _Forking(node.flash.sectors, fork)
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
        standing = [
            n for n, data in scenario.images.items() if flash.read((0x10000, 0x1C0000)[slot], len(data)) == data
        ]
        if not standing:
            found.bad.append(f"slot {slot} was booted, but holds no whole image, after {ways[key]}")
            continue
        end = scenario.after(flash, slot)
        if end in (None, "crash"):
            next_without_cut[key] = add(Node(Flash(flash.sectors), end == "crash"), f"{standing[0]} ran", 0)
        else:
            next_without_cut[key] = end or ""
            found.ends[str(end)] = found.ends.get(str(end), 0) + 1
            if end not in scenario.good_ends:
                found.bad.append(f"{end} after {ways[key]}")
    found.states = len(seen)
    found.closed = not queue and cuts is None
    _check_progress(next_without_cut, ways, found)
    return found


def _check_progress(successor: dict[Key, Key | str], ways: dict[Key, tuple[str, ...]], found: Found) -> None:
    """From every state, a few starts without a power cut must come to an end."""
    for key in successor:
        at: Key | str | None = key
        for _ in range(BOOTS_WITHOUT_CUT_MAX):
            at = successor.get(at) if isinstance(at, tuple) else at
        if isinstance(at, tuple):
            found.bad.append(f"no end after {BOOTS_WITHOUT_CUT_MAX} starts, beginning with {ways[key]}")
            return
