"""Whatever bytes come, the decoders raise PeerError or give a value that is written back as the same message."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.errors import PeerError
from dfud.wire.chunk import Chunk, decode_chunk_untrusted, encode_chunk, package_id
from dfud.wire.manifest import decode_envelope_untrusted, decode_manifest_untrusted
from dfud.wire.messages import (
    Command,
    Defer,
    Progress,
    Result,
    Status,
    Type,
    decode_command_untrusted,
    decode_status_untrusted,
    encode_command,
    encode_status,
)
from dfud.wire.subset import decode_untrusted
from dfud.wire.usual import read_status_untrusted, usual_status

DECODERS = [
    read_status_untrusted,
    decode_status_untrusted,
    decode_command_untrusted,
    decode_chunk_untrusted,
    decode_manifest_untrusted,
    decode_envelope_untrusted,
]
uint32 = st.integers(0, (1 << 32) - 1)
text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=16)
statuses = st.builds(
    Status,
    version=text,
    digest=st.binary(min_size=32, max_size=32),
    hardware=st.text("abc-123", min_size=1, max_size=32),
    kinds=st.integers(1, 14),
    payload=st.integers(512, 65536),
    capacity=uint32,
    trial=st.booleans(),
    progress=st.none() | st.builds(Progress, st.binary(min_size=16, max_size=16), uint32, st.integers(0, 1)),
    result=st.none()
    | st.builds(
        Result,
        st.integers(1, 3),
        st.binary(min_size=32, max_size=32),
        st.integers(0, 255),
        text,
        st.integers(0, 255),
        st.integers(0, 255),
        st.binary(max_size=512),
    ),
    defer=st.none() | st.builds(Defer, text, st.integers(0, 1 << 31)),
    attributes=st.dictionaries(text, text, max_size=16),
    sequence=uint32,
)
updates = st.builds(
    Command,
    type=st.just(Type.UPDATE),
    poll_s=st.integers(0, 1 << 31),
    version=text,
    manifest=st.binary(min_size=1, max_size=1024),
    package=st.binary(min_size=16, max_size=16),
    kind=st.integers(1, 31),
    size=st.integers(1, (1 << 32) - 1),
    chunks=st.integers(1, (1 << 32) - 1),
    total_bytes=st.integers(1, (1 << 32) - 1),
    base=st.just(b"") | st.binary(min_size=32, max_size=32),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 64) | st.floats() | st.text(max_size=8) | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.integers(-1, 14) | st.text(max_size=2), inner, max_size=14)
    ),
    max_leaves=20,
)


def packed(value: Any) -> bytes | None:
    try:
        return msgpack.packb(value)  # type: ignore[no-any-return]
    except OverflowError:
        return None


@pytest.mark.parametrize("decode", DECODERS, ids=lambda d: d.__name__)
@given(data=st.binary(max_size=200))
def test_random_bytes_never_raise_anything_but_peer_error(decode: Any, data: bytes) -> None:
    try:
        decode(data)
    except PeerError:
        return


@pytest.mark.parametrize("decode", DECODERS, ids=lambda d: d.__name__)
@given(value=values)
def test_random_msgpack_never_raises_anything_but_peer_error(decode: Any, value: Any) -> None:
    data = packed(value)
    if data is not None:
        try:
            decode(data)
        except PeerError:
            return


@given(status=statuses)
def test_a_status_comes_back_as_it_was(status: Status) -> None:
    assert decode_status_untrusted(encode_status(status)) == status


@given(command=updates)
def test_an_update_command_comes_back_as_it_was(command: Command) -> None:
    assert decode_command_untrusted(encode_command(command)) == command


@given(status=statuses, at=st.integers(0, 4095), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_a_status_or_peer_error(status: Status, at: int, bit: int) -> None:
    data = bytearray(encode_status(status))
    data[at % len(data)] ^= 1 << bit
    try:
        decode_status_untrusted(bytes(data))
    except PeerError:
        return


# A status between updates, of which some fields are anything.
usual = {0: 1, 1: "1.0", 2: bytes(32), 3: "esp32c3", 4: 2, 5: 16384, 6: 1 << 20, 11: {"a": "b"}, 12: 3, 14: 4}
usual[13] = {0: 3, 1: 1, 2: 0, 3: "it said"}
numbers = st.integers(0, 16)
odd: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 1.0, -1, 0, 255, 256, 512, 1 << 32, "", "ä", "x" * 65, b"", bytes(32), [], {}, {0: 1}, {"a": 1}]
) | st.dictionaries(st.sampled_from([0, 1, 2, 3, 0.0, 1.0, True, "a", "ä" * 9]), st.sampled_from([0, 1, "", "x", 2.0]))


@given(
    left_out=st.sets(numbers, max_size=3),
    other=st.dictionaries(numbers | st.sampled_from([0.0, 1.0, 17, -1, "a"]), odd, max_size=2),
    inner=st.dictionaries(st.sampled_from([0, 1, 2, 3, 0.0, 3.0, 4, "a"]), odd, max_size=2),
    tail=st.sampled_from([b"", b"", b"\x00"]),
)
def test_the_short_way_takes_no_status_that_the_long_one_would_not(
    left_out: set[int], other: dict[Any, Any], inner: dict[Any, Any], tail: bytes
) -> None:
    message = {key: value for key, value in usual.items() if key not in left_out}
    for key, value in other.items():
        message.pop(key, None)  # for 1.0 takes the place of 1, and its value only
        message[key] = value
    starts = message.get(13)
    if isinstance(starts, dict):
        starts = {key: value for key, value in starts.items() if key not in inner}
        message[13] = starts | inner
    data = (packed(message) or b"") + tail
    found = usual_status(data)
    if found is not None:
        assert found == decode_status_untrusted(data)


def test_the_short_way_takes_only_what_is_written_in_one_way() -> None:
    data = msgpack.packb(usual)
    assert data[:3] == b"\x8b\x00\x01"
    assert usual_status(data) == decode_status_untrusted(data)
    assert usual_status(b"\x8c\x00\x01" + data[1:]) is None  # a key twice
    assert usual_status(data[:2] + b"\xcc\x01" + data[3:]) is None  # a longer integer
    assert usual_status(b"\xde\x00\x0b" + data[1:]) is None  # a longer map


@given(
    chunk=st.builds(
        Chunk, st.integers(0, 1 << 20), st.integers(0, 1 << 20), st.integers(0, 32), uint32, st.binary(min_size=1)
    )
)
def test_a_chunk_comes_back_as_it_was(chunk: Chunk) -> None:
    assert decode_chunk_untrusted(encode_chunk(chunk)) == chunk


def test_a_long_message_is_refused_before_it_is_read() -> None:
    with pytest.raises(PeerError, match="expected at most 4096"):
        decode_untrusted(b"\xc4" * 5000, limit_bytes=4096)


def test_a_package_is_named_by_its_chunks_in_order() -> None:
    assert package_id([b"a", b"b"]) == package_id([b"ab"]) != package_id([b"b", b"a"])
    assert len(package_id([b"a"])) == 16
