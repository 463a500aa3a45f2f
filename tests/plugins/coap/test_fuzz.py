"""Bytes from outside: every decoder raises its one error, and the server takes anything and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aiocoap import oscore as aio
from dfud_coap.block import Block, BlockError, cut, read_block_untrusted
from dfud_coap.message import (
    Code,
    Message,
    MessageError,
    decode_tail_untrusted,
    decode_untrusted,
    encode,
    encode_tail,
    only_option_untrusted,
    uint,
)
from dfud_coap.oscore import Context, Header, OscoreError, read_option_untrusted
from dfud_coap.translate import CoapRequest, Fault, Fetching, chunk_tail, read_request_untrusted
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins.coap.oscoredevice import Device
from tests.plugins.coap.test_limits import AUTH, post
from tests.plugins.coap.virtual import Virtual
from tests.plugins.coap.world import KEY, PACKAGE

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "coap.json").read_text())
GOOD = [bytes.fromhex(v["hex"]) for v in VECTORS["messages"]] + [
    bytes.fromhex(step["in"]) for e in VECTORS["exchanges"] for step in e["steps"] if "in" in step
]
OPTIONS = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from([1, 3, 4, 6, 9, 11, 12, 14, 15, 17, 23, 27, 28, 35, 60, 252, 292, 4209, 4210]),
            st.integers(0, 65535),
        ),
        st.one_of(st.binary(max_size=20), st.sampled_from([b"v1", b"dfu", b"ct=5", b"a=b&c=%ff", b"\xff", b"x" * 300])),
    ),
    max_size=12,
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good datagram with a few bytes changed, cut off, or put in."""
    data = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["change", "insert", "cut"]))
        if how == "change" and data:
            data[at] = draw(st.integers(0, 255))
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=4))
        else:
            del data[at:]
    return bytes(data)


ANYTHING = st.one_of(st.binary(max_size=200), mutated())


@given(ANYTHING)
def test_a_datagram_is_a_message_or_a_message_error(data: bytes) -> None:
    try:
        message = decode_untrusted(data)
    except MessageError as found:
        error = found
    else:
        assert decode_untrusted(encode(message)) == message
        return
    assert error.message_id is None or error.message_id == data[2] << 8 | data[3]


@given(
    st.integers(0, 3),
    st.integers(1, 255),
    st.integers(0, 65535),
    st.binary(max_size=8),
    OPTIONS,
    st.binary(max_size=50),
)
def test_what_is_written_is_read_again(
    kind: int, code: int, message_id: int, token: bytes, options: list[tuple[int, bytes]], payload: bytes
) -> None:
    message = Message(kind, code, message_id, token, sorted(options, key=lambda o: o[0]), payload)
    assert decode_untrusted(encode(message)) == message
    assert decode_tail_untrusted(encode_tail(options, payload)) == (message.options, payload)


@given(st.binary(max_size=5))
def test_a_block_option_is_a_block_or_a_block_error(value: bytes) -> None:
    try:
        block = read_block_untrusted(value)
    except BlockError:
        return
    assert read_block_untrusted(block.value()) == block and isinstance(block, Block)


@given(st.integers(1, 31), OPTIONS, st.binary(max_size=50))
def test_a_request_is_read_or_has_a_fault(code: int, options: list[tuple[int, bytes]], payload: bytes) -> None:
    try:
        ask = read_request_untrusted(
            code, sorted(options, key=lambda o: o[0]), payload, peer="p", certificate=b"", identity="", encrypted=False
        )
    except Fault as found:
        fault = found
    else:
        assert (ask.request is None) is (code == Code.GET)
        return
    assert fault.answer.code >= 0x80


@given(st.one_of(st.binary(max_size=40), st.binary(max_size=30).map(lambda b: b"\x19\0" + bytes([len(b)]) + b + b"\1")))
def test_an_oscore_option_is_a_header_or_an_oscore_error(value: bytes) -> None:
    try:
        header = read_option_untrusted(value)
    except OscoreError:
        return
    assert 1 <= len(header.partial_iv) <= 5 and header.id_context[8:].decode() == header.identity


@given(st.binary(max_size=100), st.binary(max_size=40), st.sampled_from([2, 5]), st.booleans())
def test_a_protected_request_with_wrong_bytes_is_an_oscore_error(
    payload: bytes, option: bytes, code: int, observe: bool
) -> None:
    context = Context(Header(b"\0", b"\1" * 8 + b"dev1@app1", "dev1@app1"), KEY, 0)
    for value in (option, b"\x19\0\x11" + context.id_context + b"\1"):
        with pytest.raises(OscoreError):
            context.unprotect_untrusted(code, value, payload, observe)


@settings(max_examples=300)
@given(
    st.lists(st.one_of(ANYTHING, OPTIONS.map(lambda o: encode(Message(0, 2, 9, b"", o, b"x")))), max_size=12),
    st.booleans(),
)
def test_the_server_takes_anything_and_still_serves(datagrams: list[bytes], plain: bool) -> None:
    w = Virtual(plain=plain, errors_per_address=1000)
    for data in datagrams:
        for sent in w.take(data):
            assert decode_untrusted(sent).code != Code.FAILED
    w.until(400)
    if plain:
        (answer,) = w.take(post(0xABCD, AUTH, token=b"last"))
        assert decode_untrusted(answer).code == Code.CONTENT
    else:
        Device().greet(w)


