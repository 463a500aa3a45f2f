"""What is explored: each ends well whatever power cuts come, or the exploration says how it did not."""

from __future__ import annotations

import hashlib
import importlib
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from bootloader.sim.explore import Scenario
from bootloader.sim.images import (
    DIAG_AT,
    KEYS_AT,
    SECTOR,
    STAGE_AT,
    STATE_AT,
    Flash,
    envelope,
    image,
    key,
    key_id,
    key_record,
    public,
    stage,
    state,
    with_crc,
)
from bootloader.sim.same import DIAG, LOGS
from bootloader.sim.worn import KINDS, UNREADABLE
from dfud.package.build import build_delta, build_full, build_mapped

OLD, NEW = image("old", 5000), image("new", 9000)
LEFT = "old, since the new one was never confirmed"
BLIND = "the agent was told that the state cannot be read"


def _agent(name: str) -> ModuleType:
    """Return a module of the agent's own, of those for what stands in flash, as plain Python: without its package's beginning."""
    package = ModuleType("dfu")
    package.__path__ = [str(Path(__file__).parents[2] / "devicefw" / "dfu")]
    sys.modules.setdefault("dfu", package)
    return importlib.import_module(f"dfu.{name}")


class _Part:
    """esp32.Partition over a Flash."""

    def __init__(self, flash: Flash, at: int) -> None:
        self._flash, self._at = flash, at

    def readblocks(self, block: int, buffer: Any, offset: int = 0) -> None:
        buffer[:] = self._flash.read(self._at + block * SECTOR + offset, len(buffer))

    def writeblocks(self, block: int, buffer: Any, offset: int = 0) -> None:
        self._flash.program(self._at + block * SECTOR + offset, bytes(buffer))

    def ioctl(self, operation: int, block: int) -> None:
        self._flash.erase(self._at + block * SECTOR)


AGENT, AGENT_STATE, AGENT_FLASH = _agent("records"), _agent("state"), _agent("flash")


def agent_state(flash: Flash) -> Any:
    """Return the agent's view of the state log; its append() does the agent's flash operations."""
    return AGENT_STATE.State(_Part(flash, STATE_AT))


def unread(flash: Flash) -> bool:
    """Return whether the agent cannot read a place of the state log: there may be a newer record."""
    log = AGENT_FLASH.state_log(_Part(flash, STATE_AT))
    log.newest()
    return bool(log.unread)


def _logs(flash: Flash, *, states: int = 126, diagnostics: int = 7, **values: int) -> None:
    """Fill the logs so far that the change of sectors lies within reach; the newest state has `values`."""
    flash.put(STATE_AT, b"".join(state(seq=i + 1) for i in range(states - 1)) + state(seq=states, **values))
    record = struct.pack("<II", 0x44554644, 0)
    for i in range(diagnostics):
        flash.put(DIAG_AT + 512 * i, with_crc((record[:4] + struct.pack("<I", i + 1)).ljust(508, b"\0")))


def _whole(flash: Flash, slot: int, data: bytes) -> bool:
    return flash.read((0x10000, 0x1C0000)[slot], len(data)) == data


