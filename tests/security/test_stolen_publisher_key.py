"""The attacker has a key that devices trust. What it is good for, and how it ends: on the shipped bootloader."""

from __future__ import annotations

from collections.abc import Iterator

from bootloader.sim.explore import torn
from bootloader.sim.images import KEYS_AT, STATE_AT, Flash, envelope, image, key, key_id, key_record, public, state
from dfud.wire.manifest import FLAG_DOWNGRADE
from tests.bootloader.machine import NEW, OLD, SIGNER, boot, device

THIEFS = image("thief's", 6000)
STOLEN, SUCCESSOR = SIGNER, key(7)


class _Recorder(Flash):
    """Remembers each operation with the flash before it."""

    __slots__ = ("steps",)

    def __init__(self, sectors: dict[int, bytes]) -> None:
        super().__init__(sectors)
        self.steps: list[tuple[Flash, str, int, bytes]] = []

    def erase(self, offset: int) -> None:
        self.steps.append((Flash(self.sectors), "erase", offset, b""))
        super().erase(offset)

    def program(self, offset: int, data: bytes) -> None:
        self.steps.append((Flash(self.sectors), "program", offset, data))
        super().program(offset, data)


def revoking() -> Flash:
    """A device on which the confirmed image, signed by the successor, revokes the stolen key at the next start."""
    flash = Flash()
    flash.install(0, OLD, envelope(OLD, signer=SUCCESSOR, sequence=3, revoke=(key_id(STOLEN),)))
    # The log's first sector is full: revoking enters the second one, the longest way there is.
    for i in range(16):
        flash.put(KEYS_AT + 256 * i, key_record(STOLEN, SUCCESSOR, seq=i + 1))
    flash.put(STATE_AT, state(slot=0, outcome=1))
    return flash


def cut_everywhere(flash: Flash) -> Iterator[tuple[str, Flash]]:
    """Yield what every power cut during one start leaves, and the flash without a cut."""
    recorder = _Recorder(flash.sectors)
    boot(recorder)
    assert recorder.steps, "nothing was written: there is nothing to cut"
    for number, (before, kind, offset, data) in enumerate(recorder.steps):
        for how, left in torn(before, kind, offset, data):
            yield f"cut {number}, {how}", left
    yield "no cut", Flash(recorder.sectors)


def test_the_stolen_key_signs_what_devices_boot_until_it_is_revoked() -> None:
    """What the thief can do, if he also gets his image to the device."""
    flash = device(signed=True, phase=1)
    flash.install(1, THIEFS, envelope(THIEFS, signer=STOLEN, sequence=9))
    assert boot(flash).slot == 1


def test_a_revoked_key_stays_revoked_across_power_cuts() -> None:
    for where, left in cut_everywhere(revoking()):
        for again, twice in [("", left), *(cut_everywhere(left) if _writes(left) else ())]:
            assert boot(twice).slot == 0
            twice.install(1, THIEFS, envelope(THIEFS, signer=STOLEN, sequence=99))
            twice.put(STATE_AT + 32, state(seq=50, slot=1, phase=1, previous=1))
            assert boot(twice).slot == 0, f"{where}; {again}"
            assert public(STOLEN) not in twice.records(KEYS_AT, 256, 2, 0x4B554644)[-1][:144]


def _writes(flash: Flash) -> bool:
    recorder = _Recorder(flash.sectors)
    boot(recorder)
    return bool(recorder.steps)


def test_a_revoked_key_cannot_bring_itself_back() -> None:
    """Neither by a manifest of its own, nor by the old record of keys put behind the new one's sector."""
    flash = device(signed=True, phase=0)
    flash.put(KEYS_AT, key_record(SUCCESSOR, seq=5, revoked=(key_id(STOLEN),)))
    flash.put(KEYS_AT + 4096, key_record(STOLEN, SUCCESSOR, seq=4))
    flash.install(0, OLD, envelope(OLD, signer=SUCCESSOR, sequence=3))
    flash.install(1, THIEFS, envelope(THIEFS, signer=STOLEN, sequence=99, add=(public(STOLEN),)))
    assert boot(flash).slot == 0


def test_the_floor_holds_against_the_key_and_its_downgrade_flag() -> None:
    flash = device(signed=True, phase=0, floor=10, accept=10)
    flash.install(0, OLD, envelope(OLD, signer=STOLEN, sequence=10))
    flash.install(1, NEW, envelope(NEW, signer=STOLEN, sequence=9, flags=FLAG_DOWNGRADE))
    assert boot(flash).slot == 0
    assert flash.state()["outcome"] == 5


def test_the_stolen_key_can_add_the_thiefs_and_revoke_the_publishers_other_keys() -> None:
    """What he can do, and why keys that are not used are kept apart: once his image is confirmed, he has the device."""
    flash = device(signed=True, phase=0, outcome=1)
    flash.put(KEYS_AT, key_record(STOLEN, SUCCESSOR))
    fields = {"sequence": 9, "add": (public(key(9)),), "revoke": (key_id(SUCCESSOR),)}
    flash.install(1, THIEFS, envelope(THIEFS, signer=STOLEN, **fields))
    boot(flash)
    record = flash.records(KEYS_AT, 256, 2, 0x4B554644)[-1]
    assert record[16 : 16 + 32 * record[8]] == public(STOLEN) + public(key(9))


def test_one_apps_key_is_none_of_anothers() -> None:
    """Each device holds the keys of its own app's publisher; somebody else's signature is a stranger's."""
    flash = device(signed=True, phase=1)
    flash.install(1, THIEFS, envelope(THIEFS, signer=key(8), sequence=9, app="pump"))
    assert boot(flash).slot == 0


