"""What a request asks for: CoAP options to dfud.api values, and back. Pure; docs/coap.md is the same in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from dfud.api import Chunks, Credentials, Reply, Request, chunk_range_untrusted, timeout_untrusted
from dfud.api import Code as Outcome
from dfud_coap.block import Block, BlockError, read_block_untrusted
from dfud_coap.message import Code, Option, Options, encode_tail, uint

PARAMETERS_MAX = 32
AUTHORIZATION_MAX_BYTES = 3072
TEXT_MAX_BYTES = 128
CHUNK_MAX_AGE_S = 31536000
_CHUNK_MAX_AGE = uint(CHUNK_MAX_AGE_S)
OCTETS = 42
# IANA, "CoAP Content-Formats"
FORMATS = {
    0: "text/plain",
    40: "application/link-format",
    41: "application/xml",
    OCTETS: "application/octet-stream",
    47: "application/exi",
    50: "application/json",
    60: "application/cbor",
    110: "application/senml+json",
    112: "application/senml+cbor",
}
NUMBERS = {name: number for number, name in FORMATS.items()}
CODES = {
    Outcome.COMMAND: Code.CONTENT,
    Outcome.ACCEPTED: Code.CHANGED,
    Outcome.MALFORMED: Code.BAD_REQUEST,
    Outcome.DENIED: Code.FORBIDDEN,
    Outcome.NOT_FOUND: Code.NOT_FOUND,
    Outcome.NOT_ACCEPTABLE: Code.NOT_ACCEPTABLE,
    Outcome.TOO_LARGE: Code.TOO_LARGE,
    Outcome.TOO_MANY: Code.TOO_MANY,
    Outcome.FAILED: Code.FAILED,
    Outcome.AWAY: Code.UNAVAILABLE,
}
# Plain numbers: a look-up by IntEnum costs several times as much.
_URI_PATH, _URI_QUERY = int(Option.URI_PATH), int(Option.URI_QUERY)
_PROXY = frozenset({int(Option.PROXY_URI), int(Option.PROXY_SCHEME)})
# Critical options that are understood here, with the longest value each may have; longer is as good as unknown (RFC 7252, 5.4.3).
_CRITICAL = {
    int(option): size_max
    for option, size_max in (
        (Option.URI_HOST, 255),
        (Option.URI_PORT, 2),
        (Option.URI_PATH, 255),
        (Option.URI_QUERY, 1024),
        (Option.ACCEPT, 2),
        (Option.BLOCK1, 3),
        (Option.BLOCK2, 3),
        (Option.OSCORE, 255),
        (Option.AUTHORIZATION, AUTHORIZATION_MAX_BYTES),
    )
}
_REPEATABLE = frozenset({int(Option.URI_PATH), int(Option.URI_QUERY)})
# What does not tell one body from another (RFC 7959, 2.4; RFC 8132, 2.1 for the payload).
_NOT_OF_THE_BODY = frozenset(
    {Option.OBSERVE, Option.BLOCK1, Option.BLOCK2, Option.SIZE1, Option.SIZE2, Option.ECHO, Option.ETAG}
)


class Answer(msgspec.Struct):
    code: int
    options: Options = []
    payload: bytes = b""

    def tail(self) -> bytes:
        return encode_tail(self.options, self.payload)


class Fault(Exception):
    """The request cannot be acted upon; `answer` says why."""

    def __init__(self, code: Code, text: str = "", options: Options | None = None) -> None:
        super().__init__(text)
        self.answer = Answer(code, options or [], text.encode()[:TEXT_MAX_BYTES])


class CoapRequest(msgspec.Struct):
    """Either a publish (`request`; observe 0 or 1 with FETCH, -1: not at all), or the chunks first..last of `package`.

    reply, answer_code, tail and again belong to whoever answers: the last reply and its bytes, for the next time, and what
    quick_again() of the endpoint gave. tag: the ETag of the one chunk that was asked for, if it is known already.
    """

    code: int
    credentials: Credentials
    options: Options
    request: Request | None = None
    package: str = ""
    first: int = 0
    last: int = 0
    block1: Block | None = None
    block2: Block | None = None
    observe: int = -1
    etags: tuple[bytes, ...] = ()
    echo: bytes | None = None
    simple: bool = True
    reply: Reply | None = None
    answer_code: int = 0
    tail: bytes = b""
    again: Callable[[], Reply | None] | None = None
    tag: bytes = b""

    def body_key(self) -> tuple[Any, ...]:
        """Return what all blocks of one body have in common, within one peer."""
        return (self.code, *(o for o in self.options if o[0] not in _NOT_OF_THE_BODY))


class Fetching:
    """A fetch of chunks by a peer whose next request will be the same but for the block, or for chunk and block: recognised by its
    bytes.

    front: what its answers begin with, if one chunk was asked for that the peer has nothing of. again: what chunk_again() of the
    endpoint gave.
    """

    __slots__ = (
        "_after",
        "_at",
        "_before",
        "_between",
        "_delta",
        "_others",
        "_package",
        "_place",
        "again",
        "asked",
        "front",
    )

    def __init__(
        self, asked: CoapRequest, place: int, package: bytes, between: bytes, delta: int, after: bytes
    ) -> None:
        """package, between: the options before the chunk's number, and behind it up to Block2; after: those behind that, and the
        payload. place: the chunk's number among asked.options. delta: of Block2."""
        self.asked, self._place = asked, place
        self._package, self._between, self._delta, self._after = package, between, delta, after
        number = asked.options[place][1]
        self._before = b"%b%c%b%b" % (package, len(number), number, between)
        self._at = len(self._before)
        self._others = self._at + 1 + len(after)  # bytes of such a request but for the value of Block2
        self.again: Callable[[int, float], bytes | None] | None = None
        self.front = b""
        if asked.first == asked.last:
            asked.tag = etag(Chunks(asked.package, asked.first, [b""]))
            if not asked.etags:
                self.front = chunk_tail(asked.tag, None, None, b"")

    @classmethod
    def of(cls, asked: CoapRequest, tail: bytes) -> Fetching | None:
        """Return what to recognise later requests by; None if this one is written in an unusual way, or without Block2."""
        options = asked.options
        at = next((n for n, option in enumerate(options) if option[0] == Option.BLOCK2), None)
        if at is None or asked.echo is not None or asked.block1 is not None:
            return None
        place = max(n for n, option in enumerate(options) if option[0] == Option.URI_PATH)
        package = encode_tail(options[:place])
        before = encode_tail(options[:at])
        between = before[len(package) + 1 + len(options[place][1]) :]
        value = options[at][1]
        delta = Option.BLOCK2 - (options[at - 1][0] if at else 0)
        option = bytes((delta << 4 | len(value),)) + value
        if delta > 12 or len(options[place][1]) > 12 or not tail.startswith(before + option):
            return None
        return cls(asked, place, package, between, delta, tail[len(before) + len(option) :])

    def block_untrusted(self, data: bytes, at: int = 0) -> int:
        """Return the value of Block2 of the request that the bytes from `at` on are, or -1: it is another one."""
        size = len(data) - at - self._others
        if not 0 <= size <= 3 or not data.startswith(self._before, at) or not data.endswith(self._after):
            return -1
        at += self._at
        if data[at] != self._delta << 4 | size:
            return -1
        value = data[at + 1] if size == 1 else int.from_bytes(data[at + 1 : at + 1 + size], "big")
        return value if value & 7 != 7 else -1

    def following_untrusted(self, tail: bytes) -> Fetching | None:
        """Return the fetch of another chunk of the package if these bytes are that, and otherwise the same."""
        at = len(self._package)
        if not self.front or not tail.startswith(self._package) or not len(tail) > at or not 0 < tail[at] <= 10:
            return None
        number = tail[at + 1 : at + 1 + tail[at]]
        if not number.isdigit():
            return None
        asked = self.asked
        chunks = chunk_range_untrusted(asked.package, number.decode())
        if chunks is None or chunks[0] != chunks[1]:
            return None
        options = [*asked.options]
        options[self._place] = (_URI_PATH, number)
        following = CoapRequest(
            asked.code,
            asked.credentials,
            options,
            package=asked.package,
            first=chunks[0],
            last=chunks[1],
            simple=False,
        )
        found = Fetching(following, self._place, self._package, self._between, self._delta, self._after)
        found.again = self.again
        return found if found.block_untrusted(tail) >= 0 else None

    def next(self, value: int) -> CoapRequest:
        """Return the request for that block."""
        asked = self.asked
        return CoapRequest(
            asked.code,
            asked.credentials,
            asked.options,
            package=asked.package,
            first=asked.first,
            last=asked.last,
            block2=Block(value >> 4, bool(value & 8), value & 7),
            etags=asked.etags,
            simple=False,
            tag=asked.tag,
        )

    def answer(self, head: bytes, value: int, szx_max: int, body: bytes) -> bytes:
        """Return `head`, options and payload of the answer with that block, as cut() and chunk_tail() have it; b"": there is none."""
        szx = value & 7
        start = (value >> 4) << szx + 4
        if szx > szx_max:
            szx = szx_max
        end, size = start + (16 << szx), len(body)
        if start >= size:
            return b""
        number = start >> szx + 4 << 4 | (8 if end < size else 0) | szx
        if start and number < 256:  # nearly all
            return b"%b%b\x91%c\xff%b" % (head, self.front, number, body[start:end])
        option = uint(number)
        told = b"" if start else _size_option(size)
        return b"%b%b%c%b%b\xff%b" % (head, self.front, 0x90 | len(option), option, told, body[start:end])


