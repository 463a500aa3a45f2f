"""A chip in download mode at the other end of a pty: esptool's serial protocol, by its documentation, of the ROM and of the flasher.

It keeps the flash it was given, and erases what the protocol erases, so a test compares bytes. Source: esptool, "Serial Protocol".
"""

from __future__ import annotations

import hashlib
import os
import pty
import select
import struct
import threading
import tty
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

C3, S3 = 5, 9  # chip ids of GET_SECURITY_INFO
FLASH_BEGIN, FLASH_DATA, FLASH_END, MEM_BEGIN, MEM_END, MEM_DATA, SYNC, WRITE_REG, READ_REG = range(2, 11)
SPI_SET_PARAMS, SPI_ATTACH, CHANGE_BAUDRATE = 0x0B, 0x0D, 0x0F
FLASH_DEFL_BEGIN, FLASH_DEFL_DATA, FLASH_DEFL_END, SPI_FLASH_MD5, GET_SECURITY_INFO = range(0x10, 0x15)
ERASE_FLASH, READ_FLASH = 0xD0, 0xD2
ROM_SAYS = 0x20120707  # the value of the ROM's answer to SYNC; the flasher's is 0
SPI_CMD, SPI_USR2, SPI_W0 = 0x60002000, 0x60002020, 0x60002058
READ_ID, READ_SFDP = 0x9F, 0x5A
SECTOR = 4096


