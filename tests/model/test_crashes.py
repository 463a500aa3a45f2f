"""One kind of crash has one fingerprint, on every device and in every build; two kinds have two."""

from __future__ import annotations

import random
import struct

from dfud.model.crashes import crash_of

TRACE = """Traceback (most recent call last):
  File "main.py", line {a}, in <module>
  File "app/lamp.py", line {b}, in loop
  File "app/sensor.py", line {c}, in read
{last}
"""


def trace(a: int = 3, b: int = 40, c: int = 7, last: str = "ValueError: 17 is no temperature") -> str:
    return TRACE.format(a=a, b=b, c=c, last=last)


def record(pc: int, ra: int, cause: int, *, kind: int = 1, text: str = "", mark: int = 0x80040004) -> bytes:
    head = struct.pack("<IIBBBBII32s", 0x44554644, 5, kind, 0, 3, 12, mark, 9, b"1.1")
    frame = struct.pack("<34I", pc, ra, *range(30), cause, 0)
    body = head + frame + bytes(128) + text.encode().ljust(188, b"\0")
    return body.ljust(512, b"\0")


def test_lines_values_and_directories_do_not_count() -> None:
    first = crash_of(trace())
    assert first.title == "ValueError in sensor:read < lamp:loop < main:<module>"
    for other in (
        trace(a=30, b=4000, c=1),
        trace(last="ValueError: -3 is no temperature"),
        trace().replace("app/sensor.py", "/flash/lib/sensor.mpy"),
        trace().replace("\n", "\r\n"),
    ):
        assert crash_of(other) == first


def test_the_type_and_the_functions_count() -> None:
    kinds = {
        crash_of(text).fingerprint
        for text in (
            trace(),
            trace(last="TypeError: 17 is no temperature"),
            trace().replace("in read", "in write"),
            trace(last="OSError: [Errno 113] EHOSTUNREACH"),
            trace(last="OSError: [Errno 116] ETIMEDOUT"),
        )
    }
    assert len(kinds) == 5


def test_a_long_traceback_is_known_by_its_end_for_that_is_what_a_device_sends() -> None:
    frames = "".join(f'  File "f{n}.py", line {n}, in g{n}\n' for n in range(30))
    whole = f"Traceback (most recent call last):\n{frames}KeyError: 5\n"
    assert crash_of(whole) == crash_of(whole[-300:])


def test_registers_are_known_by_their_cause_and_memories_not_by_their_addresses() -> None:
    first = crash_of("", record(0x42001234, 0x4200AAAA, 5))
    assert first.title == "load access fault in flash code, called from flash code"
    assert crash_of("", record(0x42007770, 0x42000000, 5)) == first
    assert crash_of("", record(0x42007770, 0x42000000, 7)) != first
    assert crash_of("", record(0x40380000, 0x42000000, 5)) != first
    assert "address 0" in crash_of("", record(0, 0, 1)).title
    assert crash_of("", record(1, 2, 3, text="assert failed: heap.c:217")).title == "assert failed: heap.c:N"
    assert crash_of("boom", record(1, 2, 3)).title == "boom"


def test_text_without_a_traceback_is_known_without_its_numbers() -> None:
    assert crash_of("panic at 0x3fc94410 after 17 s") == crash_of("panic at 0x3fc80000 after 4711 s")
    assert crash_of("line one\nassert 'a' failed") == crash_of("another\nassert 'bcd' failed")


def test_who_says_nothing_is_known_by_its_reset() -> None:
    assert crash_of("", b"", 7).title == "reset 7 without a word"
    assert crash_of("", b"", 7) != crash_of("", b"", 8)


def test_nothing_that_a_device_sends_is_an_error() -> None:
    rng = random.Random(19)
    for _ in range(2000):
        text = "".join(chr(rng.choice((10, 32, 34, 39, 0x41, 0xD800, 0x202E, 0x1F600))) for _ in range(rng.randrange(40)))
        found = crash_of(text, rng.randbytes(rng.choice((0, 5, 512))), rng.randrange(256))
        assert len(found.fingerprint) == 12 and len(found.title) <= 160
    magic = struct.pack("<I", 0x44554644)
    for _ in range(500):
        crash_of("", magic + rng.randbytes(508))
