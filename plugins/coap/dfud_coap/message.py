"""The CoAP message as bytes: RFC 7252, section 3. Pure; knows numbers of options and nothing of their meaning."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

import msgspec

CON, NON, ACK, RST = range(4)
TOKEN_MAX_BYTES = 8
DATAGRAM_MAX_BYTES = 1536


class MessageError(Exception):
    """The datagram is no CoAP message. message_id: to reset it by, or None: it cannot even be read that far."""

    def __init__(self, text: str, message_id: int | None = None) -> None:
        super().__init__(text)
        self.message_id = message_id


class Code(IntEnum):
    """c.dd as c << 5 | dd. RFC 7252 12.1, RFC 7959, RFC 8132, RFC 8516."""

    EMPTY = 0x00
    GET = 0x01
    POST = 0x02
    PUT = 0x03
    DELETE = 0x04
    FETCH = 0x05
    PATCH = 0x06
    IPATCH = 0x07
    CREATED = 0x41
    DELETED = 0x42
    VALID = 0x43
    CHANGED = 0x44
    CONTENT = 0x45
    CONTINUE = 0x5F
    BAD_REQUEST = 0x80
    UNAUTHORIZED = 0x81
    BAD_OPTION = 0x82
    FORBIDDEN = 0x83
    NOT_FOUND = 0x84
    METHOD_NOT_ALLOWED = 0x85
    NOT_ACCEPTABLE = 0x86
    INCOMPLETE = 0x88
    TOO_LARGE = 0x8D
    UNSUPPORTED_FORMAT = 0x8F
    TOO_MANY = 0x9D
    FAILED = 0xA0
    UNAVAILABLE = 0xA3
    NO_PROXYING = 0xA5


class Option(IntEnum):
    """RFC 7252, 7641, 7959, 8613, 9175; the two above 4000 are Drogue's."""

    IF_MATCH = 1
    URI_HOST = 3
    ETAG = 4
    IF_NONE_MATCH = 5
    OBSERVE = 6
    URI_PORT = 7
    OSCORE = 9
    URI_PATH = 11
    CONTENT_FORMAT = 12
    MAX_AGE = 14
    URI_QUERY = 15
    ACCEPT = 17
    BLOCK2 = 23
    BLOCK1 = 27
    SIZE2 = 28
    PROXY_URI = 35
    PROXY_SCHEME = 39
    SIZE1 = 60
    ECHO = 252
    REQUEST_TAG = 292
    AUTHORIZATION = 4209
    COMMAND = 4210


Options = list[tuple[int, bytes]]


class Message(msgspec.Struct):
    """options: (number, value) in ascending order of numbers."""

    type: int
    code: int
    message_id: int
    token: bytes = b""
    options: Options = []
    payload: bytes = b""

    def all(self, number: int) -> list[bytes]:
        return [value for found, value in self.options if found == number]

    def first(self, number: int) -> bytes | None:
        for found, value in self.options:
            if found == number:
                return value
        return None


def decode_untrusted(data: bytes) -> Message:
    """Read one datagram; raises MessageError and nothing else."""
    if len(data) < 4 or data[0] >> 6 != 1:
        raise MessageError("not CoAP version 1")
    message_id = data[2] << 8 | data[3]
    length = data[0] & 15
    kind = data[0] >> 4 & 3
    if length > TOKEN_MAX_BYTES or len(data) < 4 + length:
        raise MessageError(f"a token of {length} bytes in {len(data)}", message_id)
    if data[1] == 0:
        if len(data) != 4:
            raise MessageError("an empty message with content", message_id)
        return Message(kind, 0, message_id)
    try:
        options, payload = decode_tail_untrusted(data, 4 + length)
    except MessageError as error:
        raise MessageError(str(error), message_id) from None
    return Message(kind, data[1], message_id, data[4 : 4 + length], options, payload)


def decode_tail_untrusted(data: bytes, at: int = 0) -> tuple[Options, bytes]:
    """Read options and payload, which go from `at` to the end. Raises MessageError without a message_id."""
    number, end = 0, len(data)
    options: Options = []
    try:
        while at < end:
            head = data[at]
            at += 1
            if head == 0xFF:
                if at == end:
                    raise MessageError("a payload marker without a payload")
                return options, data[at:]
            delta, size = head >> 4, head & 15
            if delta > 12:
                if delta == 13:
                    delta = data[at] + 13
                    at += 1
                elif delta == 14:
                    delta = (data[at] << 8 | data[at + 1]) + 269
                    at += 2
                else:
                    raise MessageError("an option delta of 15")
            if size > 12:
                if size == 13:
                    size = data[at] + 13
                    at += 1
                elif size == 14:
                    size = (data[at] << 8 | data[at + 1]) + 269
                    at += 2
                else:
                    raise MessageError("an option length of 15")
            number += delta
            value = data[at : at + size]
            at += size
            if at > end or number > 65535:
                raise MessageError(f"option {number} of {size} bytes goes beyond the end")
            options.append((number, value))
    except IndexError:
        raise MessageError("an option that is cut off") from None
    return options, b""


def only_option_untrusted(data: bytes, at: int, number: int) -> tuple[bytes, bytes] | None:
    """Return option and payload of a message that has this option (below 13), no other, and a payload; None: read it the long way."""
    if at + 1 >= len(data) or data[at] >> 4 != number:
        return None
    size, at = data[at] & 15, at + 1
    if size > 12:
        if size > 13:
            return None
        size, at = data[at] + 13, at + 1
    end = at + size
    if end + 1 >= len(data) or data[end] != 0xFF:
        return None
    return data[at:end], data[end + 1 :]


def _extended(value: int) -> tuple[int, bytes]:
    if value < 13:
        return value, b""
    if value < 269:
        return 13, bytes((value - 13,))
    return 14, (value - 269).to_bytes(2, "big")


def encode_tail(options: Iterable[tuple[int, bytes]], payload: bytes = b"") -> bytes:
    """Write options, which are put in order (those of one number keep theirs), and the payload."""
    out = bytearray()
    last = 0
    for number, value in sorted(options, key=_number):
        delta, size = number - last, len(value)
        if delta < 13 and size < 13:
            out.append(delta << 4 | size)
        else:
            delta, more = _extended(delta)
            size, long = _extended(size)
            out.append(delta << 4 | size)
            out += more
            out += long
        out += value
        last = number
    if payload:
        out.append(0xFF)
        out += payload
    return bytes(out)


def _number(option: tuple[int, bytes]) -> int:
    return option[0]


_HEAD = struct.Struct(">BBH")


def encode(message: Message) -> bytes:
    return head(message.type, message.code, message.message_id, message.token) + encode_tail(
        message.options, message.payload
    )


def head(kind: int, code: int, message_id: int, token: bytes = b"") -> bytes:
    """Write what comes before the options; alone, with code 0, an empty message."""
    return _HEAD.pack(0x40 | kind << 4 | len(token), code, message_id) + token


_ACKS = tuple(bytes((0x60 | length, code)) for length in range(TOKEN_MAX_BYTES + 1) for code in range(256))


def ack(code: int, data: bytes, at: int) -> bytes:
    """As head(), for a piggybacked answer to a request whose bytes before its options are data[:at]."""
    return _ACKS[at - 4 << 8 | code] + data[2:at]


def uint(value: int) -> bytes:
    """Return the shortest form of an unsigned option value; nothing at all for 0."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