@settings(max_examples=120)
@given(st.one_of(st.binary(max_size=80), OPTIONS.map(lambda o: encode_tail(o, b"x"))), st.integers(0, 255))
def test_whatever_a_device_protects_is_answered_or_refused(inner: bytes, code: int) -> None:
    """The bytes inside come from a device that has its key, and may be as wrong."""
    w, d = Virtual(plain=False), Device()
    d.greet(w)
    context = w.server.securing.contexts.get(d.id_context)
    assert context is not None
    nonce = d._construct_nonce(b"\x09", b"\1", d.alg_aead)
    request_id = type("R", (), {"request_hash": None, "kid": b"\1", "partial_iv": b"\x09"})()
    aad = aio.SymmetricEncryptionAlgorithm._build_encrypt0_structure(
        {}, d._extract_external_aad(None, request_id, True)
    )
    sealed = d.alg_aead.encrypt(bytes([code]) + inner, aad, d.sender_key, nonce)
    option = b"\x19\x09" + bytes([len(d.id_context)]) + d.id_context + b"\1"
    sent = w.take(encode(Message(0, Code.POST, 777, b"", [(9, option)], sealed)))
    assert len(sent) <= 1 and all(decode_untrusted(data).code != Code.FAILED for data in sent)
    d.sender_sequence_number = 50
    assert len(w.take(d.request(778))) == 1 and w.endpoint.requests


def _get(*options: tuple[int, bytes]) -> bytes:
    path = [(11, b"v1"), (11, b"dfu"), (11, PACKAGE.encode()), (11, b"7")]
    return encode_tail([*path, *options, AUTH])


def _read(tail: bytes) -> CoapRequest | None:
    try:
        options, payload = decode_tail_untrusted(tail)
        return read_request_untrusted(1, options, payload, peer="p", certificate=b"", identity="", encrypted=False)
    except (MessageError, Fault):
        return None


@given(
    st.sampled_from([(), ((4, b"12345678"),), ((3, b"host"), (15, b"a=1"))]),
    st.binary(max_size=3),
    st.one_of(st.binary(max_size=4).map(lambda v: _get((23, v))), st.binary(max_size=120), st.none()),
    st.binary(max_size=3),
    st.integers(0, 200),
)
def test_a_request_that_is_recognised_by_its_bytes_is_read_as_it_would_be(
    more: tuple[tuple[int, bytes], ...], first: bytes, other: bytes | None, second: bytes, at: int
) -> None:
    ask = _read(_get(*more, (23, first)))
    fetching = Fetching.of(ask, _get(*more, (23, first))) if ask is not None else None
    assert (fetching is None) is (ask is None)
    if fetching is None:
        return
    tail = other if other is not None else _get(*more, (23, second))
    for data in (tail, tail[:at] + b"\x17" + tail[at:], tail[:at]):
        found = _next(fetching, data)
        if found is not None:
            full = _read(data)
            assert full is not None
            for name in (
                "code",
                "credentials",
                "request",
                "package",
                "first",
                "last",
                "block1",
                "block2",
                "etags",
                "echo",
            ):
                assert getattr(found, name) == getattr(full, name), name
    again = _next(fetching, _get(*more, (23, second)))
    assert again is None if _read(_get(*more, (23, second))) is None else again is not None


def _next(fetching: Fetching, data: bytes) -> CoapRequest | None:
    value = fetching.block_untrusted(data)
    if value < 0:
        following = fetching.following_untrusted(data)
        return following.next(following.block_untrusted(data)) if following is not None else None
    return fetching.next(value)


@given(st.integers(0, 40), st.booleans(), st.integers(0, 6), st.integers(0, 6), st.integers(0, 5000))
def test_the_short_way_to_a_block_sends_the_same(number: int, more: bool, szx: int, szx_max: int, size: int) -> None:
    body = bytes(n & 0xFF for n in range(size))
    asked = Block(number, more, szx)
    ask = _read(_get((23, asked.value())))
    fetching = Fetching.of(ask, _get((23, asked.value()))) if ask is not None else None
    assert fetching is not None and fetching.front
    sent = fetching.answer(b"head", fetching.block_untrusted(_get((23, asked.value()))), szx_max, body)
    try:
        part, block = cut(body, asked, szx_max)
    except BlockError:
        assert not sent
        return
    assert block is not None
    whole = size if block.number == 0 else None
    assert sent == (b"head" + chunk_tail(fetching.asked.tag, block, whole, part) if part else b"")


@given(
    st.one_of(st.none(), st.builds(Block, st.integers(0, (1 << 20) - 1), st.booleans(), st.integers(0, 6))),
    st.one_of(st.none(), st.integers(1, 1 << 24)),
    st.binary(max_size=20),
)
def test_the_short_way_to_write_a_chunk_writes_the_same(block: Block | None, size: int | None, part: bytes) -> None:
    options = [(4, b"12345678"), (14, (31536000).to_bytes(4, "big"))]
    if block is not None:
        options.append((23, block.value()))
    if size is not None:
        options.append((28, uint(size)))
    assert chunk_tail(b"12345678", block, size, part) == encode_tail(options, part)


@given(
    st.one_of(
        st.binary(max_size=40),
        st.builds(
            lambda options, payload: encode_tail(options, payload),
            st.lists(st.tuples(st.sampled_from([3, 6, 9, 11, 21]), st.binary(max_size=300)), max_size=2),
            st.binary(max_size=20),
        ),
    ),
    st.integers(0, 8),
)
def test_a_message_with_one_option_is_read_as_any_other(tail: bytes, at: int) -> None:
    data = bytes(at) + tail
    found = only_option_untrusted(data, at, 9)
    if found is not None:
        assert decode_tail_untrusted(data, at) == ([(9, found[0])], found[1])
    else:
        try:
            options, payload = decode_tail_untrusted(data, at)
        except MessageError:
            return
        assert [number for number, _ in options] != [9] or not payload or len(options[0][1]) > 268
