"""Without dfud's bootloader: what the agent makes of otadata and NVS, and that no power cut makes it claim what is not so."""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from typing import Any

import pytest

from bootloader.sim.images import SECTOR, Flash, key, public
from devicefw.sim.espidf import Window, otadata
from dfud.board.records import encode_keys
from tests.devicefw.otherside import (
    NEW,
    OLD,
    POWER_ON,
    RESET,
    TABLE,
    WATCHDOG,
    Forking,
    Reset,
    boot,
    confirmed,
    device,
    end,
    identifier,
    put,
    result,
    running,
    signed,
    switch,
    told,
)

CRASHED, UNCONFIRMED, SELF_TEST = 1, 2, 12
TRIAL = 1


class Lamp:
    """One device, start by start."""

    def __init__(self, flash: Flash | None = None, *, rollback: bool = True) -> None:
        self.flash = Forking((flash or device()).sectors, {})
        self.rollback = rollback

    def start(self, cause: int = RESET) -> Any:
        slot = boot(self.flash, rollback=self.rollback)
        assert slot is not None
        return running(self.flash, slot, cause)

    def update(self) -> None:
        with self.start(POWER_ON) as slots:
            switch(slots)

    def states(self) -> list[int]:
        return [entry[1] for entry in otadata.entries(Window(self.flash, TABLE[1]))]


def test_a_good_update_is_tried_once_confirmed_and_kept() -> None:
    lamp = Lamp()
    lamp.update()
    assert lamp.states() == [otadata.VALID, otadata.NEW]
    with lamp.start() as slots:
        assert (slots.slot, slots.state.phase, slots.flags) == (1, TRIAL, 3)
        assert lamp.states() == [otadata.VALID, otadata.PENDING]
        confirmed(slots)
    for cause in (RESET, POWER_ON, RESET):
        with lamp.start(cause) as slots:
            assert (slots.slot, slots.state.phase, slots.state.accept, result(slots)) == (1, 0, 2, None)
    assert lamp.states() == [otadata.VALID, otadata.VALID]


@pytest.mark.parametrize(
    ("cause", "kept", "code", "text"),
    [
        (RESET, (SELF_TEST, "no light"), SELF_TEST, "no light"),
        (RESET, (UNCONFIRMED, "not confirmed in time"), UNCONFIRMED, "not confirmed in time"),
        (WATCHDOG, None, CRASHED, "reset by a watchdog"),
        (POWER_ON, None, UNCONFIRMED, "the power went away while it was on trial"),
        (RESET, None, UNCONFIRMED, "reset while it was on trial: a panic, machine.reset() or the reset button"),
    ],
)
def test_one_reset_ends_a_trial_and_the_old_image_says_why(cause: int, kept: tuple[int, str] | None, code: int, text: str) -> None:
    lamp = Lamp()
    lamp.update()
    with lamp.start() as slots:
        if kept:
            end(slots, *kept)
    for _ in range(2):
        with lamp.start(cause) as slots:
            found = result(slots)
            assert found is not None and (slots.slot, slots.state.phase) == (0, 0)
            assert (found[0], found[1], found[2], found[3]) == (2, hashlib.sha256(NEW).digest(), code, text)
            assert (found[4], found[6]) == (int(code == CRASHED), b"")
    with lamp.start() as slots:
        told(slots)
    with lamp.start() as slots:
        assert result(slots) is None
        switch(slots)  # it may be tried again
    with lamp.start() as slots:
        confirmed(slots)
    with lamp.start() as slots:
        assert slots.slot == 1


def test_confirmed_firmware_that_crashes_three_times_is_left_by_the_agent() -> None:
    lamp = Lamp()
    lamp.update()
    with lamp.start() as slots:
        confirmed(slots)
    for n in range(3):
        assert slots.state.crashes == n
        with lamp.start() as slots:
            assert slots.slot == 1
            end(slots, CRASHED, f"crash {n}")
        if n < 2:
            with lamp.start() as slots:
                continue
        with pytest.raises(Reset), lamp.start():
            raise AssertionError("it goes on")
    with lamp.start() as slots:
        found = result(slots)
        assert slots.slot == 0 and slots.state.phase == 0 and found is not None
        assert (found[2], found[3]) == (CRASHED, "crash 2")
    assert lamp.states().count(otadata.VALID) == 2, "what it goes back to is on no trial"


def test_a_crash_of_confirmed_firmware_is_counted_once_and_forgotten_when_it_confirms() -> None:
    lamp = Lamp(device(new=False))
    with lamp.start(POWER_ON) as slots:
        end(slots, CRASHED, "once")
    with lamp.start() as slots:
        assert (slots.crashes, slots.state.crashes) == (1, 1)
    with lamp.start(WATCHDOG) as slots:
        assert (slots.crashes, slots.state.crashes) == (1, 2)
    for cause in (RESET, POWER_ON):
        with lamp.start(cause) as slots:
            assert (slots.crashes, slots.state.crashes) == (0, 2)
    with lamp.start() as slots:
        slots.state.append(crashes=0)
    for _ in range(4):
        with lamp.start(WATCHDOG) as slots:
            assert slots.slot == 0 and slots.state.crashes <= 3, "there is nothing to go back to"


