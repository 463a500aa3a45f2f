"""The serial link, both ends, on a line that loses, doubles, garbles and mixes; the device's end is the module that a board runs."""

from __future__ import annotations

import random
import re
import subprocess
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfud.wire.messages import Code, Kind, Outcome, Result, Status, encode_status
from dfud.wire.serialline import (
    FRAME_MAX_BYTES,
    PIECE_MAX,
    PIECE_MIN,
    Answer,
    Link,
    Question,
    Text,
    What,
    framed,
    unframed_untrusted,
)
from tests.devicefw.serialside import SOURCES, Wire, device
from tests.real_parts import require

__all__ = ["device"]
PAGE = (Path(__file__).parents[2] / "docs" / "serial.md").read_text("utf-8")
PACKAGE = bytes(range(16))
NOISE = st.one_of(
    st.binary(min_size=1, max_size=60),
    st.sampled_from([b"ESP-ROM:esp32c3-api1-20210207\r\n", b"lamp: on\r\n", b"\xc0\xc0\xc0", b"\xdb\xdb", b"A" * 80, b"\xc0M"]),
)
FAULTS = st.lists(
    st.one_of(
        st.none(),
        st.sampled_from(["lost", "twice", "restart"]),
        st.tuples(st.sampled_from(["bit", "cut"]), st.integers(0, 5000)),
        st.tuples(st.sampled_from(["noise", "within"]), NOISE),
    ),
    max_size=40,
)


