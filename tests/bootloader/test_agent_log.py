"""The agent's twin of the bootloader's log, in its own code: power cuts at every operation on every kind of worn flash, and that
both put a record into the same place."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bootloader.sim.explore import torn
from bootloader.sim.images import KEYS_AT, SECTOR, STATE_AT, Flash, key, key_record, state, with_crc
from bootloader.sim.same import STATE, log_key, newest, view
from bootloader.sim.scenarios import AGENT, _Part, agent_state
from bootloader.sim.worn import KINDS, UNREADABLE, Faults, WornFlash
from tests.bootloader.machine import SIGNER, boot, device

FIRST = STATE_AT // SECTOR
APPENDS = 5


class Cutting(WornFlash):
    """Keeps what a power cut in each operation would have left."""

    __slots__ = ("cut",)

    def __init__(self, sectors: dict[int, bytes], faults: Faults) -> None:
        super().__init__(sectors, faults)
        self.cut: list[Flash] = []

    def erase(self, offset: int) -> None:
        self.cut += (copy for _, copy in torn(self, "erase", offset, b""))
        super().erase(offset)

    def program(self, offset: int, data: bytes) -> None:
        self.cut += (copy for _, copy in torn(self, "program", offset, data))
        super().program(offset, data)


def filled(states: int) -> dict[int, bytes]:
    """Return a state log in which `states` records were written, of which each raised the floor, and its sectors changed in turn."""
    flash = Flash()
    for i in range(max(0, (states - 1) // 128 - 1) * 128, states):
        flash.put(STATE_AT + i % 256 * 32, state(seq=i + 1, slot=1, floor=i, accept=i))
    return flash.sectors


def floor_of(flash: Flash) -> int:
    """Return the newest record's floor as the cells hold it, whoever can read them."""
    seen = view(flash, STATE)
    return int.from_bytes(seen.record[16:20], "little") if seen is not None else -1


def explore(sectors: dict[int, bytes], faults: Faults) -> tuple[int, int]:
    """Append with a raised floor, up to APPENDS records, from every state that power cuts lead to. Returns states and successes."""
    start = WornFlash(sectors, faults)
    queue: list[tuple[Flash, int]] = [(start, 0)]
    seen = {(log_key(start, STATE, faults, True), 0)}
    kept = 0
    while queue:
        flash, depth = queue.pop()
        before, number = floor_of(flash), newest(flash)[0]
        cutting = Cutting(flash.sectors, faults)
        try:
            found = agent_state(cutting)
            found.append(floor=found.floor + 1, accept=found.floor + 1)
        except OSError:
            assert newest(cutting)[0] >= number
        else:
            assert agent_state(cutting).floor == found.floor == floor_of(cutting)
            kept += 1
        for copy in (*cutting.cut, cutting):
            # Never a lower floor than the one that stood there, whatever was cut.
            assert newest(copy)[0] >= number, (faults, depth)
            assert floor_of(copy) >= before, (faults, depth)
            name = (log_key(copy, STATE, faults, True), depth + 1)
            if depth + 1 < APPENDS and name not in seen:
                seen.add(name)
                queue.append((copy.copy(), depth + 1))
    return len(seen), kept


@pytest.mark.parametrize("states", [1, 126, 128, 129, 255, 256, 257])
def test_no_power_cut_on_worn_flash_brings_an_old_floor_back(states: int) -> None:
    total = 0
    for kind in (None, *KINDS):
        for sector in (FIRST, FIRST + 1):
            seen, kept = explore(filled(states), {sector: kind} if kind else {})
            total += seen
            assert kept or kind is not None
    print(f"{states} records: {total} states")
    assert total > 2 * len(KINDS)


def test_an_append_that_failed_changed_nothing_here_either() -> None:
    flash = WornFlash(filled(128), {FIRST + 1: "program ignored"})
    found = agent_state(flash)
    with pytest.raises(OSError, match="the log takes no record"):
        found.append(phase=1, floor=500, accept=500)
    assert (found.phase, found.floor, found.seq) == (0, 127, 128)
    flash.faults = {FIRST: UNREADABLE}
    with pytest.raises(OSError, match="cannot be read"):
        found.append(phase=1)