def calls(tag: str, moved: int = 0) -> bytes:
    """Return an image whose code calls across itself and points at data; `moved`: bytes put in before the middle and the data."""
    code = bytearray(b"\x01\xa0\x01\xa0")
    for i in range(520):
        at = len(code)
        if i == 250:
            code += b"\x01\0" * (moved // 2)
        target = 4 + (i * 7919 % 7000 & ~1)
        offset = target + (moved if target > 3500 else 0) - at & 0x1FFFFF
        jal = (offset >> 20) << 31 | (offset >> 1 & 0x3FF) << 21 | (offset >> 11 & 1) << 20 | (offset >> 12) % 256 << 12
        address = 0x3FC96600 + moved + i % 40 * 4
        upper = (address + 0x800 & 0xFFFFF000) | 10 << 7 | 0x37
        code += struct.pack("<III", upper, (address & 0xFFF) << 20 | 10 << 15 | 10 << 7 | 0x13, jal | 1 << 7 | 0x6F)
        code += (i * i).to_bytes(4, "little")[:2]
    code += bytes(-len(code) % 4)
    return image(tag, segments=[(0x3FC96600, b"x" * moved + bytes(range(160))), (0x40380000, bytes(code))])


def install(kind: str = "full", **logs: int) -> Scenario:
    """A staged package ("full", "delta", "mapped") is installed and booted on trial."""
    flash = Flash()
    old, new = (calls("old"), calls("new", 8)) if kind == "mapped" else (OLD, NEW)
    flash.install(0, old, envelope(old))
    _logs(flash, **{"slot": 0, "phase": 2, **logs})
    delta = build_mapped if kind == "mapped" else build_delta
    package = build_full(new, 4096) if kind == "full" else delta(new, old, 4096)
    base = hashlib.sha256(old).digest() if package.base_sha256 else b"\xff" * 32
    flash.put(STAGE_AT, stage(list(package.chunks), envelope(new, sequence=2), kind=package.kind, base=base))

    def after(flash: Flash, slot: int) -> str | None:
        found = flash.state()
        return "new on trial" if slot == 1 and found["phase"] == 1 and _whole(flash, 1, new) else "old"

    name = "install" if kind == "full" else f"install of a {kind} package"
    return Scenario(name, flash, after, {"old": old, "new": new}, frozenset({"new on trial"}))


def _two(**logs: int) -> Flash:
    flash = Flash()
    flash.install(0, OLD, envelope(OLD))
    flash.install(1, NEW, envelope(NEW, sequence=2))
    _logs(flash, **{"slot": 1, "phase": 1, "previous": 1, **logs})
    return flash


def confirmed(**logs: int) -> Scenario:
    """A trial is confirmed by the agent, in the agent's own code. Cut off before that at every one of its starts, it is left."""

    def after(flash: Flash, slot: int) -> str | None:
        found = agent_state(flash)
        if unread(flash):
            return BLIND
        if slot == 1 and found.phase == 1:
            found.append(phase=0, crashes=0, outcome=1, floor=2, accept=2)
            return None
        if slot == 1:
            return "new confirmed" if found.floor == 2 else "the floor is lost"
        return LEFT if (found.outcome, found.floor) == (10, 1) else "old"

    flash = _two(**{"floor": 1, "accept": 1, **logs})
    return Scenario(
        "a trial that is confirmed", flash, after, {"old": OLD, "new": NEW}, frozenset({"new confirmed", LEFT})
    )


def aged(states: int) -> Scenario:
    """The same with a log that has changed sectors: the other one is full of older records, of a trial with an older floor."""
    scenario = confirmed(states=states)
    for i in range(states - 1):
        scenario.flash.put(STATE_AT + 32 * i, state(seq=i + 1, slot=1, phase=1, previous=1))
    scenario.name += f", after {states} records"
    return scenario


changed, full = partial(aged, 130), partial(aged, 256)


def unconfirmed(**logs: int) -> Scenario:
    """An image on trial fails before it can say anything, and does not crash: power cycles are all that comes."""

    def after(flash: Flash, slot: int) -> str | None:
        found = agent_state(flash)
        if unread(flash):
            return BLIND
        if slot == 1:
            return None if found.phase == 1 else "new, and not on trial"
        return LEFT if (found.slot, found.phase, found.outcome) == (0, 0, 10) else "old"

    return Scenario(
        "a trial that is never confirmed", _two(**logs), after, {"old": OLD, "new": NEW}, frozenset({LEFT})
    )


def crashing(**logs: int) -> Scenario:
    """A trial crashes until it is left."""

    def after(flash: Flash, slot: int) -> str | None:
        return "crash" if slot == 1 else "old"

    return Scenario("a trial that crashes", _two(**logs), after, {"old": OLD, "new": NEW}, frozenset({"old"}))


def worn(make: Callable[..., Scenario], kind: str, *at: int, later: bool = False) -> Scenario:
    """The scenario on a flash with bad sectors. Where nothing can be kept, the old image is what is left to run. later: they are
    bad from any of the starts on."""
    scenario = make()
    scenario.name += f", {' and '.join(f'{place:#x}' for place in at)}: {kind}{' from some start on' if later else ''}"
    faults = {place // SECTOR: kind for place in at}
    if later:
        scenario.wears = faults
    else:
        scenario.faults = faults
    scenario.good_ends |= {"old", "not rotated", BLIND}
    scenario.logs = tuple(log for log in LOGS if log is not DIAG or not faults.keys().isdisjoint(log.numbers))
    return scenario


def rotten(make: Callable[..., Scenario], size: int) -> Scenario:
    """The scenario after `size` bytes around the newest state record have lost bits: what stands before them counts."""
    scenario = make()
    flash = scenario.flash
    places = [STATE_AT + 32 * i for i in range(256) if flash.read(STATE_AT + 32 * i, 4) == b"DFUS"]
    at = max(places, key=lambda place: struct.unpack("<I", flash.read(place + 4, 4))) // size * size
    flash.put(at, bytes(b & 0xB6 for b in flash.read(at, size)))
    scenario.name += f", {size} rotten bytes at {at:#x}"
    scenario.good_ends |= {"old"}
    return scenario


def revert(**logs: int) -> Scenario:
    """The agent goes back by request."""

    def after(flash: Flash, slot: int) -> str | None:
        if slot == 1:
            agent_state(flash).append(slot=0, phase=0, crashes=0, outcome=9)
            return None
        return "old"

    return Scenario("a revert", _two(**{"phase": 0, **logs}), after, {"old": OLD, "new": NEW}, frozenset({"old"}))


def changeover() -> Scenario:
    """Every sector of both logs is entered anew: a trial crashes with all of them full."""
    flash = _two(states=128, diagnostics=8)
    for i in range(8, 32):
        flash.put(DIAG_AT + 512 * i, with_crc(struct.pack("<II", 0x44554644, i + 1).ljust(508, b"\0")))
    flash.put(STATE_AT + SECTOR, b"\x5a" * SECTOR)  # and something was there before

    def after(flash: Flash, slot: int) -> str | None:
        return "crash" if slot == 1 else "old"

    return Scenario("a change of sectors", flash, after, {"old": OLD, "new": NEW}, frozenset({"old"}))


def rotation() -> Scenario:
    """A confirmed image introduces one key and revokes another, with the key log about to change sectors."""
    first, second, third = key(1), key(2), key(3)
    flash = Flash()
    data = image("new", 2000)
    fields: dict[str, Any] = {"sequence": 2, "add": (public(third),), "revoke": (key_id(second),)}
    flash.install(0, data, envelope(data, signer=first, **fields))
    _logs(flash, slot=0, outcome=1)
    for i in range(15):
        flash.put(KEYS_AT + 256 * i, key_record(first, second, seq=i + 1))

    def after(flash: Flash, slot: int) -> str | None:
        newest = flash.records(KEYS_AT, 256, 2, 0x4B554644)[-1]
        trusted = newest[16 : 16 + 32 * newest[8]]
        return (
            "rotated"
            if trusted == public(first) + public(third) and newest[144:152] == key_id(second)
            else "not rotated"
        )

    return Scenario("a key rotation", flash, after, {"new": data}, frozenset({"rotated"}))


ALL: tuple[Callable[[], Scenario], ...] = (
    install,
    lambda: install("delta"),
    lambda: install("mapped"),
    confirmed,
    crashing,
    unconfirmed,
    revert,
    changeover,
    rotation,
)

IDLE = 0x1C0000
STATES = (STATE_AT, STATE_AT + SECTOR)
PLACES: tuple[tuple[Callable[..., Scenario], tuple[tuple[int, ...], ...]], ...] = (
    (confirmed, ((STATE_AT,), (STATE_AT + SECTOR,), STATES)),
    (changed, ((STATE_AT,), (STATE_AT + SECTOR,), STATES)),
    (full, ((STATE_AT,), (STATE_AT + SECTOR,), STATES)),
    (unconfirmed, ((STATE_AT,), (STATE_AT + SECTOR,), STATES)),
    (crashing, ((STATE_AT,), (STATE_AT + SECTOR,), STATES)),
    # With most of its starts used, for the sake of time.
    (partial(crashing, starts=64), ((DIAG_AT,), (DIAG_AT + SECTOR,))),
    (install, tuple((at,) for at in (*STATES, IDLE, IDLE + SECTOR, IDLE + 0x1AF000, STAGE_AT, STAGE_AT + SECTOR))),
    (revert, ((STATE_AT,), (STATE_AT + SECTOR,), STATES)),
    (rotation, ((KEYS_AT,), (KEYS_AT + SECTOR,))),
)
ROTTEN: tuple[Callable[[], Scenario], ...] = tuple(
    partial(rotten, make, size)
    for make, size in ((confirmed, 32), (crashing, 32), (changed, 32), (changed, SECTOR), (full, 32), (full, SECTOR))
)


def _worn(later: bool) -> tuple[Callable[[], Scenario], ...]:
    # Not with a key log that cannot be read at all: nothing is trusted then, and recovery is all there is. Not with a state
    # log of which nothing can be read: then each start takes whichever image is newest, and there is no end to tell.
    return tuple(
        partial(worn, make, kind, *at, later=later)
        for make, places in PLACES
        for at in places
        for kind in KINDS
        if kind != UNREADABLE or (at != (KEYS_AT,) and len(at) == 1)
    )


# From the first start on, to draw samples from; and from any start on, for the whole of it.
WORN = _worn(False) + ROTTEN
WEARING = _worn(True) + ROTTEN