def read_request_untrusted(
    code: int, options: Options, payload: bytes, *, peer: str, certificate: bytes, identity: str, encrypted: bool
) -> CoapRequest:
    """Read a request; raises Fault and nothing else."""
    once = _check_options(options)
    path, query = _path_and_query(options)
    credentials = Credentials(
        authorization=b"" if identity else once.get(Option.AUTHORIZATION, b""),
        certificate=certificate,
        identity=identity,
        application=query.get("application", ""),
        device=query.get("device", ""),
    )
    asked = CoapRequest(code, credentials, options, echo=once.get(Option.ECHO))
    try:
        if (value := once.get(Option.BLOCK1)) is not None:
            asked.block1 = read_block_untrusted(value)
        if (value := once.get(Option.BLOCK2)) is not None:
            asked.block2 = read_block_untrusted(value)
    except BlockError as error:
        raise Fault(error.code, str(error)) from None
    _find_resource(asked, path)
    content_type = FORMATS.get(_small(once, Option.CONTENT_FORMAT, -1), "")
    if _small(once, Option.ACCEPT, OCTETS) not in (OCTETS, _small(once, Option.CONTENT_FORMAT, -1)):
        raise Fault(Code.NOT_ACCEPTABLE, "expected Accept 42")
    if code == Code.GET:
        asked.etags = tuple(value for number, value in options if number == Option.ETAG)
        asked.simple = False  # a device asks for a block once: remembering it would only push out the polls
        return asked
    if code == Code.FETCH:
        asked.observe = _small(once, Option.OBSERVE, -1)
        if asked.observe not in (-1, 0, 1):
            raise Fault(Code.BAD_REQUEST, "Observe: expected 0 or 1")
    timeout_s = timeout_untrusted(query)
    if timeout_s is None:
        raise Fault(Code.BAD_REQUEST, "ct: expected a number of seconds")
    asked.request = Request(
        transport="coap",
        peer=peer,
        credentials=credentials,
        channel=path[1],
        body=payload,
        content_type=content_type,
        timeout_s=0.0 if code == Code.FETCH else timeout_s,
        as_device=query.get("as", ""),
        data_schema=query.get("data_schema", ""),
        topic="/".join(path[2:]),
        encrypted=encrypted,
    )
    asked.simple = asked.block1 is None and asked.observe < 0 and asked.echo is None and asked.block2 is None
    return asked


