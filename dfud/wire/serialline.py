"""The bridge's side of a serial line to a device: frames, and one question at a time. docs/serial.md.

Pure: bytes in, bytes out; no port, no clock, no server. What comes from the line is bounded before it is kept, and judged before
it is used.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import msgspec

from dfud.errors import PeerError
from dfud.wire.subset import decode_untrusted

END = b"\xc0"
KINDS = (b"A", b"M")  # what a device's frame begins with
FRAME_MAX_BYTES = (
    16384  # of a frame as it stands on the line; a status of 4 KB whose bytes are all escaped is half of it
)
QUESTION_MAX_BYTES = 8000
ANSWER_MAX_BYTES = 256 * 1024
PIECE_MIN, PIECE_MAX = 32, 4096
LOGIN_MAX, WAIT_MAX_S, NUMBER_MAX = 400, 86400, 0xFFFFFFFF
PACKAGE_BYTES = 16


class What(IntEnum):
    """What a device asks for."""

    STATUS = 0
    CHUNK = 1
    ENROL = 2


class Question(msgspec.Struct, frozen=True):
    """What a device asks. login: as HTTP Basic has it, secret included: not to be shown. number: the chunk's, or seconds to wait.

    piece: bytes of the answer that it takes in one frame; room: in all.
    """

    id: bytes
    what: What
    login: str
    message: bytes
    number: int
    piece: int
    room: int

    def __repr__(self) -> str:
        return f"<{self.what.name} of {self.name}>"  # without the secret, wherever it is printed

    @property
    def name(self) -> str:
        """Who asks, without the secret; "" in an enrolment."""
        return self.login.partition(":")[0]


class Answer(msgspec.Struct, frozen=True):
    """status: of HTTP; 504: the bridge has none, and the body says why. That of another error is empty, or Retry-After in digits."""

    status: int
    body: bytes


class Text(msgspec.Struct, frozen=True):
    """Bytes of the line that are no frame: prints, or noise."""

    data: bytes


def framed(data: bytes) -> bytes:
    """Return the frame of RFC 1055 around data and its CRC-32. Ctrl-C is escaped, too: at a board's console it ends the program."""
    data += zlib.crc32(data).to_bytes(4, "big")
    for byte, escaped in ((b"\xdb", b"\xdb\xdd"), (END, b"\xdb\xdc"), (b"\x03", b"\xdb\xde")):
        data = data.replace(byte, escaped)
    return END + data + END


def unframed_untrusted(raw: bytes) -> bytes:
    """Return what stood between two ends without its CRC, b"" if it is no whole frame."""
    for byte, escaped in ((b"\x03", b"\xdb\xde"), (END, b"\xdb\xdc"), (b"\xdb", b"\xdb\xdd")):
        raw = raw.replace(escaped, byte)
    if len(raw) < 9 or zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "big"):
        return b""
    return raw[:-4]