class Server:
    """Answers each question otherwise each time: what mixes two answers is seen."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self.given: dict[tuple[What, int], list[bytes]] = {}

    def __call__(self, question: Question) -> tuple[int, bytes]:
        body = self._random.randbytes(self._random.choice([0, 1, 63, 64, 65, 700]))
        if self._random.random() < 0.3:
            body = body.replace(b"\x00", b"\xc0").replace(b"\x01", b"\xdb").replace(b"\x02", b"\x03")
        self.given.setdefault((question.what, question.number), []).append(body)
        return 200, body


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=FAULTS, server_ms=st.sampled_from([1, 50, 700, 9000]), seed=st.integers(0, 99))
def test_nothing_is_accepted_that_was_not_sent_and_a_good_line_is_enough(
    device: Any, faults: list[Any], server_ms: int, seed: int
) -> None:
    server = Server(seed)
    wire = Wire(device, list(faults), server, server_ms)
    buffer = bytearray(1024)
    number = 0
    while number < 4 or wire.faults:
        number += 1
        message = bytes([number]) * 90
        if number % 5 == 4:
            wire.start()  # a reset in between: old answers may still be on their way
        left = len(wire.faults)
        try:
            if number % 2:
                n = wire.run(wire.transport.chunk(PACKAGE, number, buffer))
                what = What.CHUNK
            else:
                n = wire.run(wire.transport.status(message, number, buffer))
                what = What.STATUS
        except device.TransportError:
            assert len(wire.faults) < left, "on a good line nothing fails"
            continue
        assert bytes(buffer[:n]) in server.given[(what, number)]
    n = wire.run(wire.transport.chunk(PACKAGE, 1000, buffer))
    assert bytes(buffer[:n]) == server.given[(What.CHUNK, 1000)][-1]
    for question in wire.asked:
        assert question.name == "lamp1@lamps" and question.login.endswith("s" * 22)
        if question.what is What.STATUS:
            assert question.message == bytes([question.number]) * 90, "nothing was asked that the device did not ask"
        else:
            assert question.message == PACKAGE


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(min_size=5, max_size=80), st.lists(st.sampled_from(b"\xc0\xdb\x03\xdc\xdd\xdeA"), min_size=5).map(bytes)))
def test_both_ends_frame_alike_and_take_no_frame_with_a_wrong_bit(device: Any, data: bytes) -> None:
    raw = framed(data)
    assert raw == device.framed(data)
    assert b"\xc0" not in raw[1:-1] and b"\x03" not in raw, "Ctrl-C would end the program at the console"
    assert device.unframed(raw[1:-1]) == unframed_untrusted(raw[1:-1]) == data
    for bit in range(8, 8 * len(raw) - 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        assert device.unframed(bytes(changed[1:-1])) == unframed_untrusted(bytes(changed[1:-1])) == b""


def test_a_long_poll_is_kept_open_and_answered_late(device: Any) -> None:
    wire = Wire(device, [], lambda question: (202, b""), server_ms=58_000)
    before = device.clock.now_ms
    assert wire.run(wire.transport.status(b"status", 60, bytearray(100))) == 0
    assert 58_000 <= device.clock.now_ms - before < 59_000, "the answer comes by itself"
    assert len(wire.asked) == 1


@pytest.mark.parametrize(
    ("status", "error"), [(403, "Denied"), (404, "TransportError"), (429, "TransportError"), (504, "TransportError")]
)
def test_what_the_server_says_no_to_is_told_as_over_other_transports(device: Any, status: int, error: str) -> None:
    wire = Wire(device, [], lambda question: (status, b"connection refused"))
    with pytest.raises(getattr(device, error)) as caught:
        wire.run(wire.transport.status(b"status", 0, bytearray(100)))
    assert ("connection refused" in str(caught.value)) is (status == 504)
    if status == 404:
        with pytest.raises(device.Gone):
            wire.run(wire.transport.chunk(PACKAGE, 0, bytearray(100)))


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [(503, b"17", 17), (429, b"3600", 3600), (503, b"", 0), (503, b"1234567", 0), (503, b"s", 0), (504, b"17", 0), (200, b"17", 0)],
)
def test_it_keeps_to_how_long_the_server_wants_to_be_left_alone(device: Any, status: int, body: bytes, expected: int) -> None:
    answers = [(503, b"99"), (status, body), (status, body), (202, b"")]
    wire = Wire(device, [], lambda question: answers.pop(0))
    buffer, seen = bytearray(100), []
    status_again = ("status", b"s", 0, buffer)
    for ask, *said in (("enrol", b"e", buffer), ("chunk", PACKAGE, 0, buffer), status_again, status_again):
        with suppress(device.TransportError):
            wire.run(getattr(wire.transport, ask)(*said))
        seen.append(wire.transport.retry_s)
    assert seen == [99, expected, expected, 0]


def test_without_a_bridge_it_gives_up_in_seconds_and_names_it(device: Any) -> None:
    wire = Wire(device, [], Server())
    wire.dead = True
    before = device.clock.now_ms
    with pytest.raises(device.TransportError, match="no dfuctl bridge"):
        wire.run(wire.transport.status(b"status", 60, bytearray(100)))
    assert device.clock.now_ms - before < 30_000


def test_an_answer_larger_than_the_buffer_is_refused_and_nothing_is_written_beyond(device: Any) -> None:
    wire = Wire(device, [], lambda question: (200, bytes(101)))
    buffer = bytearray(100)
    with pytest.raises(device.TransportError, match="502"):
        wire.run(wire.transport.chunk(PACKAGE, 0, buffer))
    assert buffer == bytearray(100)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.lists(st.one_of(st.binary(max_size=300), st.tuples(st.sampled_from([b"w", b"l", b"d"]), st.binary(max_size=200)))))
def test_a_hostile_bridge_costs_the_device_an_answer_and_no_more(device: Any, said: list[Any]) -> None:
    """Frames with right CRCs and the right number, whatever else they say: no exception but its own, no byte outside the buffer."""
    wire = Wire(device, [], Server())
    wire.dead = True
    buffer = bytearray(64)
    own = (int.from_bytes(wire.transport.id.to_bytes(4, "big"), "big") + 1 & 0xFFFFFFFF).to_bytes(4, "big")
    for part in said:
        data = part if isinstance(part, bytes) else device.framed(part[0] + own + part[1])
        wire._to_device.append((device.clock.now_ms, data))
    try:
        n = wire.run(wire.transport.chunk(PACKAGE, 0, buffer))
        assert 0 <= n <= 64
    except device.TransportError:
        pass
    assert len(buffer) == 64
    assert len(wire.transport.left) <= 2 * 64 + 64 + 256


CONSOLE = """
import asyncio
from dfu.serial import SerialTransport, framed, unframed
import dfu.serial

async def main():
    transport = SerialTransport({"line": "console", "app": "lamps", "device": "lamp1", "secret": "s" * 22})
    buffer = bytearray(200)
    print("lamp: on")
    n = await transport.chunk(bytes(16), 3, buffer)
    print("lamp:", n, bytes(buffer[:n]) == bytes(range(150)))

