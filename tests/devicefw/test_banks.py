"""The early boot code of app banks: what it chooses, and that no power cut and no worn flash makes it choose wrongly."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from bootloader.sim.explore import torn
from bootloader.sim.images import SECTOR, STATE_AT, Flash, state
from bootloader.sim.same import Log, log_key, view
from bootloader.sim.worn import (
    ERASE_IGNORED,
    ERASE_REFUSED,
    PROGRAM_IGNORED,
    PROGRAM_REFUSED,
    UNREADABLE,
    Faults,
    WornFlash,
)
from tests.devicefw.bankside import BANK_AT, BANK_BYTES, NEW, OLD, app_envelope, banks, found, install, put

CRASHED, UNCONFIRMED = 1, 2
STATES = Log(STATE_AT, 32, 2, b"DFUS", 4)
LOG = (STATE_AT // SECTOR, STATE_AT // SECTOR + 1)
ENVELOPES = {OLD: app_envelope(OLD, 1), NEW: app_envelope(NEW, 2)}
banks.print = lambda *text: None  # what flash refuses is said once a start
KEPT: Callable[[int], str] = "text of bank {}".format


def device(*, records: int = 0, old: bytes | None = OLD, **values: int) -> Flash:
    """Return a flash whose bank 0 holds `old`, and whose log has so many records, the newest one with `values`."""
    flash = Flash()
    if old is not None:
        put(flash, 0, old, ENVELOPES[old])
    if records:
        flash.put(STATE_AT, b"".join(state(seq=i + 1) for i in range(records - 1)) + state(seq=records, **values))
    return flash


def start(flash: Flash, crash: int = 0) -> Any:
    one = found(flash)
    banks.choose(one, crash)
    return one


def runs(one: Any) -> str:
    return one.manifest.version if one.manifest is not None else "none"


def updated(flash: Flash, data: bytes = NEW) -> None:
    install(start(flash), data, ENVELOPES[data])


def test_empty_banks_run_nothing_and_the_first_image_comes_into_bank_a() -> None:
    flash = Flash()
    one = start(flash)
    assert (runs(one), one.digest, flash.operations) == ("none", bytes(32), 0)
    install(one, OLD, ENVELOPES[OLD])
    one = start(flash)
    assert (runs(one), one.slot, one.state.phase) == ("1.1", 0, 1)
    banks.confirm(one)
    one = start(flash)
    assert (runs(one), one.state.phase, one.state.accept, one.state.previous) == ("1.1", 0, 1, 0)


def test_a_board_from_the_factory_needs_no_record_and_writes_none() -> None:
    flash = device()
    one = start(flash)
    assert (runs(one), one.slot, one.running_size, flash.operations) == ("1.1", 0, len(OLD), 0)


def test_a_good_update_is_tried_confirmed_and_kept() -> None:
    flash = device()
    updated(flash)
    one = start(flash)
    assert (runs(one), one.slot, one.state.starts, one.state.previous) == ("1.2", 1, 8, 1)
    banks.confirm(one)
    assert banks.result(one, KEPT) is None
    one = start(flash)
    assert (runs(one), one.state.phase, one.state.accept, one.state.starts) == ("1.2", 0, 2, 0)


@pytest.mark.parametrize(("code", "outcome"), [(CRASHED, 2), (UNCONFIRMED, 10), (12, 2)])
def test_the_third_crash_of_a_trial_goes_back_and_says_why(code: int, outcome: int) -> None:
    flash = device()
    updated(flash)
    assert [runs(start(flash, crash)) for crash in (0, code, code, code)] == ["1.2", "1.2", "1.2", "1.1"]
    one = start(flash)
    assert (one.state.outcome, one.slot, one.state.previous) == (outcome, 0, 0)
    result = banks.result(one, KEPT)
    assert result is not None
    assert (result[0], result[1][:4], result[2], result[3], result[4]) == (2, one_digest(NEW)[:4], code, "text of bank 1", 3)
    assert banks.result(start(flash), KEPT) == result, "the same, number included, until it is told"
    banks.told(one)
    assert banks.result(start(flash), KEPT) is None
    assert runs(start(flash)) == "1.1"


def one_digest(data: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(data).digest()


def test_a_trial_that_is_only_ever_reset_is_left_after_ten_starts() -> None:
    flash = device()
    updated(flash)
    assert [runs(start(flash)) for _ in range(12)] == ["1.2"] * 10 + ["1.1"] * 2
    result = banks.result(start(flash), KEPT)
    assert result is not None and result[2] == UNCONFIRMED


def test_a_first_image_that_is_broken_is_left_for_no_application_at_all() -> None:
    flash = Flash()
    install(start(flash), NEW, ENVELOPES[NEW])
    assert [runs(start(flash, crash)) for crash in (0, 1, 1, 1, 0, 0)] == ["1.2", "1.2", "1.2", "none", "none", "none"]
    one = start(flash)
    result = banks.result(one, KEPT)
    assert result is not None and (result[0], result[2], result[3]) == (2, CRASHED, "text of bank 0")
    banks.told(one)
    one = start(flash)
    assert (runs(one), banks.result(one, KEPT)) == ("none", None), "told, and left all the same"
    install(one, OLD, ENVELOPES[OLD])
    assert runs(start(flash)) == "1.1", "the next one is tried"


def test_a_confirmed_application_goes_back_too_and_without_a_way_back_it_is_paused() -> None:
    flash = device()
    updated(flash)
    banks.confirm(start(flash))
    assert [runs(start(flash, 1)) for _ in range(3)] == ["1.2", "1.2", "1.1"]
    one = start(flash)
    banks.told(one)
    paused = []
    for _ in range(5):
        one = start(flash, 1)
        paused.append((runs(one), one.paused))
    assert paused == [("1.1", False)] * 2 + [("1.1", True)] * 3
    written = flash.operations
    assert start(flash, 1).paused and flash.operations == written, "nothing more is counted"
    banks.confirm(one)
    assert not start(flash).paused, "it works again"


def test_a_bank_that_does_not_hold_its_image_is_left_for_the_other_or_none() -> None:
    flash = device()
    updated(flash)
    banks.confirm(start(flash))
    good = flash.copy()
    flash.put(BANK_AT[1] + 100, b"\0\0\0")
    one = start(flash)
    assert (runs(one), one.state.outcome) == ("1.1", 3)
    result = banks.result(one, KEPT)
    assert result is not None and result[2] == 3
    good.put(STATE_AT, b"\xff" * 2 * SECTOR)
    good.put(BANK_AT[1] + 100, b"\0\0\0")
    assert runs(start(good)) == "1.1", "without a log what is whole counts"
    flash = device(records=1, slot=0)
    flash.put(BANK_AT[0] + 100, b"\0\0\0")
    one = start(flash)
    written = flash.operations
    assert (runs(one), one.idle.info()[2]) == ("none", BANK_AT[1])
    assert runs(start(flash)) == "none" and flash.operations == written, "said once"


def test_the_newer_of_two_whole_images_counts_where_the_log_is_blank() -> None:
    flash = device()
    put(flash, 1, NEW, ENVELOPES[NEW])
    assert runs(start(flash)) == "1.2"
    put(flash, 1, NEW, app_envelope(NEW, 9, flags=0))
    assert runs(start(flash)) == "1.1", "a system's manifest is none of an app image"


def test_what_is_being_written_is_nothing_to_go_back_to() -> None:
    """Confirmed, with a way back; the next update is written and not switched to yet: it was never tried."""
    flash = device()
    updated(flash)
    banks.confirm(start(flash))
    one = start(flash)
    assert one.state.previous == 1
    banks.begin(one)
    put(flash, 0, OLD, ENVELOPES[OLD])
    assert [runs(start(flash, 1)) for _ in range(4)] == ["1.2"] * 4


# Power cuts and worn flash


class _Forking(WornFlash):
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


def _contents(flash: Flash) -> tuple[bytes, ...]:
    return tuple(flash.read(at, BANK_BYTES) for at in BANK_AT)


class World:
    """What a device does from start to start: it updates to NEW, which behaves as `end`, and tells its result."""

    def __init__(self, end: str, faults: Faults, first: bool) -> None:
        self.end, self.faults, self.first = end, faults, first
        self.ends: set[str] = set()

    def live(self, flash: Flash, crash: int) -> tuple[str, int]:
        """One start; return what it came to ("" goes on), and the code that the next start is told."""
        one = start(flash, crash)
        ran = runs(one)
        if one.manifest is not None:
            data = flash.read(BANK_AT[one.slot], one.running_size)
            assert data in (OLD, NEW) and one.digest == one_digest(data), "only what is whole is started"
        if ran == "1.2":
            if self.end == "good":
                banks.confirm(one)
                return "kept", 0
            if one.state.phase == 0 and not one.paused:
                return "confirmed unasked", 0
            return "", {"crash": CRASHED, "unconfirmed": UNCONFIRMED, "reset": 0}[self.end]
        result = banks.result(one, KEPT)
        if result is not None:
            assert self.end != "good" or result[2] == UNCONFIRMED, "a good one is left after ten starts that are cut alone"
            banks.told(one)
            return f"back to {ran}", 0
        if ran == "none" and not self.first:
            return "lost", 0
        install(one, NEW, ENVELOPES[NEW])
        return "", 0


def _accept(flash: Flash) -> int:
    """Return what the newest record, as the cells hold it, says of sequences."""
    seen = view(flash, STATES)
    return int.from_bytes(seen.record[20:24], "little") if seen is not None else 0


def explore(flash: Flash, end: str, faults: Faults, *, first: bool = False) -> tuple[set[str], int]:
    """Start from every state that power cuts lead to, until there is no new one. Return what it ended as, and how many states."""
    world = World(end, faults, first)
    ends: set[str] = set()
    seen = set()
    queue = deque([(flash, 0)])
    while queue:
        node, crash = queue.popleft()
        name = (log_key(node, STATES, faults, False), _contents(node), crash)
        if name in seen:
            continue
        seen.add(name)
        assert len(seen) < 60_000, "it does not close"
        one = _Forking(node.sectors, faults)
        accepted = _accept(node)
        try:
            what, code = world.live(one, crash)
        except OSError:
            what, code = "refused", 0  # the agent tells the server; it is tried again another day
        queue.extend((copy, 0) for copy in one.cut)
        for copy in one.cut:
            assert _accept(copy) >= accepted
        if what:
            ends.add(what)
        else:
            queue.append((Flash(one.sectors), code))
    return ends, len(seen)


@pytest.mark.parametrize("records", [0, 1, 126, 255])
@pytest.mark.parametrize(
    ("end", "expected"),
    [("good", {"kept", "back to 1.1"}), ("crash", {"back to 1.1"}), ("unconfirmed", {"back to 1.1"}), ("reset", {"back to 1.1"})],
)
def test_every_power_cut_ends_where_it_may(records: int, end: str, expected: set[str]) -> None:
    ends, states = explore(device(records=records, slot=0, accept=1), end, {})
    print(f"{end}, {records} records: {states} states")
    assert ends == expected
    assert states > 20


@pytest.mark.parametrize("end", ["good", "crash"])
def test_every_power_cut_with_nothing_to_go_back_to(end: str) -> None:
    ends, states = explore(device(old=None), end, {}, first=True)
    print(f"{end}: {states} states")
    assert ends == {"back to none"} | ({"kept"} if end == "good" else set())


@pytest.mark.parametrize("kind", [ERASE_REFUSED, ERASE_IGNORED, PROGRAM_REFUSED, PROGRAM_IGNORED, UNREADABLE])
@pytest.mark.parametrize("sector", LOG)
@pytest.mark.parametrize("end", ["good", "crash"])
def test_power_cuts_on_a_worn_log_never_lose_what_worked(end: str, sector: int, kind: str) -> None:
    """What cannot be counted is not tried for ever: the old one runs, or the update is refused."""
    ends, states = explore(device(records=126, slot=0, accept=1), end, {sector: kind})
    print(f"{end}, {sector:#x} {kind}: {states} states, {sorted(ends)}")
    assert ends <= {"kept", "back to 1.1", "refused"} and ends
    assert "kept" not in ends or end == "good"
