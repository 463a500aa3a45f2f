"""A board without dfud's bootloader: ESP-IDF's own chooses the slot, by its two entries in otadata. What dfud's keeps in flash of its own,
this keeps in NVS (namespace `dfud`). docs/other-boards.md. Not kept in RAM.

Source of the format and its rules: ESP-IDF, esp_flash_partitions.h, bootloader_utility.c and esp_ota_ops.c.
"""

import struct

from dfu.errors import clear
from dfu.idfstate import feed  # noqa: F401  # for dfu.trial
from dfu.state import AGENT, CONFIRMED, TRIAL

NEW, PENDING, VALID, INVALID, ABORTED = range(5)  # of an image, in its entry; PENDING becomes ABORTED at the next start
SWITCHING, SWITCHED, STALE, STARTED, BACK = 1, 2, 4, 8, 16  # `step`: how far the change of slots came
ONE_TRIAL, NO_SIGNATURE, NO_FALLBACK = 1, 2, 4  # what is weaker here: docs/protocol.md, boot
SECTOR = 4096
NOT_FOUND, NO_SPACE = -0x1102, -0x1105  # ESP_ERR_NVS_NOT_FOUND; NOT_ENOUGH_SPACE: of a namespace that is not there


def blob(key, size):
    """Return what NVS keeps under `key`, at most `size` bytes; b"" if there is nothing. Raises OSError."""
    import esp32

    buffer = bytearray(size)
    try:
        return bytes(buffer[: esp32.NVS("dfud").get_blob(key, buffer)])
    except OSError as error:
        if error.args[0] not in (NOT_FOUND, NO_SPACE):
            raise
        return b""


def put(key, data):
    """Keep `data`, whole, or leave what was there. Raises OSError."""
    import esp32

    nvs = esp32.NVS("dfud")
    nvs.set_blob(key, data)
    nvs.commit()


FIELDS = ("slot", "phase", "crashes", "max_crashes", "previous", "outcome", "reset", "writer", "floor", "accept", "tried")
FIELDS += ("code", "step", "lacks")
FORMAT, SIZE = "<I8BIII3B", 27


def values(state):
    return {name: getattr(state, name) for name in FIELDS}


def load(state):
    """Take the record from NVS. Raises OSError."""
    data = blob("state", 64)
    state.known = len(data) == SIZE and data[4] < 2 and data[5] <= TRIAL
    _take(state, struct.unpack(FORMAT, data) if state.known else (0,) * 15)


def _take(state, found):
    state.seq = found[0]
    for i, name in enumerate(FIELDS):
        setattr(state, name, found[i + 1])


def write(state, **changes):
    """Write the record with `changes`, and nothing else. Raises OSError: it is then as before."""
    found = values(state)
    found.update(changes, writer=AGENT)
    if len(found) != len(FIELDS):
        raise ValueError("state: no such field in %r" % changes)
    found["floor"] = min(found["floor"], found["accept"])
    found = [state.seq + 1] + [found[name] for name in FIELDS]
    put("state", struct.pack(FORMAT, *found))
    _take(state, found)
    state.known = True


def append(state, p, changes):
    """Write the record with `changes`, and do what goes with them. p: esp32.Partition. Raises OSError: what is booted is then as before."""
    slot = changes.get("slot", state.slot)
    if slot == state.slot:
        if state.phase == TRIAL and changes.get("phase") == CONFIRMED:
            p.mark_app_valid_cancel_rollback()
            write(state, **changes)
            state.fed = True  # the watchdog of the trial cannot be stopped
            try:
                from dfu.idfkeys import rotate

                rotate(p(p.RUNNING))
            except OSError as error:
                print("dfu: nvs:", error)  # the next start does it
            clear("idfkeys")
            return
        write(state, **changes)
        return
    kept = values(state)
    stale = STALE if entry(p, slot) in (INVALID, ABORTED) else 0
    write(state, step=SWITCHING | stale, code=0, **changes)
    try:
        # ESP-IDF checks the image's own hash once more.
        p("ota_%d" % slot).set_boot()
    except OSError:
        write(state, **kept)
        raise
    try:
        write(state, step=SWITCHED)
    except OSError as error:
        print("dfu: nvs:", error)  # it is booted all the same


def _entries(p):
    """Yield (sequence, state) of the entries in otadata that are whole. Their state is not in their CRC."""
    from dfu.flash import crc32, read

    otadata = p.find(p.TYPE_DATA, 0)[0]
    for sector in (0, 1):
        data = read(otadata, sector * SECTOR, 32)
        sequence, state, crc = struct.unpack_from("<I20xII", data)
        # esp_rom_crc32_le() of the sequence, from all ones.
        if sequence != 0xFFFFFFFF and crc == crc32(data[:4], 0xFFFFFFFF):
            yield sequence, state


def _count(p):
    n = 0
    while p.find(p.TYPE_APP, 0x10 + n):
        n += 1
    return n


def entry(p, slot):
    """Return the state of the newest entry about a slot, or None."""
    best, count = None, _count(p)
    for found in _entries(p):
        if (found[0] - 1) % count == slot and (best is None or found > best):
            best = found
    return best[1] if best else None


def active(p):
    """Return the number of the slot that ESP-IDF's bootloader would boot, or None."""
    usable = [sequence for sequence, state in _entries(p) if state not in (INVALID, ABORTED)]
    return (max(usable) - 1) % _count(p) if usable else None


def number(p):
    """Return the number of the slot that runs; a factory image is left for slot 0, so it has the other one's."""
    return 0 if p(p.RUNNING).info()[4] == "ota_0" else 1


def trial():
    """Say whether what runs is on trial, as far as ESP-IDF is concerned."""
    import esp32

    p = esp32.Partition
    return entry(p, number(p)) == PENDING


def begin(slots, p):
    """As dfu.slots.find(), and all that is to be done at a start."""
    from dfu.idfstart import begin

    begin(slots, p)
    clear("idfstart")


def arm(ms):
    """As dfu.crash.arm()."""
    from dfu.idfstart import arm

    arm(ms)
    clear("idfstart")


def keep(slot, code, text):
    """Keep how the application of a slot (None: of the one that runs) ended, for the next start, whichever slot that runs."""
    import esp32

    seq = blob("state", 64)[:4] or bytes(4)
    data = text.encode()[-452:]
    while data and data[0] & 0xC0 == 0x80:
        data = data[1:]
    put("end%d" % (number(esp32.Partition) if slot is None else slot), seq + bytes((code,)) + data)


class Keys:
    """The trusted keys as a partition: the record is in NVS (`keys`), what is behind it is blank."""

    def readblocks(self, block, buffer, offset=0):
        at, data = block * SECTOR + offset, blob("keys", 256)
        for i in range(len(buffer)):
            buffer[i] = data[at + i] if at + i < len(data) else 0xFF


class Ends:
    """As dfu.records.Diagnostics: there is one text about each slot, of its last end."""

    def __init__(self):
        self.log = self

    def newest(self):
        import esp32

        slot = number(esp32.Partition)
        record = self.last(2, slot)
        return (0, slot, record) if record else None

    def last(self, kind, slot):
        data = blob("end%d" % slot, 512) if kind == 2 else b""
        return bytes(8) + bytes((2, slot)) + bytes(42) + data[5:] + bytes(max(0, 457 - len(data))) if len(data) > 4 else None

    def clear(self):
        for slot in (0, 1):
            if blob("end%d" % slot, 512):
                put("end%d" % slot, b"\0")
