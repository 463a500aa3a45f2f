"""The boot stage, as bootloader/FORMAT.md has it, in Python: stands behind the interface of the real one."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import Protocol

import msgspec

from devicefw.sim.flash import SECTOR_BYTES, partition
from dfud.errors import PeerError
from dfud.model.espimage import parse_esp_image_untrusted
from dfud.wire.manifest import Manifest, decode_envelope_untrusted, verify

WATCHDOG_RESETS = frozenset({0x7, 0x8, 0x9, 0xB, 0xD, 0x10, 0x12})
SOFTWARE_RESETS = frozenset({0x3, 0xC})
MAX_CRASHES = 3
NO_IMAGE, BAD_IMAGE, BAD_HASH, BAD_SIGNATURE, TOO_OLD = 1, 6, 3, 4, 5


class Flash(Protocol):
    size: int

    def read(self, offset: int, size: int) -> bytes: ...
    def program(self, offset: int, data: bytes) -> None: ...
    def erase(self, offset: int) -> None: ...


class BootResult(msgspec.Struct, frozen=True):
    slot: int | None
    entry: int
    console: str
    wdt_armed: bool
    recovery: bool


class _State(msgspec.Struct):
    slot: int = 0
    phase: int = 0
    crashes: int = 0
    max_crashes: int = 0
    previous: int = 0
    outcome: int = 0
    reset: int = 0
    writer: int = 0
    floor: int = 0
    accept: int = 0
    tried: int = 0

    def pack(self) -> bytes:
        return struct.pack("<8BIII", *(getattr(self, f) for f in self.__struct_fields__))


class _Log:
    def __init__(self, flash: Flash, label: str, magic: int, size: int) -> None:
        self.flash, self.magic, self.size = flash, magic, size
        self.offset, self.length = partition(label)

    def _blank(self, offset: int, size: int) -> bool:
        return self.flash.read(self.offset + offset, size) == b"\xff" * size

    def newest(self) -> tuple[int, int, bytes] | None:
        best = None
        for at in range(0, self.length, self.size):
            record = self.flash.read(self.offset + at, self.size)
            magic, seq = struct.unpack_from("<II", record)
            if magic == self.magic and struct.unpack_from("<I", record, self.size - 4)[0] == zlib.crc32(record[:-4]):
                if best is None or seq > best[0]:
                    best = (seq, at, record)
        return best

    def append(self, body: bytes) -> None:
        best = self.newest()
        at = (best[1] // SECTOR_BYTES * SECTOR_BYTES) if best else 0
        for _ in range(self.length // SECTOR_BYTES + 1):
            free = next(
                (
                    place + self.size
                    for place in range(at + SECTOR_BYTES - self.size, at - 1, -self.size)
                    if not self._blank(place, self.size)
                ),
                at,
            )
            if free < at + SECTOR_BYTES:
                break
            at = (at + SECTOR_BYTES) % self.length
            if not self._blank(at, SECTOR_BYTES):
                self.flash.erase(self.offset + at)
        record = struct.pack("<II", self.magic, best[0] + 1 if best else 1) + body
        self.flash.program(self.offset + free, record + struct.pack("<I", zlib.crc32(record)))


class Bootloader:
    """`elf` is for the real one; the model needs none."""

    def __init__(self, elf: Path | None = None) -> None:
        self._console: list[str] = []

    def boot(self, flash: Flash, *, reset_reason: int, store: list[int], sram: bytes | None = None) -> BootResult:
        """Boot once; exceptions of the flash propagate."""
        self._console = []
        log = _Log(flash, "dfu_state", 0x53554644, 32)
        found = log.newest()
        state = _State(*struct.unpack_from("<8BIII", found[2], 8)) if found else _State()
        state.writer = 1
        mark, panic = store[0], store[6]
        store[0] = 0 if mark >> 16 == 0xDF0C else mark
        if found is None:
            return self._unreadable(flash, log, state)
        cause = self._crash(reset_reason, mark, panic)
        if cause is not None:
            self._count(flash, log, state, reset_reason, cause)
        for _ in range(2):
            problem = self._judge(flash, state.slot, state.floor)
            if isinstance(problem, int):
                self._record(flash, 3, state.slot, state.crashes, 0, problem, None)
                self._say(f"slot {state.slot} refused: {problem}")
                other = self._judge(flash, 1 - state.slot, state.floor)
                if isinstance(other, int):
                    return BootResult(None, 0, "".join(self._console), False, True)
                state.tried = self._tried(flash, state.slot)
                state.slot, state.phase, state.crashes, state.previous = 1 - state.slot, 0, 0, 0
                state.outcome = problem if problem != NO_IMAGE else 6
                log.append(state.pack())
                continue
            self._say(f"boot slot {state.slot}{' on trial' if state.phase == 1 else ''}")
            return BootResult(state.slot, problem[1], "".join(self._console), True, False)
        return BootResult(None, 0, "".join(self._console), False, True)

    def _say(self, line: str) -> None:
        self._console.append(f"dfud boot: {line}\n")

    def _unreadable(self, flash: Flash, log: _Log, state: _State) -> BootResult:
        """No record: boot the newest slot that verifies, and record it."""
        judged = [(slot, self._judge(flash, slot, 0)) for slot in (0, 1)]
        good = [(slot, j) for slot, j in judged if not isinstance(j, int)]
        if not good:
            return BootResult(None, 0, "".join(self._console), False, True)
        slot, (sequence, entry) = max(good, key=lambda g: (g[1][0], -g[0]))
        state.slot, state.previous, state.accept = slot, int(len(good) == 2), sequence
        state.outcome = 8 if log.flash.read(log.offset, log.length) != b"\xff" * log.length else 0
        log.append(state.pack())
        self._say(f"boot slot {slot}, {'the state was unreadable' if state.outcome else 'the first start'}")
        return BootResult(slot, entry, "".join(self._console), True, False)

    def _crash(self, reason: int, mark: int, panic: int) -> int | None:
        if reason in WATCHDOG_RESETS:
            return 0
        if reason in SOFTWARE_RESETS:
            if mark >> 16 == 0xDF0C:
                return mark
            if panic in (0x80040004, 0x80050005, 0x80060006):
                return panic
        return None

    def _count(self, flash: Flash, log: _Log, state: _State, reason: int, cause: int) -> None:
        state.crashes += 1
        state.reset = reason
        manifest = self._manifest(flash, state.slot)
        self._record(flash, 1, state.slot, state.crashes, reason, cause, manifest)
        self._say(f"slot {state.slot} crashed {state.crashes} times")
        if state.crashes >= (state.max_crashes or MAX_CRASHES) and not isinstance(
            self._judge(flash, 1 - state.slot, state.floor), int
        ):
            state.tried = self._tried(flash, state.slot)
            state.slot, state.phase, state.crashes, state.previous = 1 - state.slot, 0, 0, 0
            state.outcome = 10 if cause == 0xDF0C0002 else 2
            self._say(f"back to slot {state.slot}")
        log.append(state.pack())

    def _tried(self, flash: Flash, slot: int) -> int:
        manifest = self._manifest(flash, slot)
        return int.from_bytes(manifest.sha256[:4], "little") if manifest else 0

    def _record(
        self, flash: Flash, kind: int, slot: int, crashes: int, reset: int, cause: int, manifest: Manifest | None
    ) -> None:
        head = struct.pack(
            "<BBBBII32s",
            kind,
            slot,
            crashes,
            reset,
            cause,
            manifest.sequence if manifest else 0,
            manifest.version.encode()[:32] if manifest else b"",
        )
        _Log(flash, "dfu_diag", 0x44554644, 512).append(head.ljust(500, b"\0"))

    def _envelope(self, flash: Flash, slot: int) -> bytes:
        offset, size = partition(f"ota_{slot}")
        sector = flash.read(offset + size - SECTOR_BYTES, 1040)
        magic, length = struct.unpack_from("<II", sector)
        if magic != 0x54554644 or not 0 < length <= 1024:
            return b""
        end = 8 + (length + 3 & ~3)
        return sector[8 : 8 + length] if struct.unpack_from("<I", sector, end)[0] == zlib.crc32(sector[:end]) else b""

    def _manifest(self, flash: Flash, slot: int) -> Manifest | None:
        try:
            return decode_envelope_untrusted(self._envelope(flash, slot))[1]
        except PeerError:
            return None

    def _keys(self, flash: Flash) -> list[bytes] | None:
        log = _Log(flash, "dfu_keys", 0x4B554644, 256)
        found = log.newest()
        if found is None:
            return [] if flash.read(log.offset, log.length) == b"\xff" * log.length else None
        record = found[2]
        revoked = {record[144 + 8 * i : 152 + 8 * i] for i in range(record[10])}
        keys = [record[16 + 32 * i : 48 + 32 * i] for i in range(record[8])]
        return [k for k in keys if hashlib.sha256(k).digest()[:8] not in revoked]

    def _judge(self, flash: Flash, slot: int, floor: int) -> int | tuple[int, int]:
        """Return (sequence, entry) of an image that may be booted, or why it may not."""
        offset, size = partition(f"ota_{slot}")
        data = flash.read(offset, size - SECTOR_BYTES)
        if data[:1] != b"\xe9":
            return NO_IMAGE
        keys = self._keys(flash)
        envelope = self._envelope(flash, slot)
        if keys is None or (keys and not envelope):
            return BAD_SIGNATURE
        length = _length(data)
        sequence = 0
        if envelope:
            try:
                decoded, manifest = decode_envelope_untrusted(envelope)
                if keys:
                    verify(decoded, keys)
            except PeerError:
                return BAD_SIGNATURE
            if manifest.sequence < floor:
                return TOO_OLD
            sequence, length = manifest.sequence, manifest.size
            if hashlib.sha256(data[:length]).digest() != manifest.sha256:
                return BAD_HASH
        try:
            image = parse_esp_image_untrusted(io.BytesIO(data[:length]), length)
        except PeerError:
            return BAD_IMAGE
        return sequence, image.entry


def _length(data: bytes) -> int:
    at = 24
    for _ in range(min(data[1], 16)):
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    return (at + 16 & ~15) + (32 if data[23] else 0)