def _check_options(options: Options) -> dict[int, bytes]:
    """Return the first value of each option; raise Fault for a critical one that cannot be obeyed."""
    once: dict[int, bytes] = {}
    for number, value in options:
        if number & 1:
            if number in _PROXY:
                raise Fault(Code.NO_PROXYING)
            size_max = _CRITICAL.get(number)
            if size_max is None:
                raise Fault(Code.BAD_OPTION, f"option {number} is not known")
            if len(value) > size_max:
                raise Fault(Code.BAD_OPTION, f"option {number} has {len(value)} bytes, expected at most {size_max}")
            if number in once and number not in _REPEATABLE:
                raise Fault(Code.BAD_OPTION, f"option {number} is there twice")
        once.setdefault(number, value)
    return once


def _path_and_query(options: Options) -> tuple[list[str], dict[str, str]]:
    path: list[str] = []
    query: dict[str, str] = {}
    try:
        for number, value in options:
            if number == _URI_PATH:
                path.append(value.decode())
            elif number == _URI_QUERY:
                text = value.decode()
                if "&" in text:
                    for name, meant in parse_qsl(
                        text, keep_blank_values=True, max_num_fields=PARAMETERS_MAX, errors="strict"
                    ):
                        query.setdefault(name, meant)
                else:
                    name, _, meant = text.partition("=")
                    query.setdefault(name, meant)
    except ValueError:
        raise Fault(Code.BAD_REQUEST, "Uri-Path or Uri-Query: expected UTF-8") from None
    return path, query


