# What esp32.Partition does with otadata: the boot partition, rollback. Errors are the port's: OSError of -esp_err_t.
import binascii
import hashlib
import struct

import otadata

NOT_FOUND, INVALID_ARG, FAIL, VALIDATE_FAILED = -0x105, -0x102, -0xFFFFFFFF, -0x1503
PIECE = 1024


class _Window:
    def __init__(self, part):
        self._part = part

    def read(self, offset, size):
        data = bytearray(size)
        self._part.readblocks(0, data, offset)
        return bytes(data)

    def erase(self, offset):
        self._part.ioctl(6, offset // 4096)

    def program(self, offset, data):
        self._part.writeblocks(0, data, offset)


def _otadata(cls):
    found = cls.find(cls.TYPE_DATA, 0)
    if not found:
        raise OSError(NOT_FOUND)
    return _Window(found[0])


def _count(cls):
    n = 0
    while cls.find(cls.TYPE_APP, 0x10 + n):
        n += 1
    return n


def booted(cls):
    """Return the label of the partition that is booted next: esp_ota_get_boot_partition()."""
    found = otadata.entries(_otadata(cls))
    which = otadata.active(found)
    if which >= 0:
        return "ota_%d" % ((found[which][0] - 1) % _count(cls))
    return "factory" if cls.find(cls.TYPE_APP, 0) else "ota_0"


def set_boot(part):
    kind, subtype, _, size = part.info()[:4]
    cls = type(part)
    if kind != cls.TYPE_APP or not _whole(_Window(part), size):
        raise OSError(VALIDATE_FAILED, "ESP_ERR_OTA_VALIDATE_FAILED")
    window = _otadata(cls)
    if subtype == 0:
        window.erase(0)
        window.erase(4096)
    elif not 0 <= subtype - 0x10 < _count(cls):
        raise OSError(INVALID_ARG)
    else:
        otadata.set_boot(window, subtype - 0x10, _count(cls))


def next_update(part):
    cls = type(part)
    number = part.info()[1] - 0x10
    return cls("ota_%d" % ((number + 1) % _count(cls) if 0 <= number else 0))


def mark_valid(cls):
    if not otadata.mark_valid(_otadata(cls)):
        raise OSError(FAIL)


def _whole(window, size):
    # Segments, checksum, and the SHA-256 behind them, as esp_image_verify() has them.
    head = window.read(0, 24)
    if head[0] != 0xE9 or not 1 <= head[1] <= 16:
        return False
    digest, checksum, at = hashlib.sha256(head), 0xEF, 24
    for _ in range(head[1]):
        segment = window.read(at, 8)
        digest.update(segment)
        at += 8
        left = struct.unpack("<I", segment[4:])[0]
        if left % 4 or at + left > size:
            return False
        while left:
            data = window.read(at, min(left, PIECE))
            digest.update(data)
            checksum ^= _xor(data)
            at += len(data)
            left -= len(data)
    end = (at + 16) & ~15
    if end + 32 > size:
        return False
    rest = window.read(at, end - at)
    digest.update(rest)
    return rest[-1] == checksum and (not head[23] or window.read(end, 32) == digest.digest())


def _xor(data):
    # Of a multiple of four bytes: words first, which is what takes time here.
    value = 0
    for i in range(0, len(data), 4):
        value ^= data[i] | data[i + 1] << 8 | data[i + 2] << 16 | data[i + 3] << 24
    return (value ^ value >> 8 ^ value >> 16 ^ value >> 24) & 0xFF
