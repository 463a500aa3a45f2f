"""A stored document that cannot be read costs itself, whatever is wrong with it."""

from __future__ import annotations

import msgspec
import pytest

from dfud.api import PeerError, decode_untrusted, faults, read_record


class Kept(msgspec.Struct):
    name: str
    more: object = None


GOOD = b'{"name": "a", "more": [1]}'
DEEP = b'{"name": "a", "more": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
SKIPPED = b'{"name": "a", "from later": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"


def test_what_can_be_read_is_a_value() -> None:
    before = faults().get("test.record", 0)
    assert read_record("test.record", GOOD, Kept) == Kept("a", [1])
    assert read_record("test.record", msgspec.msgpack.encode(Kept("b")), Kept, decode=msgspec.msgpack.decode) == Kept("b")
    assert faults().get("test.record", 0) == before
    assert decode_untrusted("it", GOOD, Kept) == Kept("a", [1])


@pytest.mark.parametrize("stored", [b"", b"{", b"\xc1", b'{"name": 1}', b'{"name": "\xff"}', b"[]", DEEP, SKIPPED, b"null"])
def test_what_cannot_be_read_is_counted(stored: bytes) -> None:
    before = faults().get("test.record", 0)
    assert read_record("test.record", stored, Kept, key="x") is None
    assert read_record("test.record", stored, Kept, decode=msgspec.msgpack.decode, key="x") is None
    assert faults()["test.record"] == before + 2
    for data in (stored, msgspec.Raw(stored)):
        with pytest.raises(PeerError, match=r"^what it is: .") as refused:
            decode_untrusted("what it is", data, Kept)
        assert len(str(refused.value)) < 250, "it is said, not repeated"


def test_every_byte_may_be_wrong() -> None:
    for position in range(len(GOOD)):
        for wrong in range(256):
            found = read_record("test.record", GOOD[:position] + bytes([wrong]) + GOOD[position + 1 :], Kept)
            assert found is None or isinstance(found, Kept)