def test_a_bootloader_without_rollback_is_found_out_and_the_agent_goes_back() -> None:
    lamp = Lamp(rollback=False)
    lamp.update()
    with lamp.start() as slots:
        assert (slots.slot, slots.flags) == (1, 7)
    with pytest.raises(Reset), lamp.start(WATCHDOG):
        raise AssertionError("a second start of a trial")
    with lamp.start() as slots:
        found = result(slots)
        assert found is not None and (slots.slot, found[2], found[3]) == (0, CRASHED, "reset by a watchdog")
        assert slots.flags == 7, "it is remembered"


def test_an_image_that_the_bootloader_does_not_take_is_a_failed_one() -> None:
    lamp = Lamp()
    lamp.update()
    lamp.flash.erase(TABLE[3].offset)  # after the switch: flash that wears out
    with lamp.start() as slots:
        assert (slots.slot, slots.state.outcome, slots.state.code) == (0, 3, 3)


def test_what_the_idle_slot_does_not_hold_is_not_switched_to() -> None:
    lamp = Lamp(device(new=False))
    with lamp.start(POWER_ON) as slots:
        before = (lamp.flash.key(), slots.state.slot, slots.state.phase)
        with pytest.raises(OSError, match="5379"):
            switch(slots)
        assert (lamp.flash.key(), slots.state.slot, slots.state.phase) == before
    with lamp.start() as slots:
        assert (slots.slot, result(slots)) == (0, None)


def test_what_somebody_else_switched_is_on_trial_like_any_other() -> None:
    lamp = Lamp()
    with lamp.start(POWER_ON):
        pass
    otadata.set_boot(Window(lamp.flash, TABLE[1]), 1, 2)
    with lamp.start() as slots:
        assert (slots.slot, slots.state.phase) == (1, TRIAL)
    with lamp.start() as slots:
        assert slots.slot == 0


def test_a_confirmed_manifest_changes_the_keys_and_one_that_no_key_signed_does_not() -> None:
    first, second, stranger = (key(seed) for seed in (1, 2, 3))
    for signer, trusted in ((first, [public(second)]), (stranger, [public(first)])):
        lamp = Lamp(device(new=False))
        put(lamp.flash, 1, NEW, signed(NEW, signer, add=[public(second)], revoke=[identifier(first)] if signer is not first else []))
        lamp.flash.nvs["keys"] = encode_keys([public(first)], set())
        lamp.update()
        with lamp.start() as slots:
            confirmed(slots)
        expected = [public(first), *trusted] if signer is first else trusted
        record = lamp.flash.nvs["keys"]
        assert [record[16 + 32 * i :][:32] for i in range(record[8])] == expected
        assert (int.from_bytes(record[4:8], "little"), len(record)) == (len(expected), 256)
        with lamp.start() as slots:
            assert lamp.flash.nvs["keys"] == record, "once"


@pytest.mark.parametrize("kept", [True, False])
def test_where_nvs_is_full_the_application_runs_and_no_update_is_begun(kept: bool) -> None:
    lamp = Lamp()
    if kept:
        with lamp.start():
            pass
    lamp.flash.full = True
    for cause in (POWER_ON, RESET, WATCHDOG):
        with lamp.start(cause) as slots:
            before = lamp.states()
            assert (slots.slot, slots.state.phase, result(slots)) == (0, 0, None)
            with pytest.raises(OSError, match="NOT_ENOUGH_SPACE"):
                switch(slots)
            assert lamp.states() == before, "nothing else is booted"
    lamp.flash.full = False
    lamp.update()
    with lamp.start() as slots:
        assert (slots.slot, slots.state.phase) == (1, TRIAL)


def test_where_nvs_fills_up_in_a_trial_what_was_confirmed_stays() -> None:
    lamp = Lamp()
    lamp.update()
    with lamp.start() as slots:
        lamp.flash.full = True
        with pytest.raises(OSError, match="NOT_ENOUGH_SPACE"):
            confirmed(slots)
    for _ in range(2):
        with lamp.start() as slots:
            assert slots.slot == 1
    lamp.flash.full = False
    for _ in range(2):
        with lamp.start() as slots:
            assert (slots.slot, slots.state.phase, slots.state.accept, result(slots)) == (1, 0, 2, None)


@pytest.mark.parametrize("sector", [0, 1])
@pytest.mark.parametrize("begun", ["blank", "on trial", "confirmed"])
def test_an_entry_of_otadata_that_is_torn_at_any_byte_ends_no_start(begun: str, sector: int) -> None:
    for size in range(33):
        for state in (otadata.NEW, otadata.PENDING, otadata.VALID, otadata.ABORTED):
            lamp = Lamp()
            if begun != "blank":
                lamp.update()
            if begun == "confirmed":
                with lamp.start() as slots:
                    confirmed(slots)
            entry = struct.pack("<I20sII", 3, b"\xff" * 20, state, otadata.crc(3))
            lamp.flash.put(TABLE[1].offset + sector * SECTOR, entry[:size].ljust(32, b"\xff"))
            ran = []
            for _ in range(7):
                try:
                    with lamp.start() as slots:
                        result(slots)
                        ran.append(slots.slot)
                except Reset:
                    ran.append(-1)
            assert ran[-1] == ran[-2] >= 0, (size, state, ran)


