"""What stands in flash: bootloader/FORMAT.md. Everything here survives a power cut at any operation.

Works on objects with the methods of esp32.Partition: readblocks(block, buffer, offset), writeblocks(block, buffer, offset),
which programs without erasing, and ioctl(6, block), which erases one sector of 4096 bytes. Not kept in RAM: no object that stays is of
a class of here.
"""

import binascii
import hashlib
import struct

SECTOR = 4096
TRAILER_MAX = 1024
STATE_MAGIC = 0x53554644
TRAILER_MAGIC, RESUME_MAGIC = 0x54554644, 0x52554644
MARKS_AT = 2048


def crc32(data, value=0):
    return binascii.crc32(data, value) & 0xFFFFFFFF


_blank = b"\xff" * 128


def blank(part, offset, size):
    """Say whether `size` bytes are erased; reads in small pieces, for a heap may have no large one."""
    buffer = bytearray(min(size, 128))
    for at in range(offset, offset + size, len(buffer)):
        part.readblocks(at // SECTOR, buffer, at % SECTOR)
        if buffer != _blank[: len(buffer)]:
            return False
    return True


def read(part, offset, size):
    data = bytearray(size)
    part.readblocks(offset // SECTOR, data, offset % SECTOR)
    return data


def write(part, offset, data):
    """Program, without erasing, and read it back; may cross sectors. Raises OSError if something else stands there."""
    view = memoryview(data)
    while len(view):
        room = min(SECTOR - offset % SECTOR, len(view))
        part.writeblocks(offset // SECTOR, view[:room], offset % SECTOR)
        if not holds(part, offset, view[:room]):
            raise OSError("flash: 0x%x is not as written" % offset)
        view = view[room:]
        offset += room


def erase(part, sector):
    part.ioctl(6, sector)


def holds(part, offset, data):
    """Say whether `data` stands in the sector at `offset` already."""
    buffer = bytearray(min(len(data), 128))  # one for all pieces: this is done for every page
    for at in range(0, len(data), 128):
        piece = memoryview(buffer)[: len(data) - at]
        part.readblocks((offset + at) // SECTOR, piece, (offset + at) % SECTOR)
        if piece != data[at : at + 128]:
            return False
    return True


class Log:
    """Records of `size` bytes in `sectors` sectors: the newest valid one counts. A place that holds anything is not used again, and
    the sector of the newest record is not erased, whatever the flash does with reads, programs and erases.
    """

    def __init__(self, part, magic, size, sectors):
        self.part, self.magic, self.size, self.sectors = part, magic, size, sectors
        self.places = SECTOR // size
        self.unread = False  # a place could not be read when newest() looked last: there may be a newer record

    def scan(self):
        """Yield (sequence number, place, record) of every valid record."""
        self.unread = False
        for place in range(self.places * self.sectors):
            try:
                record = read(self.part, place * self.size, self.size)
            except OSError:
                self.unread = True
                continue
            magic, seq = struct.unpack_from("<II", record)
            if magic == self.magic and struct.unpack_from("<I", record, self.size - 4)[0] == crc32(record[:-4]):
                yield seq, place, record

    def newest(self):
        """Return (sequence number, place, record), or None."""
        best = None
        for found in self.scan():
            if best is None or found[0] > best[0]:
                best = found
        return best

    def append(self, body, follows=None):
        """Add a record: `body` is what stands between the sequence number and the CRC. `follows`: the number of the record that it
        was made from; None: any. Raises OSError; the newest record is then still what it was, or the new one already.
        """
        best = self.newest()
        seq, at = best[:2] if best else (0, 0)
        if self.unread:
            raise OSError("flash: a sector of the log cannot be read")  # it may hold a newer record
        if follows is not None and follows != seq:
            raise OSError("flash: newest record is %d, expected %d" % (seq, follows))
        record = struct.pack("<II", self.magic, seq + 1) + body
        record += struct.pack("<I", crc32(record))
        sector = at // self.places
        # The newest record's own sector, then the others in turn; with no record there is none to lose.
        for turn in range(self.sectors if best else self.sectors + 1):
            if turn == 0 or self._erased(sector):
                for place in range(at, (sector + 1) * self.places):
                    if self._stands(place * self.size, record):
                        return seq + 1
            sector = (sector + 1) % self.sectors
            at = sector * self.places
        raise OSError("flash: the log takes no record")

    def _erased(self, sector):
        try:
            if not blank(self.part, sector * SECTOR, SECTOR):
                erase(self.part, sector)
        except OSError:
            return False
        return True

    def _stands(self, offset, record):
        try:
            if not blank(self.part, offset, self.size):
                return False
            write(self.part, offset, record)
        except OSError:
            return False
        return True


def state_log(part):
    return Log(part, STATE_MAGIC, 32, 2)


def envelope_of(part, size):
    """Return the envelope in the trailer of the slot of `size` bytes, or b""."""
    sector = read(part, size - SECTOR, 8 + TRAILER_MAX + 8)
    magic, length = struct.unpack_from("<II", sector)
    if magic != TRAILER_MAGIC or not 0 < length <= TRAILER_MAX:
        return b""
    end = 8 + (length + 3 & ~3)
    if struct.unpack_from("<I", sector, end)[0] != crc32(sector[:end]):
        return b""
    return bytes(sector[8 : 8 + length])


def write_trailer(part, size, envelope):
    body = struct.pack("<II", TRAILER_MAGIC, len(envelope)) + envelope
    body += b"\xff" * (-len(body) % 4)
    write(part, size - SECTOR, body + struct.pack("<I", crc32(body)))


def digest(part, size, buffer):
    """Return the SHA-256 of the first `size` bytes, read through `buffer` (one sector)."""
    h = hashlib.sha256()
    for _ in hashed(h, part, size, buffer):
        pass
    return h.digest()


def hashed(h, part, size, buffer):
    """Add the first `size` bytes to the hash `h`; a generator, which yields now and then so that others have their turn."""
    view = memoryview(buffer)
    for offset in range(0, size, SECTOR):
        n = min(SECTOR, size - offset)
        part.readblocks(offset // SECTOR, view[:n], 0)
        h.update(view[:n])
        if offset & 0x7000 == 0x7000:
            yield


class Resume:
    """The transfer under way, in the first sector of dfu_stage: the update command, and one mark for each chunk that is stored."""

    def __init__(self, part):
        self.part = part

    def load(self):
        """Return (command's bytes, number of the first chunk that is not stored), or None."""
        head = read(self.part, 0, 8)
        magic, length = struct.unpack_from("<II", head)
        if magic != RESUME_MAGIC or not 0 < length <= MARKS_AT - 12:
            return None
        record = read(self.part, 0, 12 + length)
        if struct.unpack_from("<I", record, 8 + length)[0] != crc32(record[: 8 + length]):
            return None
        done = 0
        mark = bytearray(1)
        while done < SECTOR - MARKS_AT:
            self.part.readblocks(0, mark, MARKS_AT + done)
            if mark[0]:
                break
            done += 1
        return bytes(record[8:-4]), done

    def begin(self, command):
        self.forget()
        record = struct.pack("<II", RESUME_MAGIC, len(command)) + command
        write(self.part, 0, record + struct.pack("<I", crc32(record)))

    def mark(self, number):
        if number < SECTOR - MARKS_AT:
            write(self.part, MARKS_AT + number, b"\0")

    def forget(self):
        if not blank(self.part, 0, SECTOR):
            erase(self.part, 0)