def _find_resource(asked: CoapRequest, path: list[str]) -> None:
    """Check path and method; fill in the chunks of a GET."""
    if len(path) < 2 or path[0] != "v1" or not path[1]:
        raise Fault(Code.NOT_FOUND, "no such path")
    if asked.code == Code.GET and path[1] == "dfu" and len(path) == 4:
        chunks = chunk_range_untrusted(path[2], path[3])
        if chunks is None:
            raise Fault(Code.NOT_FOUND, "no such chunk")
        asked.package, (asked.first, asked.last) = path[2], chunks
    elif not (asked.code == Code.POST or (asked.code == Code.FETCH and path[1:] == ["dfu"])):
        raise Fault(Code.METHOD_NOT_ALLOWED)


def _small(once: dict[int, bytes], number: int, absent: int) -> int:
    """Return the value of an unsigned option of up to 3 bytes; a longer one counts as absent."""
    value = once.get(number)
    return int.from_bytes(value, "big") if value is not None and len(value) <= 3 else absent


def answer_reply(reply: Reply, *, fetch: bool = False) -> Answer:
    """Write a reply of the endpoint. `fetch`: FETCH has no 2.04; nothing new is an empty 2.05."""
    code = CODES[reply.code]
    options: Options = []
    if reply.code is Outcome.COMMAND:
        options.append((Option.COMMAND, reply.command.encode("utf-8", "replace")))
        if (number := NUMBERS.get(reply.content_type)) is not None:
            options.append((Option.CONTENT_FORMAT, uint(number)))
        return Answer(code, options, reply.body)
    if reply.code is Outcome.ACCEPTED:
        return Answer(Code.CONTENT if fetch else code)
    if reply.retry_after_s:
        options.append((Option.MAX_AGE, uint(min(reply.retry_after_s, 0xFFFFFFFF))))
    return Answer(code, options, (reply.message or reply.error).encode("utf-8", "replace")[:TEXT_MAX_BYTES])


def chunk_tail(tag: bytes, block: Block | None, size: int | None, part: bytes) -> bytes:
    """Return options and payload of an answer with (a block of) a chunk. size: of the whole, if it is to be told.

    What encode_tail would write, for the answer that is sent more often than all others.
    """
    out = b"\x48%b\xa4%b" % (tag, _CHUNK_MAX_AGE)
    number = 14
    if block is not None:
        value = block.value()
        out += b"%c%b" % (0x90 | len(value), value)
        number = 23
    if size is not None:
        value = uint(size)
        delta = 28 - number
        out += (b"%c%b" if delta < 13 else b"%c\x01%b") % (min(delta, 13) << 4 | len(value), value)
    return b"%b\xff%b" % (out, part) if part else out


def _size_option(size: int) -> bytes:
    """Return Size2 behind Block2."""
    value = uint(size)
    return b"%c%b" % ((Option.SIZE2 - Option.BLOCK2) << 4 | len(value), value)


def etag(chunks: Chunks) -> bytes:
    """Return 8 bytes that name these chunks: see docs/coap.md."""
    place = chunks.first << 12 | min(len(chunks.bodies) - 1, 0xFFF)
    return bytes.fromhex(chunks.package[:8]) + (place & 0xFFFFFFFF).to_bytes(4, "big")