def test_a_record_made_from_an_older_one_is_not_appended() -> None:
    """The sector of the newest was unreadable for a moment when the state was loaded."""
    flash = WornFlash(filled(130), {FIRST + 1: UNREADABLE})
    found = agent_state(flash)
    assert found.floor == 127
    flash.faults = {}
    with pytest.raises(OSError, match="newest record is 130, expected 128"):
        found.append(outcome=9)
    assert agent_state(flash).floor == 129


def test_the_floor_is_not_written_above_what_was_confirmed() -> None:
    flash = Flash()
    agent_state(flash).append(floor=9, accept=2)
    assert flash.state()["floor"] == 2
    flash.put(STATE_AT + 32, state(seq=2, floor=9, accept=4))
    assert agent_state(flash).floor == 4


def test_the_starts_of_a_trial_are_kept_until_it_ends() -> None:
    flash = device(starts=40)
    found = agent_state(flash)
    assert (found.previous, found.starts) == (1, 40)
    found.append(outcome=0)
    assert (flash.state()["starts"], flash.state()["previous"]) == (40, 1)
    found.append(phase=0, outcome=1)
    assert (flash.state()["starts"], flash.state()["previous"], found.starts) == (0, 1, 0)


def test_keys_with_a_sector_that_cannot_be_read_trust_nobody_with_an_update() -> None:
    """The sector may hold the record that revokes one of them."""
    flash = WornFlash(None, {KEYS_AT // SECTOR + 1: UNREADABLE})
    flash.put(KEYS_AT, key_record(SIGNER, key(2)))
    assert AGENT.keys(_Part(flash, KEYS_AT)) is None
    flash.faults = {}
    assert len(AGENT.keys(_Part(flash, KEYS_AT))) == 2


def _random_log(rng: random.Random) -> tuple[WornFlash, Any]:
    flash = device()
    flash.put(STATE_AT, b"\xff" * 2 * SECTOR)
    first, second = rng.choice(((0, 1), (1, 0)))
    count = rng.choice((1, 5, 100, 126, 127, 128))
    old = b"".join(state(seq=i + 1, slot=1, phase=1, previous=1) for i in range(128)) if rng.random() < 0.6 else b""
    new = b"".join(state(seq=200 + i, slot=1, phase=1, previous=1) for i in range(count))
    flash.put(STATE_AT + second * SECTOR, old)
    flash.put(STATE_AT + first * SECTOR, new)
    for _ in range(rng.choice((0, 1, 4))):  # torn and rotten places
        flash.put(STATE_AT + rng.randrange(256) * 32 + rng.randrange(32), bytes([rng.randrange(256)]))
    faults = {FIRST + rng.randrange(2): rng.choice(KINDS) for _ in range(rng.choice((0, 1, 1, 2)))}
    return WornFlash(flash.sectors, faults), faults


def _place_of_the_newest(flash: Flash) -> int:
    places = {}
    for at in range(STATE_AT, STATE_AT + 2 * SECTOR, 32):
        record = Flash(flash.sectors).read(at, 32)
        if record[:4] == b"DFUS" and with_crc(record[:-4]) == record:
            places[int.from_bytes(record[4:8], "little")] = at
    return places[max(places)] if places else -1


@pytest.mark.parametrize("seed", range(60))
def test_the_bootloader_and_the_agent_append_to_the_same_place(seed: int) -> None:
    rng = random.Random(seed)
    flash, faults = _random_log(rng)
    theirs, ours = flash.copy(), flash.copy()
    said = boot(theirs).console
    try:
        agent_state(ours).append(outcome=0)
        told = False
    except OSError:
        told = True
    assert told == ("the state cannot be written" in said), (seed, faults, said)
    assert newest(theirs)[0] == newest(ours)[0], (seed, faults)
    assert _place_of_the_newest(theirs) == _place_of_the_newest(ours), (seed, faults)
