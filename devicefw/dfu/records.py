"""What else stands in flash: trusted keys, diagnostics, and what an image says of itself (bootloader/FORMAT.md). Not kept in RAM."""

import hashlib
import struct

from dfu import flash

KEYS_MAGIC, DIAG_MAGIC = 0x4B554644, 0x44554644


def keys(part):
    """Return the trusted public keys; [] on an open device, None if the log cannot be read: then nothing is trusted."""
    if part is None:
        from dfu.idf import Keys

        part = Keys()
    log = flash.Log(part, KEYS_MAGIC, 256, 2)
    found = log.newest()
    if log.unread:  # a newer record may have revoked what an older one trusts
        return None
    if found is None:
        return [] if flash.blank(part, 0, 2 * flash.SECTOR) else None
    record = found[2]
    revoked = [bytes(record[144 + 8 * i : 152 + 8 * i]) for i in range(min(record[10], 11))]
    trusted = [bytes(record[16 + 32 * i : 48 + 32 * i]) for i in range(min(record[8], 4))]
    return [key for key in trusted if hashlib.sha256(key).digest()[:8] not in revoked]


def diagnostics(slots):
    if slots.diagnostics is None:
        from dfu.idf import Ends

        return Ends()
    return Diagnostics(slots.diagnostics)


class Diagnostics:
    """The ring that the bootloader and the agent write and the agent clears."""

    def __init__(self, part):
        self.part = part
        self.log = flash.Log(part, DIAG_MAGIC, 512, 4)

    def last(self, kind, slot):
        """Return the newest record of this type about this slot, or None."""
        best = None
        for seq, _, record in self.log.scan():
            if record[8] == kind and record[9] == slot and (best is None or seq > best[0]):
                best = (seq, record)
        return best[1] if best else None

    def text(self, slot, text):
        """Append a text from the agent; the end of a long one is what says most."""
        data = text.encode()
        data = data[-452:]
        while data and data[0] & 0xC0 == 0x80:
            data = data[1:]
        self.log.append(struct.pack("<BBBBII32s", 2, slot, 0, 0, 0, 0, b"") + data + bytes(456 - len(data)))

    def clear(self):
        newest = self.log.newest()
        last = newest[1] // self.log.places if newest else 0
        for i in range(1, 5):
            sector = (last + i) % 4
            if not flash.blank(self.part, sector * flash.SECTOR, flash.SECTOR):
                flash.erase(self.part, sector)


def image_size(part):
    """Return the length of the ESP image in a slot by its segment table, or 0."""
    head = flash.read(part, 0, 24)
    if head[0] != 0xE9 or not 1 <= head[1] <= 16:
        return 0
    p = 24
    for _ in range(head[1]):
        p += 8 + struct.unpack_from("<I", flash.read(part, p, 8), 4)[0]
    return (p + 16 & ~15) + (32 if head[23] else 0)


def app_version(part):
    """Return the version in the image's own description (ESP-IDF's esp_app_desc_t), or ""."""
    head = flash.read(part, 32, 48)
    if struct.unpack_from("<I", head)[0] != 0xABCD5432:
        return ""
    try:
        return bytes(head[16:48]).split(b"\0")[0].decode()
    except UnicodeError:
        return ""
