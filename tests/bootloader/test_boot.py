"""What runs after which reset, on the shipped ELF."""

from __future__ import annotations

import hashlib
import struct

import pytest

from bootloader.sim import boot as simulator
from bootloader.sim.images import (
    DIAG_AT,
    KEYS_AT,
    SECTOR,
    SLOT_BYTES,
    SLOTS,
    STATE_AT,
    Flash,
    envelope,
    image,
    key,
    key_id,
    key_record,
    public,
    state,
)
from bootloader.sim.worn import (
    ERASE_IGNORED,
    ERASE_REFUSED,
    PROGRAM_IGNORED,
    PROGRAM_REFUSED,
    STUCK,
    UNREADABLE,
    WEAK,
    WornFlash,
)
from devicefw.sim.firmware import build
from tests.bootloader.machine import (
    NEW,
    OLD,
    PANIC,
    POWER_ON,
    SIGNER,
    SOFTWARE,
    USB,
    WATCHDOG,
    boot,
    crash,
    device,
    machine,
)
from tests.real_parts import require


def test_current_is_booted_and_the_watchdog_is_armed() -> None:
    flash = device(phase=0)
    found = boot(flash)
    assert (found.slot, found.entry, found.wdt_armed, flash.operations) == (1, 0x40380000, True, 0)
    assert "boot slot 1" in found.console


def test_a_crashing_trial_is_tried_three_times_and_left() -> None:
    flash = device()
    assert [boot(flash).slot, *(crash(flash).slot for _ in range(3))] == [1, 1, 1, 0]
    found = flash.state()
    assert (found["slot"], found["phase"], found["previous"], found["outcome"]) == (0, 0, 0, 2)
    assert [r[8] for r in flash.diagnostics()] == [1, 1, 1]
    assert found["tried"] != 0


def test_a_confirmed_image_that_starts_to_crash_is_left_too() -> None:
    flash = device(phase=0)
    assert [crash(flash).slot for _ in range(3)] == [1, 1, 0]


def test_the_maximum_is_taken_from_the_record() -> None:
    flash = device(max_crashes=5)
    assert [crash(flash).slot for _ in range(5)] == [1, 1, 1, 1, 0]


def test_without_a_previous_image_current_goes_on_and_the_flash_is_spared() -> None:
    flash = device(phase=0, previous=0)
    assert [crash(flash).slot for _ in range(10)] == [1] * 10
    operations = flash.operations
    assert crash(flash).slot == 1
    assert flash.operations == operations
    assert flash.state()["crashes"] == 3


@pytest.mark.parametrize("reason", [POWER_ON, SOFTWARE, USB, 0xF])
def test_a_trial_that_is_never_confirmed_ends_after_ten_starts(reason: int) -> None:
    """It fails at an import and stays at the REPL: nothing crashes, and whoever is there switches it off and on."""
    flash = device()
    assert [boot(flash, reason).slot for _ in range(11)] == [1] * 10 + [0]
    found = flash.state()
    assert (found["slot"], found["phase"], found["outcome"], found["starts"], found["previous"]) == (0, 0, 10, 0, 0)
    assert found["tried"].to_bytes(4, "little") == hashlib.sha256(NEW).digest()[:4]
    record = flash.diagnostics()[-1]
    assert (record[8], record[9], struct.unpack_from("<I", record, 12)[0], record[20:24]) == (1, 1, 0xDF0C0002, b"1.1\0")
    operations = flash.operations
    assert boot(flash, reason).slot == 0
    assert flash.operations == operations


def test_a_trial_that_sleeps_may_sleep_eighty_times() -> None:
    flash = device()
    assert [boot(flash, 0x5).slot for _ in range(81)] == [1] * 80 + [0]
    flash = device(starts=79)
    assert (boot(flash, 0x5).slot, flash.state()["starts"]) == (1, 80)


def test_a_crash_is_counted_as_one_and_not_as_a_start() -> None:
    flash = device(starts=80)
    assert [crash(flash).slot for _ in range(2)] == [1, 1]
    assert (flash.state()["crashes"], flash.state()["starts"]) == (2, 80)
    assert boot(flash).slot == 0