class Frames:
    """Takes a line apart. Holds at most FRAME_MAX_BYTES of it."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | Text]:
        """Yield each whole frame, and what stands between them. An incomplete end is kept."""
        self._rest += data
        while (at := self._rest.find(END)) >= 0:
            raw = bytes(self._rest[:at])
            del self._rest[: at + 1]
            if not raw:
                continue
            frame = unframed_untrusted(raw) if len(raw) <= FRAME_MAX_BYTES else b""
            yield frame or Text(raw)
        # A line of text need not wait for the next frame, where it can be none.
        end = self._rest.rfind(b"\n") + 1 if self._rest[:1] not in KINDS else 0
        if len(self._rest) > FRAME_MAX_BYTES:
            end = len(self._rest)
        if end:
            yield Text(bytes(self._rest[:end]))
            del self._rest[:end]


def question_untrusted(frame: bytes) -> Question:
    """Return what a frame of kind A asks. Raises PeerError."""
    said = decode_untrusted(frame[5:], limit_bytes=QUESTION_MAX_BYTES)
    if type(said) is not dict:
        raise PeerError("a question that is no map")
    kinds: tuple[tuple[type, int, int], ...] = (
        (int, 0, max(What)),
        (str, 0, LOGIN_MAX),
        (bytes, 0, QUESTION_MAX_BYTES),
        (int, 0, NUMBER_MAX),
        (int, PIECE_MIN, PIECE_MAX),
        (int, 1, NUMBER_MAX),
    )
    for key, (kind, low, high) in enumerate(kinds):
        value: Any = said.get(key)
        if type(value) is not kind or not low <= _amount(value) <= high:
            raise PeerError(f"field {key} of a question, expected {kind.__name__} of {low} to {high}")
    what = What(said[0])
    if what is What.CHUNK and len(said[2]) != PACKAGE_BYTES:
        raise PeerError(f"a package of {len(said[2])} bytes, expected {PACKAGE_BYTES}")
    if what is What.STATUS and said[3] > WAIT_MAX_S:
        raise PeerError(f"{said[3]} s to wait, expected at most {WAIT_MAX_S}")
    if any(ord(sign) < 32 for sign in said[1]):
        raise PeerError("a login with control characters")
    return Question(
        id=frame[1:5],
        what=what,
        login=said[1],
        message=said[2],
        number=said[3],
        piece=said[4],
        room=min(said[5], ANSWER_MAX_BYTES),
    )


def _amount(value: Any) -> int:
    return value if isinstance(value, int) else len(value)


class Link:
    """One line: the question that is open, its answer until the next question. The device asks again for whatever got lost."""

    def __init__(self) -> None:
        self.frames = 0  # whole ones of a device
        self._lines = Frames()
        self._asked = b""
        self._question: Question | None = None
        self._answer: Answer | None = None

    def heard(self, data: bytes) -> Iterator[bytes | Question | Text]:
        """Yield what to send, a question to be asked for the device (the one before is over then), and text in between."""
        for found in self._lines.feed(data):
            if isinstance(found, Text):
                yield found
            elif found[:1] == b"A":
                self.frames += 1
                yield from self._ask(found)
            elif found[:1] == b"M" and len(found) == 9:
                self.frames += 1
                yield self._more(found[1:5], int.from_bytes(found[5:], "big"))

    def answered(self, question: Question, answer: Answer) -> bytes:
        """Keep the answer; return its first piece to send, b"" if that question is over."""
        if question is not self._question:
            return b""
        body = answer.body if len(answer.body) <= question.room else b""
        self._answer = Answer(answer.status if len(answer.body) == len(body) else 502, body)
        return self._piece(0)

    @property
    def waits(self) -> bool:
        """Whether a question is open."""
        return self._question is not None and self._answer is None

    def forget(self) -> None:
        """The device is gone; it asks anew."""
        self._asked, self._question, self._answer = b"", None, None

    def _ask(self, frame: bytes) -> Iterator[bytes | Question]:
        if frame == self._asked:  # what it was told got lost
            yield self._more(frame[1:5], 0)
            return
        try:
            question = question_untrusted(frame)
        except PeerError as error:
            self.forget()
            yield _data(frame[1:5], 0, Answer(504, str(error).encode("ascii", "replace")[: PIECE_MIN - 1]), PIECE_MIN)
            return
        self._asked, self._question, self._answer = frame, question, None
        yield framed(b"w" + question.id)
        yield question

    def _more(self, id_: bytes, at: int) -> bytes:
        if self._question is None or self._question.id != id_:
            return framed(b"l" + id_)
        return framed(b"w" + id_) if self._answer is None else self._piece(at)

    def _piece(self, at: int) -> bytes:
        assert self._question is not None and self._answer is not None
        return _data(self._question.id, at, self._answer, self._question.piece)


def _data(id_: bytes, at: int, answer: Answer, piece: int) -> bytes:
    body = answer.body
    head = answer.status.to_bytes(2, "big") + len(body).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big")
    return framed(b"d" + id_ + at.to_bytes(4, "big") + head + body[at : at + piece])
