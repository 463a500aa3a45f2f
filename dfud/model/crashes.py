"""A crash reduced to what is the same on every device that has it: neither addresses nor line numbers nor values. Pure.

Of a traceback: the exception's type and the innermost functions with their files. Of a record of registers (bootloader/FORMAT.md,
"Diagnostics"): the cause, and in which memory the program counter and the return address were. Of other text: its last line.
"""

from __future__ import annotations

import hashlib
import re
import struct

import msgspec

FRAMES = 4  # innermost; a device sends the end of a long traceback
TITLE_MAX = 160
MAGIC, TYPE_CRASH, TYPE_TEXT = 0x44554644, 1, 2
_FRAME = re.compile(r'File "([^"\n]{1,200})", line \d+(?:, in ([^\s]{1,100}))?')
_RAISED = re.compile(r"^([A-Za-z_][\w.]{0,80})(?::\s*(.*))?$")
_HEX = re.compile(r"\b0x[0-9a-fA-F]+\b|\b[0-9a-fA-F]{6,}\b")
_NUMBER = re.compile(r"\d+")
_QUOTED = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")
# mcause of RISC-V (The RISC-V Instruction Set Manual, volume II, table "machine cause register").
_CAUSES = {
    0: "instruction address misaligned",
    1: "instruction access fault",
    2: "illegal instruction",
    3: "breakpoint",
    4: "load address misaligned",
    5: "load access fault",
    6: "store address misaligned",
    7: "store access fault",
    8: "environment call",
    11: "environment call",
}
# ESP32-C3 Technical Reference Manual, chapter "System and Memory": first address, address behind the last one.
_MEMORY = (
    (0x3C000000, 0x3C800000, "flash data"),
    (0x3FC80000, 0x3FCE0000, "RAM"),
    (0x40000000, 0x40060000, "ROM"),
    (0x4037C000, 0x403E0000, "RAM code"),
    (0x42000000, 0x42800000, "flash code"),
    (0x50000000, 0x50002000, "RTC RAM"),
)


class Crash(msgspec.Struct, frozen=True):
    """fingerprint: twelve hexadecimal digits, equal for crashes of one kind; title: the same for people."""

    fingerprint: str
    title: str


def crash_of(text: str, record: bytes = b"", reset: int = 0) -> Crash:
    """Return which crash this is; never raises.

    text: what the device said; record: as it sent it; reset: why the chip started anew.
    """
    kind, more = _fields(record)
    title = _of_text(text or more)
    if not title and kind == TYPE_CRASH:
        title = _of_registers(record)
    title = (title or f"reset {reset} without a word")[:TITLE_MAX]
    return Crash(hashlib.sha256(title.encode("utf-8", "replace")).hexdigest()[:12], title)


def _fields(record: bytes) -> tuple[int, str]:
    """Return type and text of a record, (0, "") if it is none."""
    if len(record) < 512 or int.from_bytes(record[:4], "little") != MAGIC:
        return 0, ""
    begin = 52 if record[8] == TYPE_TEXT else 316
    return record[8], record[begin:504].rstrip(b"\0").decode("utf-8", "replace")


def _of_text(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    frames = [f"{_file(name)}:{function or '?'}" for name, function in _FRAME.findall(text)][-FRAMES:]
    last = next((line for line in reversed(lines) if not _FRAME.search(line)), lines[-1])
    if not frames:
        return _plain(last)
    raised = _RAISED.match(last)
    what = raised[1] if raised else _plain(last)
    if raised and what == "OSError" and raised[2]:
        what += f": {raised[2][:40]}"  # its number says what happened, and is the same everywhere
    return f"{what} in {' < '.join(reversed(frames))}"


def _file(name: str) -> str:
    """Return a file's name without its directory, and compiled or not."""
    return name.replace("\\", "/").rpartition("/")[2].removesuffix(".mpy").removesuffix(".py")


def _plain(line: str) -> str:
    """Return a line without what differs from one device to the next."""
    return _NUMBER.sub("N", _HEX.sub("H", _QUOTED.sub("'...'", line)))[:80]


def _of_registers(record: bytes) -> str:
    words = struct.unpack_from("<34I", record, 52)
    if not any(words):
        cause = int.from_bytes(record[12:16], "little")
        return f"crash without registers, cause {cause:#010x}" if cause == 0xDF0C0002 else ""
    cause, pc, ra = words[32], words[0], words[1]
    why = _CAUSES.get(cause, f"cause {cause:#x}") if cause < 1 << 31 else "interrupt"
    return f"{why} in {_memory(pc)}, called from {_memory(ra)}"


def _memory(address: int) -> str:
    return next(
        (name for first, end, name in _MEMORY if first <= address < end), "no memory" if address else "address 0"
    )