def test_starts_are_not_counted_without_a_trial_or_another_image() -> None:
    for flash in (device(phase=0), device(previous=0)):
        assert [boot(flash).slot for _ in range(15)] == [1] * 15
        assert flash.operations == 0
    flash = device(starts=80)
    flash.put(SLOTS[0], b"\0" * 24)
    assert [boot(flash).slot for _ in range(3)] == [1] * 3
    assert (flash.state()["previous"], flash.state()["phase"]) == (0, 1)


@pytest.mark.parametrize("kind", [ERASE_REFUSED, ERASE_IGNORED, PROGRAM_REFUSED, PROGRAM_IGNORED])
def test_a_start_that_cannot_be_counted_is_not_made(kind: str) -> None:
    """The state log is full, and its other sector is worn out: the newest record stays, and the old image runs."""
    flash = WornFlash(device().sectors, {STATE_AT // SECTOR + 1: kind})
    flash.put(STATE_AT, b"".join(state(seq=i, slot=1, phase=1, previous=1, floor=1, accept=1) for i in range(129, 257)))
    flash.put(STATE_AT + SECTOR, b"".join(state(seq=i) for i in range(1, 129)))
    before = flash.state()
    for start in (boot, crash, boot):
        found = start(flash)
        assert found.slot == 0
        assert "the state cannot be written" in found.console
    assert flash.state() == before


def test_what_may_be_older_than_a_sector_that_cannot_be_read_is_not_written_over() -> None:
    flash = WornFlash(device(signed=True).sectors, {STATE_AT // SECTOR + 1: UNREADABLE})
    flash.put(STATE_AT, b"".join(state(seq=i, slot=0, phase=2) for i in range(1, 129)))
    flash.put(STATE_AT + SECTOR, state(seq=129, slot=1, floor=2, accept=2))
    found = boot(flash)
    assert (found.slot, flash.operations) == (0, 0)
    assert "a sector of the state cannot be read" in found.console
    flash.faults.clear()
    assert boot(flash).slot == 1
    assert flash.state()["floor"] == 2


@pytest.mark.parametrize(("kind", "places"), [(STUCK, [0, 32, 96, 128, 192]), (WEAK, [0, 64, 96, 160, 192])])
def test_a_record_goes_to_the_first_place_that_keeps_it(kind: str, places: list[int]) -> None:
    """A bit of each third place is 0 for ever, from the third on; or some of each are not programmed, from the second on."""
    flash = WornFlash(device().sectors, {STATE_AT // SECTOR: kind})
    for number in range(1, len(places)):
        assert boot(flash).slot == 1
        assert flash.state()["starts"] == 8 * number
        assert [at for at in range(0, SECTOR, 32) if flash.read(STATE_AT + at, 4) == b"DFUS"] == places[: number + 1]


@pytest.mark.parametrize(
    ("reason", "store0", "store6", "counts"),
    [
        (POWER_ON, 0, 0, False),
        (POWER_ON, 0, PANIC, False),
        (0x5, 0, PANIC, False),  # deep sleep uses the register for itself
        (0xF, 0, 0, False),
        (USB, 0, PANIC, False),
        (0x16, 0, PANIC, False),
        (SOFTWARE, 0, 0, False),  # machine.reset()
        (SOFTWARE, 0xCAFE, 0, False),
        (SOFTWARE, 0, 0x80090009, False),  # brown-out
        (SOFTWARE, 0, 0x80040004, True),
        (0x3, 0, 0x80050005, True),
        (SOFTWARE, 0, 0x80060006, True),
        (SOFTWARE, 0xDF0C0001, 0, True),
        *((reason, 0, 0, True) for reason in (0x7, 0x8, 0x9, 0xB, 0xD, WATCHDOG, 0x12)),
    ],
)
def test_only_real_crashes_count(reason: int, store0: int, store6: int, counts: bool) -> None:
    flash = device()
    assert boot(flash, reason, store0=store0, store6=store6).slot == 1
    assert flash.state()["crashes"] == int(counts)


def test_the_agents_mark_is_cleared_and_says_unconfirmed() -> None:
    flash = device(crashes=2)
    from tests.bootloader.machine import machine

    store = [0xDF0C0002, *[0] * 7]
    assert machine().boot(flash, reset_reason=SOFTWARE, store=store).slot == 0
    assert store[0] == 0
    assert flash.state()["outcome"] == 10


def test_a_damaged_image_is_left_at_once_and_recorded() -> None:
    flash = device(phase=0)
    flash.put(SLOTS[1] + 5000, b"\0\0\0\0")
    assert boot(flash).slot == 0
    assert (flash.state()["outcome"], flash.state()["slot"]) == (3, 0)
    record = flash.diagnostics()[-1]
    assert (record[8], record[9], struct.unpack_from("<I", record, 12)[0], record[20:24]) == (3, 1, 3, b"1.1\0")


def test_a_signed_image_is_booted_and_a_foreign_one_is_not() -> None:
    flash = device(signed=True, phase=0)
    found = boot(flash)
    assert (found.slot, "warning" in found.console) == (1, False)
    flash.install(1, NEW, envelope(NEW, signer=key(9), sequence=2))
    assert boot(flash).slot == 0
    assert flash.state()["outcome"] == 4


@pytest.mark.parametrize("at", [10, 60, 130, -40, -1])
def test_an_altered_envelope_is_not_booted(at: int) -> None:
    flash = device(signed=True, phase=0)
    altered = bytearray(envelope(NEW, signer=SIGNER, sequence=2))
    altered[at] ^= 1
    flash.install(1, NEW, bytes(altered))
    assert boot(flash).slot == 0


def test_an_image_without_a_trailer_is_only_booted_without_keys() -> None:
    flash = Flash()
    flash.install(0, OLD)
    assert boot(flash).slot == 0
    flash.put(KEYS_AT, key_record(SIGNER))
    found = boot(flash)
    assert (found.slot, found.recovery) == (None, True)
    assert "no trusted key signed it" in found.console


def test_a_development_key_works_and_warns_every_time() -> None:
    flash = device(signed=True, phase=0)
    flash.put(KEYS_AT, key_record(SIGNER, development=1))
    for _ in range(2):
        assert "warning: signed with a development key" in boot(flash).console


def test_below_the_floor_nothing_is_booted() -> None:
    flash = device(signed=True, phase=0, floor=3, accept=3)
    flash.install(0, OLD, envelope(OLD, signer=SIGNER, sequence=3))
    assert boot(flash).slot == 0
    assert flash.state()["outcome"] == 5


def test_a_floor_above_what_was_confirmed_does_not_brick() -> None:
    """An agent that believed such a manifest confirmed it: floor 9, accept 2. Below what was confirmed nothing is booted still."""
    flash = device(signed=True, phase=0, floor=9, accept=2)
    flash.install(1, NEW, envelope(NEW, signer=SIGNER, sequence=2, floor=9))
    assert boot(flash).slot == 1
    assert crash(flash).slot == 1
    assert flash.state()["floor"] == 2
    flash.put(SLOTS[1], b"\0" * 24)
    assert boot(flash).recovery


def test_a_key_log_that_cannot_be_read_trusts_nobody() -> None:
    flash = device(signed=True, phase=0)
    flash.put(KEYS_AT, b"\0" * 256)
    found = boot(flash)
    assert (found.slot, found.recovery) == (None, True)


def test_keys_change_once_the_image_is_confirmed() -> None:
    second, third = key(2), key(3)
    flash = device(signed=True)
    flash.put(KEYS_AT, key_record(SIGNER, second, development=2))
    fields = {"sequence": 2, "add": (public(third),), "revoke": (key_id(second), key_id(SIGNER))}
    flash.install(1, NEW, envelope(NEW, signer=SIGNER, **fields))
    boot(flash)
    assert len(flash.records(KEYS_AT, 256, 2, 0x4B554644)) == 1
    flash.put(STATE_AT + 32, state(seq=2, slot=1, previous=1, outcome=1))
    boot(flash)
    newest = flash.records(KEYS_AT, 256, 2, 0x4B554644)[-1]
    # The key that signs cannot revoke itself; the mark of a development key goes with its key.
    assert (newest[8], newest[9], newest[10]) == (2, 0, 1)
    assert newest[16:80] == public(SIGNER) + public(third)
    operations = flash.operations
    assert boot(flash).slot == 1
    assert flash.operations == operations


def test_a_revoked_key_stays_revoked_when_it_is_added_again() -> None:
    second = key(2)
    flash = device(signed=True, phase=0)
    flash.put(KEYS_AT, key_record(SIGNER, revoked=(key_id(second),)))
    flash.install(1, NEW, envelope(NEW, signer=SIGNER, sequence=2, add=(public(second),)))
    assert boot(flash).slot == 1
    assert len(flash.records(KEYS_AT, 256, 2, 0x4B554644)) == 1


@pytest.mark.parametrize("content", [b"\0" * 64, b"\x5a" * 4096])
def test_an_unreadable_state_boots_the_newest_that_verifies_and_says_so(content: bytes) -> None:
    flash = device()
    flash.put(STATE_AT, b"\xff" * 2 * SECTOR)
    flash.put(STATE_AT, content)
    assert boot(flash).slot == 1
    found = flash.state()
    assert (found["slot"], found["phase"], found["previous"], found["outcome"]) == (1, 0, 1, 8)
    assert flash.diagnostics()[-1][8] == 4
    assert boot(flash).slot == 1


def test_a_first_start_writes_the_first_record() -> None:
    flash = Flash()
    flash.install(1, NEW)
    assert boot(flash).slot == 1
    assert (flash.state()["slot"], flash.state()["outcome"], flash.diagnostics()) == (1, 0, [])


def test_a_torn_record_is_skipped_and_its_place_not_used_again() -> None:
    flash = device()
    flash.put(STATE_AT + 32, state(seq=2, slot=0)[:16])
    assert boot(flash).slot == 1
    crash(flash)
    assert flash.read(STATE_AT + 32, 16) == state(seq=2, slot=0)[:16]
    assert flash.read(STATE_AT + 64, 4) == b"DFUS"


def test_nothing_boots_means_recovery_and_no_loss() -> None:
    flash = device()
    for slot in (0, 1):
        flash.put(SLOTS[slot], b"\0" * 24)
    found = boot(flash)
    assert (found.slot, found.recovery) == (None, True)
    assert "recovery: waiting" in found.console
    assert flash.state()["slot"] == 1


DROM, IROM = 0x3C000020, 0x42010000
LOOP = b"\x01\xa0\x01\xa0"


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (image("x", chip=0), "made for another chip"),
        (image("x", flash=4), "made for a larger flash"),
        (image("x", entry=0x40390000), "bad segment table"),
        (image("x", segments=[(0x403CE700, LOOP * 8), (0x40380000, LOOP)]), "outside of the application's memory"),
        (image("x", segments=[(0x3FCCE70C, bytes(8)), (0x40380000, LOOP)]), "outside of the application's memory"),
        (image("x", segments=[(0x3FCD6710, bytes(8)), (0x40380000, LOOP)]), "outside of the application's memory"),
        (image("x", segments=[(0x60008000, bytes(8)), (0x40380000, LOOP)]), "outside of the application's memory"),
        (image("x", segments=[(0x50001FFC, bytes(8)), (0x40380000, LOOP)]), "outside of the application's memory"),
        (image("x", segments=[(0x427FFFF8, bytes(16)), (0x40380000, LOOP)]), "outside of the application's memory"),
        (image("x", segments=[(DROM + 4, bytes(8)), (0x40380000, LOOP)]), "bad segment table"),
        (image("x", segments=[(0x40380002, LOOP)]), "bad segment table"),
        (image("x", segments=[]), "bad segment table"),
    ],
)
def test_a_bad_image_is_refused_with_a_clear_line_and_a_record(bad: bytes, text: str) -> None:
    flash = device(phase=0)
    flash.install(1, bad, envelope(bad, sequence=2))
    found = boot(flash)
    assert found.slot == 0
    assert text in found.console
    assert (flash.diagnostics()[-1][8], flash.state()["outcome"]) == (3, 6)


def test_an_image_that_claims_a_page_twice_is_refused() -> None:
    first = bytes(0x10000 - 40)  # up to 8 bytes before the next page of the slot, where the second one's header stands
    for address, slot in ((0x42010000, 0), (0x42000000, None)):
        data = image("x", segments=[(0x3C000020, first), (address, LOOP), (0x40380000, LOOP)])
        assert boot(_only(data)).slot == slot


def _only(data: bytes) -> Flash:
    flash = Flash()
    flash.install(0, data)
    return flash


def test_mapped_segments_are_mapped_where_they_stand_in_either_slot() -> None:
    data = build("print(1)", "1.0", code=bytes(range(256)) * 600)
    for slot in (0, 1):
        flash = Flash()
        flash.install(slot, data)
        assert boot(flash).slot == slot


def test_a_panic_leaves_its_registers_and_stack_in_the_ring() -> None:
    flash = device()
    sram = bytearray(0x60000)
    at = 0x1230
    frame = [0x42001234, 0x42005678, 0x3FC80000 + at + 160, *range(3, 32), 0, 0, 0, 0, 0]
    frame[32], frame[33], frame[34], frame[35] = 0x1881, 0x40380001, 7, 0xDEAD0000
    struct.pack_into("<37I", sram, at, *frame)
    struct.pack_into("<32I", sram, at + 160, *range(100, 132))
    assert boot(flash, SOFTWARE, store6=PANIC, sram=bytes(sram)).slot == 1
    record = flash.diagnostics()[-1]
    words = struct.unpack_from("<34I", record, 52)
    assert words[:32] == tuple(frame[:32])
    assert words[32:] == (7, 0xDEAD0000)
    assert struct.unpack_from("<32I", record, 188) == tuple(range(100, 132))
    assert (record[10], record[11], struct.unpack_from("<I", record, 12)[0]) == (1, SOFTWARE, PANIC)
    assert struct.unpack_from("<I", record, 16)[0] == 2


def test_without_a_frame_the_record_says_so() -> None:
    flash = device()
    boot(flash, WATCHDOG, sram=bytes(0x60000))
    assert flash.diagnostics()[-1][52:316] == bytes(264)


def test_the_diagnostics_ring_goes_round() -> None:
    flash = device(max_crashes=255)
    for _ in range(40):
        crash(flash)
    found = flash.diagnostics()
    assert 24 <= len(found) <= 32
    assert [r[10] for r in found] == list(range(41 - len(found), 41))


class _Watched(Flash):
    __slots__ = ("lowest",)

    def __init__(self, sectors: dict[int, bytes]) -> None:
        super().__init__(sectors)
        self.lowest = self.size

    def erase(self, offset: int) -> None:
        self.lowest = min(self.lowest, offset)
        super().erase(offset)

    def program(self, offset: int, data: bytes) -> None:
        self.lowest = min(self.lowest, offset)
        super().program(offset, data)


def test_nothing_below_the_state_is_ever_written() -> None:
    flash = _Watched(device(max_crashes=255).sectors)
    for _ in range(140):
        crash(flash)
    assert flash.lowest >= STATE_AT
    assert flash.size == DIAG_AT + 4 * SECTOR
    assert SLOTS[1] + SLOT_BYTES == 0x370000


@pytest.mark.parametrize(
    ("minor_low", "minor_high", "major", "glitch"), [(0, 0, 0, 0), (2, 0, 0, 0), (3, 0, 0, 1), (0, 1, 0, 1), (1, 0, 1, 1)]
)
def test_what_the_rom_leaves_undone_is_done(minor_low: int, minor_high: int, major: int, glitch: int) -> None:
    """Addresses and values: ESP-IDF v5.2.2, bootloader_esp32c3.c, bootloader_flash_config_esp32c3.c."""
    boot(device())
    chip = machine()
    fuses = {0x60008850: minor_low << 18, 0x60008858: minor_high << 23 | major << 24}
    fuses |= {0x6000810C: 7, 0x600080AC: 1 << 17, 0x60008040: 5}
    chip.boot(device(), reset_reason=POWER_ON, store=[0] * 8, fuses=fuses)
    assert chip.register(0x60008034) >> 20 & 1 == glitch
    assert chip.register(0x6000810C) == 1 << 1
    assert chip.register(0x600080AC) == 1 << 31
    assert chip.register(0x60008040) == 0
    for spi, hold in ((0x60003000, 0), (0x60002000, 1)):
        assert chip.register(spi + 0x08) == 1 << 3 | 1 << 18 | 1 << 19
        assert chip.register(spi + 0x10) == hold << 5
        assert chip.register(spi + 0x18) == 1 << 6 | 1 << 7


def test_a_bootloader_that_never_ends_is_said_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    require("unicorn")
    require("riscv-gcc")
    monkeypatch.setattr(simulator, "RUN_MAX_S", 0.2)
    chip = simulator.Bootloader()
    chip.uc.mem_write(0x40000100, b"\x01\xa0")  # c.j .
    chip._start = 0x40000100
    with pytest.raises(simulator.Hang, match="still running at 0x40000100"):
        chip.boot(Flash(), reset_reason=1, store=[0] * 8)
