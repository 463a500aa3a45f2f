# otadata as ESP-IDF reads and writes it, for the bootloader of devicefw/sim/espidf.py and for esp32.Partition: the same bytes, the same
# order of erasing and programming. Runs on CPython and MicroPython. `flash` has read(offset, size), erase(offset), program(offset, data),
# offsets within the partition. Source: ESP-IDF, esp_flash_partitions.h, bootloader_common_loader.c, esp_ota_ops.c.
import binascii
import struct

SECTOR = 4096
NEW, PENDING, VALID, INVALID, ABORTED = 0, 1, 2, 3, 4
UNDEFINED = BLANK = 0xFFFFFFFF


def crc(sequence):
    # esp_rom_crc32_le(UINT32_MAX, ...): of the sequence alone.
    return binascii.crc32(struct.pack("<I", sequence), 0xFFFFFFFF) & 0xFFFFFFFF


def entries(flash):
    """Return (sequence, state, crc) of both sectors, whatever they hold."""
    return [struct.unpack("<I20xII", flash.read(sector * SECTOR, 32)) for sector in (0, 1)]


def write(flash, which, sequence, state, check=None):
    # check: the CRC as it was read, where it is written back as it was.
    flash.erase(which * SECTOR)
    entry = struct.pack("<I20sII", sequence, b"\xff" * 20, state, crc(sequence) if check is None else check)
    flash.program(which * SECTOR, entry)


def whole(entry):
    return entry[0] != BLANK and entry[2] == crc(entry[0])


def out(entry):
    # bootloader_common_ota_select_invalid()
    return entry[0] == BLANK or entry[1] in (INVALID, ABORTED)


def active(found):
    """Return which of the entries counts, or -1."""
    usable = [i for i in (0, 1) if not out(found[i]) and whole(found[i])]
    if len(usable) == 2 and found[0][0] != found[1][0]:
        return 0 if found[0][0] > found[1][0] else 1
    return usable[0] if usable else -1


def set_boot(flash, slot, count):
    """esp_rewrite_ota_data(), of an application with rollback."""
    found = entries(flash)
    which = active(found)
    if which < 0:
        write(flash, 0, slot + 1, NEW)
        return
    sequence = (slot + 1) % count
    while found[which][0] > sequence:
        sequence += count
    write(flash, 1 - which, sequence, NEW)


def mark_valid(flash):
    """esp_ota_mark_app_valid_cancel_rollback(); returns False where none counts: what runs is a factory image."""
    found = entries(flash)
    which = active(found)
    if which >= 0 and found[which][1] != VALID:
        write(flash, which, found[which][0], VALID)
    return which >= 0
