"""Exploring power cuts to closure: at every flash operation the power may go, before it or with part of it done, and then again
in the recovery from that, any number of times; sectors of the flash may be worn (worn.py). Every distinct state is booted once; the
exploration ends when no new one appears.

same.py says which states are the same, and why.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from bootloader.sim.boot import ELF, Bootloader, Hang
from bootloader.sim.images import SECTOR, Flash
from bootloader.sim.same import LOGS, Log, fewer, key_of, newest, standing, taken, wearing
from bootloader.sim.worn import Faults, WornFlash

POWER_ON, SOFTWARE = 0x1, 0xC
PANIC = 0x80040004
BOOTS_WITHOUT_CUT_MAX = 16
REPORTED = "the agent was told that the flash does not keep it"
Key = tuple[object, ...]


class Node(msgspec.Struct, frozen=True):
    """The flash, with sectors that are worn, and what the next reset is: a panic, or anything that is no crash."""

    flash: Flash
    crashed: bool = False
    faults: Faults = {}


class Found(msgspec.Struct):
    """What an exploration came to. `ends`: how often which outcome was reached; bad: what must not be, with the way to it.
    seen: the identities of the states; reached: the states that were booted, if each counted for itself."""

    states: int = 0
    boots: int = 0
    operations: int = 0
    closed: bool = False
    ends: dict[str, int] = {}
    bad: list[str] = []
    seen: set[Key] = set()
    reached: list[Node] = []

    def line(self, name: str) -> str:
        verdict = "closed" if self.closed else "NOT closed"
        ends = ", ".join(f"{end} {count}" for end, count in sorted(self.ends.items()))
        return f"{name}: {self.states} states, {self.boots} boots, {self.operations} operations, {verdict}; {ends}"


class Scenario(msgspec.Struct):
    """after(flash, slot) is the booted image: it does its flash operations and returns None to go on with a software reset,
    "crash" for a panic, or the name of an end. `images`: what may stand in a slot that is booted, whole. The sectors in
    `faults` are worn from the beginning; those in `wears` wear out before one of the starts, whichever, and stay so."""

    name: str
    flash: Flash
    after: Callable[[Flash, int], str | None]
    images: dict[str, bytes]
    good_ends: frozenset[str]  # the flash begins with a state record, which may never be without a successor
    faults: Faults = {}
    wears: Faults = {}
    logs: tuple[Log, ...] = LOGS  # those whose states are told from each other


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


@lru_cache(maxsize=1)
def _machine(elf: Path, made_ns: int) -> Bootloader:
    """Return the machine of the last exploration, if it ran the same file: what it has translated is most of what a start costs."""
    return Bootloader(elf)


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
    whole: bool = False,
    first_bad: bool = False,
) -> Found:
    """Boot every state that the scenario can come into. `limit` boots at most; `cuts`: power cuts at most, None: any number;
    `sample`: a seed, with which the state to boot next is drawn, so that `limit` of them come from everywhere. whole: states that
    differ in the number of places left in a log are not taken for the same, as they never are with `cuts` or `sample`. first_bad:
    end with the first start that comes to what must not be.
    """
    whole = whole or cuts is not None or sample is not None
    machine = _machine(elf or ELF, (elf or ELF).stat().st_mtime_ns)
    found = Found()
    draw = None if sample is None else random.Random(sample)
    start = Node(Flash(WornFlash(scenario.flash.sectors, scenario.faults).sectors), faults=scenario.faults)
    first = (False, bool(start.faults), *key_of(start.flash, start.faults, scenario.logs, whole=whole))
    if not whole:
        start = Node(standing(start.flash, start.faults), faults=start.faults)
    seen: set[Key] = {first}
    spread: set[tuple[Key, tuple[tuple[Log, int], ...]]] = set()
    ways = _Ways(first)
    next_without_cut: dict[Key, Key | str] = {}
    queue: deque[tuple[Node, Key, int]] = deque([(start, first, 0)])
    while queue and found.boots < limit and not (first_bad and found.bad):
        if draw is not None:
            queue.rotate(draw.randrange(len(queue)))
        node, key, depth = queue.popleft()
        found.boots += 1
        if whole:
            found.reached.append(node)

        faults = node.faults

        def put(flash: Flash, crashed: bool, what: str, cut: int, faults: Faults = faults, key: Key = key, depth: int = depth) -> Key:
            name = (crashed, bool(faults), *key_of(flash, faults, scenario.logs, whole=whole))
            if name not in seen and (cuts is None or depth + cut <= cuts):
                seen.add(name)
                ways.add(name, key, what)
                queue.append((Node(flash if whole else standing(flash, faults), crashed, faults), name, depth + cut))
            return name

        def add(flash: Flash, crashed: bool, what: str, cut: int, node: Node = node, put: Any = put) -> Key:
            name: Key = put(flash, crashed, what, cut)
            if not whole:
                logs = tuple(one for one in taken(flash, node.flash, node.faults) if one[0] in scenario.logs)
                if logs and (name, logs) not in spread:
                    spread.add((name, logs))
                    for few in fewer(flash, logs, node.faults):
                        put(few, crashed, f"{what}, with few places left", cut)
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
                add(Flash(copy.sectors), False, f"{name} {kind} {offset:#x}", 1)

        if scenario.wears and not faults:
            for worn in wearing(node.flash, scenario.wears):
                put(worn, node.crashed, f"{', '.join(scenario.wears.values())} from now on", 0, scenario.wears)
        if not node.flash.state():
            found.bad.append(f"the state is lost after {ways[key]}")
            continue
        flash = _Forking(node.flash, faults, fork)
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
        stands = [n for n, data in scenario.images.items() if cells.read((0x10000, 0x1C0000)[slot], len(data)) == data]
        if not stands:
            found.bad.append(f"slot {slot} was booted, but holds no whole image, after {ways[key]}")
            continue
        try:
            end = scenario.after(flash, slot)
        except OSError:
            end = REPORTED
        check(flash, "this start")
        if end in (None, "crash"):
            next_without_cut[key] = add(Flash(flash.sectors), end == "crash", f"{stands[0]} ran", 0)
        else:
            next_without_cut[key] = end or ""
            found.ends[str(end)] = found.ends.get(str(end), 0) + 1
            if end not in scenario.good_ends and not (end == REPORTED and faults):
                found.bad.append(f"{end} after {ways[key]}")
    found.states, found.seen = len(seen), seen
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