# Power cuts

OTADATA = (TABLE[1].offset // SECTOR, TABLE[1].offset // SECTOR + 1)


def _name(flash: Flash, nvs: dict[str, bytes], *more: object) -> tuple[object, ...]:
    """What tells two states from each other. The numbers of records do not, but whether an end is of the newest one does; those in
    otadata count from the larger one, and of what is no entry any more only what the bootloader looks at."""
    entries = otadata.entries(Window(flash, TABLE[1]))
    base = max((entry[0] // 2 * 2 for entry in entries if otadata.whole(entry)), default=0)
    chosen = [(entry[0] - base if otadata.whole(entry) else otadata.out(entry), entry[1], otadata.whole(entry)) for entry in entries]
    contents = frozenset((at, data) for at, data in flash.key() if at not in OTADATA)
    state, kept = nvs.get("state", b""), [nvs.get(f"end{slot}", b"") for slot in (0, 1)]
    return (contents, *chosen, state[4:], *((end[:4] == state[:4], end[4:]) for end in kept), *more)


def _before(kind: str) -> tuple[Flash, dict[str, bytes]]:
    """Return where an exploration begins."""
    lamp = Lamp()
    if kind == "after a trial that failed":
        lamp.update()
        with lamp.start():
            pass
        with lamp.start(POWER_ON) as slots:
            told(slots)
        assert otadata.ABORTED in lamp.states()
    elif kind == "in slot 1":
        lamp.update()
        with lamp.start() as slots:
            confirmed(slots)
        put(lamp.flash, 1, OLD)
        put(lamp.flash, 0, NEW)
        lamp.flash.nvs.pop("state")  # its floor is the other way round
    return Flash(lamp.flash.sectors), lamp.flash.nvs


def _lives(flash: Forking, cause: int, does: str, rollback: bool, claimed: str) -> tuple[str, int, str]:
    """One start: return ("" or what it came to, the cause of the next reset, what the server was told)."""
    slot = boot(flash, rollback=rollback)
    assert slot is not None, "there is always something to boot"
    at = TABLE[2 + slot].offset
    runs = "new" if flash.read(at, len(NEW)) == NEW else "old"
    assert runs == "new" or flash.read(at, len(OLD)) == OLD
    try:
        with running(flash, slot, cause) as slots:
            found = result(slots)
            if claimed:
                assert claimed == f"{runs} kept" and slots.state.phase == 0 and found is None, (claimed, runs, found)
                return claimed, RESET, claimed
            if runs == "new":
                if slots.state.phase == 0:
                    assert does in ("good", "later"), "confirmed, and nobody has"
                    if does == "good":
                        return "", RESET, "new kept"
                    end(slots, CRASHED, "later")
                    return "", RESET, ""
                if does in ("good", "later"):
                    confirmed(slots)
                    return "", RESET, "new kept" if does == "good" else ""
                if does == "crash":
                    end(slots, CRASHED, "crash")
                return "", WATCHDOG if does == "hang" else RESET, ""
            if found is not None:
                assert found[1] == hashlib.sha256(NEW).digest()
                assert does != "good" or found[2] == UNCONFIRMED, "only a power cut takes a good one back"
                told(slots)
                return "", RESET, "old kept"
            switch(slots)
            return "", RESET, ""
    except Reset:
        return "", RESET, claimed


@pytest.mark.parametrize("rollback", [True, False])
@pytest.mark.parametrize("kind", ["from the factory", "after a trial that failed", "in slot 1"])
@pytest.mark.parametrize("does", ["good", "crash", "hang", "reset", "later"])
def test_every_power_cut_ends_with_what_was_confirmed_and_nothing_claimed_that_is_not_so(
    does: str, kind: str, rollback: bool
) -> None:
    flash, nvs = _before(kind)
    queue = deque([(flash, nvs, POWER_ON, "")])
    seen: set[tuple[object, ...]] = set()
    ends: set[str] = set()
    while queue:
        flash, nvs, cause, claimed = queue.popleft()
        name = _name(flash, nvs, cause, claimed)
        if name in seen:
            continue
        seen.add(name)
        assert len(seen) < 5000, "it does not close"
        one = Forking(flash.sectors, nvs)
        what, after, claim = _lives(one, cause, does, rollback, claimed)
        # What was claimed before this start stays claimed through a cut in it.
        queue.extend((copy, kept, POWER_ON, claimed) for copy, kept in one.cut)
        if what:
            ends.add(what)
        else:
            queue.append((Flash(one.sectors), one.nvs, after, claim))
    print(f"{does}, {kind}, rollback {rollback}: {len(seen)} states, {sorted(ends)}")
    assert ends == ({"new kept", "old kept"} if does == "good" else {"old kept"})
    assert len(seen) > 20