class Chip:
    """silent_at, pulled_at: blocks until it goes silent, or the cable is pulled; flips: the byte that its flash does not keep.

    stopped_at: so many blocks, or being asked at all if it is mute, set `reached`; it waits for `going` then.
    """

    def __init__(
        self,
        *,
        chip: int = C3,
        flash_bytes: int = 4 << 20,
        flash_identity: int | None = None,
        silent_at: int | None = None,
        pulled_at: int | None = None,
        flips: int | None = None,
        stopped_at: int | None = None,
        mute: bool = False,
    ) -> None:
        self.chip, self.flash = chip, bytearray(os.urandom(SECTOR)) * (flash_bytes // SECTOR)
        self.flash[0x9000:0xD000] = b"\xff" * 0x4000
        # JEDEC id of a Winbond chip: its size is a power of two
        self.identity = (flash_bytes.bit_length() - 1) << 16 | 0x40EF if flash_identity is None else flash_identity
        self.silent_at, self.pulled_at, self.flips, self.mute = silent_at, pulled_at, flips, mute
        self.stopped_at, self.reached, self.going = stopped_at, threading.Event(), threading.Event()
        self.counted: Counter[int] = Counter()
        self.stub = False
        self.registers: dict[int, int] = {}
        self.port = ""
        self._at = 0
        self._unpack: zlib._Decompress | None = None
        self._memory = 0

    @contextmanager
    def plugged_in(self) -> Iterator[str]:
        """Run it; yields the name of its port."""
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self._stop, stopped = os.pipe()
        self._open = True
        self.port = os.ttyname(self._slave)
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield self.port
        finally:
            os.close(stopped)
            thread.join(30)
            self._pull()
            os.close(self._stop)
        assert not thread.is_alive()

    def _pull(self) -> None:
        if self._open:
            self._open = False
            os.close(self._slave)
            os.close(self._master)

    def _run(self) -> None:
        for frame in self._frames():
            if self.mute:
                self.reached.set()
            if self.mute or len(frame) < 8:
                continue
            direction, operation, size, checksum = struct.unpack_from("<BBHI", frame)
            assert (direction, size) == (0, len(frame) - 8)
            self.counted[operation] += 1
            blocks = self.counted[FLASH_DEFL_DATA]
            if self.pulled_at is not None and blocks > self.pulled_at:
                self._pull()
                return
            if self.stopped_at is not None and blocks > self.stopped_at:
                self.reached.set()
                self.going.wait(60)
            if self.silent_at is None or blocks <= self.silent_at:
                self._serve(operation, frame[8:], checksum)

    def _frames(self) -> Iterator[bytes]:
        waiting = b""
        while self._open:
            ready, _, _ = select.select([self._master, self._stop], [], [])
            if self._stop in ready:
                return
            *frames, waiting = (waiting + os.read(self._master, 65536)).split(b"\xc0")
            for frame in frames:
                if frame:
                    yield frame.replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb")

    def _send(self, frame: bytes) -> None:
        data = b"\xc0" + frame.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0"
        while data:
            data = data[os.write(self._master, data) :]

    def _answer(self, operation: int, value: int = 0, data: bytes = b"", error: int = 0) -> None:
        status = bytes([1 if error else 0, error]) + (b"" if self.stub else bytes(2))
        self._send(struct.pack("<BBHI", 1, operation, len(data) + len(status), value) + data + status)

    def _serve(self, operation: int, data: bytes, checksum: int) -> None:
        words = struct.unpack_from(f"<{len(data) // 4}I", data)
        if operation == SYNC:
            for _ in range(8):
                self._answer(SYNC, 0 if self.stub else ROM_SAYS)
        elif operation == READ_REG:
            self._answer(operation, self._register(words[0]))
        elif operation == WRITE_REG:
            for at in range(0, len(words), 4):
                self.registers[words[at]] = words[at + 1]
            self._answer(operation)
        elif operation == GET_SECURITY_INFO:
            self._answer(operation, 0, struct.pack("<IB7BII", 0, 0, *[0] * 7, self.chip, 0))
        elif operation in (SPI_SET_PARAMS, SPI_ATTACH, CHANGE_BAUDRATE, MEM_BEGIN, FLASH_END, FLASH_DEFL_END):
            self._memory = words[0] if operation == MEM_BEGIN else self._memory
            self._answer(operation)
        elif operation == MEM_DATA:
            self._memory -= words[0]
            self._answer(operation, error=0 if _checksum(data[16:]) == checksum else 7)
        elif operation == MEM_END:
            assert self._memory == 0 and words[1], "the whole flasher came, and where it starts"
            self._answer(operation)
            self.stub = True
            self._send(b"OHAI")
        else:
            self._serve_flash(operation, data, words, checksum)

    def _serve_flash(self, operation: int, data: bytes, words: tuple[int, ...], checksum: int) -> None:
        if operation in (FLASH_BEGIN, FLASH_DEFL_BEGIN):
            size, _, _, self._at = words[:4]
            self.erase(self._at, size)
            self._unpack = zlib.decompressobj() if operation == FLASH_DEFL_BEGIN else None
            self._answer(operation)
        elif operation in (FLASH_DATA, FLASH_DEFL_DATA):
            block = data[16:]
            if len(block) != words[0] or _checksum(block) != checksum:
                self._answer(operation, error=7)
                return
            self._program(self._unpack.decompress(block) if self._unpack else block)
            self._answer(operation)
        elif operation == SPI_FLASH_MD5:
            digest = hashlib.md5(self.flash[words[0] : words[0] + words[1]], usedforsecurity=False)
            self._answer(operation, 0, digest.digest() if self.stub else digest.hexdigest().encode())
        elif operation == ERASE_FLASH and self.stub:
            self.erase(0, len(self.flash))
            self._answer(operation)
        elif operation == READ_FLASH and self.stub:
            self._read(*words[:3])
        else:
            self._answer(operation, error=5)

    def erase(self, at: int, size: int) -> None:
        first, end = at // SECTOR * SECTOR, -(-(at + size) // SECTOR) * SECTOR
        assert end <= len(self.flash)
        self.flash[first:end] = b"\xff" * (end - first)

    def _program(self, data: bytes) -> None:
        assert self._at + len(data) <= len(self.flash)
        old = int.from_bytes(self.flash[self._at : self._at + len(data)], "little")  # flash only clears bits
        new = (old & int.from_bytes(data, "little")).to_bytes(len(data), "little")
        self.flash[self._at : self._at + len(data)] = new
        if self.flips is not None and self._at <= self.flips < self._at + len(data):
            self.flash[self.flips] ^= 1
        self._at += len(data)

    def _read(self, at: int, size: int, block: int) -> None:
        self._answer(READ_FLASH)
        content = bytes(self.flash[at : at + size])
        for start in range(0, size, block):
            self._send(content[start : start + block])
        self._send(hashlib.md5(content, usedforsecurity=False).digest())

    def _register(self, address: int) -> int:
        if address == SPI_CMD:
            return 0  # done
        if address == SPI_W0:
            command = self.registers.get(SPI_USR2, 0) & 0xFF
            return {READ_ID: self.identity, READ_SFDP: 0x50444653}.get(command, 0)
        return self.registers.get(address, 0)


def _checksum(data: bytes) -> int:
    state = 0xEF
    for byte in data:
        state ^= byte
    return state