asyncio.run(main())
"""


def test_the_console_is_a_line_on_micropython_and_prints_go_beside_the_frames() -> None:
    command = [require("micropython"), "-c", f"import sys\nsys.path.insert(0, {str(SOURCES.parent)!r})\n" + CONSOLE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        link, printed, asked = Link(), b"", []
        while data := process.stdout.read(4096):
            for found in link.heard(data):
                if isinstance(found, Text):
                    printed += found.data
                elif isinstance(found, Question):
                    asked.append(found)
                    process.stdin.write(b"\xc0 noise \xc0" + link.answered(found, Answer(200, bytes(range(150)))))
                else:
                    process.stdin.write(found)
        printed += bytes(link._lines._rest)
    assert printed == b"lamp: on\nlamp: 150 True\n"
    assert [(question.piece, question.number, question.name) for question in asked] == [(96, 3, "lamp1@lamps")]


def test_the_page_has_the_numbers_of_both_ends(device: Any) -> None:
    flat = " ".join(PAGE.split())
    times = [min(device.ANSWER_MS << n, device.ANSWER_LONGEST_MS) / 1000 for n in range(device.TRIES - 1)]
    assert "after " + ", ".join(f"{time:g}" for time in times[:-1]) + f" and {times[-1]:g} s, then gives up" in flat
    assert f"then every {device.ALIVE_MS // 1000} s whether the bridge is there" in flat
    assert f"| `piece` | {device.PIECE}; console: {device.CONSOLE_PIECE} | bytes of an answer in one frame, " in flat
    assert f"in one frame, {PIECE_MIN} to {PIECE_MAX}. Less" in flat
    assert f"longer than {FRAME_MAX_BYTES} bytes as it stands on the line is none" in flat
    assert device.ROOM >= 2 * device.PIECE + 64 and 2 * (device.CONSOLE_PIECE + 23) + 2 <= 260, "escaped whole, a piece fits"
    for key in ("line", "piece", "baudrate", "timeout_s"):
        assert f"| `{key}` |" in PAGE and f'config.get("{key}"' in (SOURCES / "serial.py").read_text()


def test_a_megabyte_takes_as_long_as_the_page_says(device: Any) -> None:
    """Of the device's own time nothing is counted: what asking piece by piece adds to the bytes."""
    body = random.Random(1).randbytes(4096)
    wire = Wire(device, [], lambda question: (200, body), 5, baud=115200, piece=512)
    before = device.clock.now_ms
    for number in range(8):
        assert wire.run(wire.transport.chunk(PACKAGE, number, bytearray(4200))) == 4096
    seconds = (device.clock.now_ms - before) / 1000 * 2**20 / (8 * 4096)
    said = re.search(r"A megabyte takes about (\d+) s at 115200 baud", PAGE)
    assert said is not None and abs(seconds - int(said[1])) < 10, seconds


@pytest.mark.parametrize("baud", [1200, 9600, 115200, 921600])
def test_at_no_rate_a_piece_is_asked_for_before_it_can_have_come(device: Any, baud: int) -> None:
    body = random.Random(1).randbytes(2048)
    wire = Wire(device, [], lambda question: (200, body), 5, baud=baud, piece=512)
    assert wire.run(wire.transport.chunk(PACKAGE, 0, bytearray(4200))) == 2048
    assert wire.carried < 2048 * 1.1 + 4 * 40, "each piece came once"


def test_pieces_of_two_answers_make_none(device: Any) -> None:
    wire = Wire(device, [], Server())
    wire.dead = True
    own = (wire.transport.id + 1 & 0xFFFFFFFF).to_bytes(4, "big")
    for at, body in ((0, b"a" * 80), (40, b"b" * 80)):
        head = own + at.to_bytes(4, "big") + (200).to_bytes(2, "big") + len(body).to_bytes(4, "big")
        data = device.framed(b"d" + head + zlib.crc32(body).to_bytes(4, "big") + body[at : at + 40])
        wire._to_device.append((device.clock.now_ms, data))
    with pytest.raises(device.TransportError, match="no dfuctl bridge"):
        wire.run(wire.transport.chunk(PACKAGE, 0, bytearray(80)))


def test_a_status_of_any_size_that_agents_make_goes_through(device: Any) -> None:
    attributes = {f"{i:064}": "x" * 64 for i in range(16)}
    result = Result(Outcome.FAILED, bytes(32), Code.INTERNAL, "x" * 1024, record=b"\xc0" * 512)
    message = encode_status(
        Status(
            version="1.0",
            digest=bytes(32),
            hardware="esp32c3",
            kinds=1 << Kind.FULL,
            payload=6144,
            capacity=1 << 20,
            attributes=attributes,
            result=result,
        )
    )
    assert len(message) > 3600
    wire = Wire(device, [], lambda question: (200, question.message[:50]))
    buffer = bytearray(64)
    assert wire.run(wire.transport.status(message, 0, buffer)) == 50
    assert bytes(buffer[:50]) == message[:50]


@pytest.mark.parametrize(
    ("config", "said"), [({}, "line is missing"), ({"line": 7}, "line is missing"), ({"piece": 7}, "piece 7: expected 32 to 4096")]
)
def test_a_wrong_configuration_is_named(device: Any, config: dict[str, Any], said: str) -> None:
    line = Wire(device, [], Server()).transport.line
    with pytest.raises(ValueError, match=said):
        device.SerialTransport({"app": "a", "device": "d", "secret": "s", **({"line": line} if "piece" in config else {}), **config})
