"""The short ways of the server, for polls and blocks that repeat what it knows: the same bytes come out as on the long way."""

from __future__ import annotations

from typing import Any

import pytest
from dfud_coap.message import CON, NON, Code, Message, Option, decode_untrusted, encode, encode_tail, head, uint
from dfud_coap.oscore import DEVICE_ID, SERVER_ID, Context, Header, RequestIds, nonce_of
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import Cache, Reply
from dfud.api import Code as Outcome
from tests.plugins.coap.oscoredevice import Device, echo_of_inner
from tests.plugins.coap.test_limits import AUTH
from tests.plugins.coap.virtual import CHUNK, Virtual
from tests.plugins.coap.world import PACKAGE

POLL = encode_tail([(11, b"v1"), (11, b"dfu"), AUTH], b"status")
WAIT = encode_tail([(11, b"v1"), (11, b"temp"), (15, b"ct=9"), AUTH], b"x")


def get(block: int, chunk: bytes = b"0", package: str = PACKAGE, *more: tuple[int, bytes], payload: bytes = b"") -> bytes:
    path = [(11, b"v1"), (11, b"dfu"), (11, package.encode()), (11, chunk)]
    return encode_tail([*path, AUTH, (int(Option.BLOCK2), uint(block)), *more], payload)


class Both:
    """One server that takes the short ways where it may, one that takes the long one always; what comes out of both."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **config: object) -> None:
        self.short, self.long = Virtual(block_max=64, **config), Virtual(block_max=64, **config)
        monkeypatch.setattr(self.long.server, "_is_plain_sailing", lambda *arguments, **named: False)
        self.shortened = 0
        sails = self.short.server._is_plain_sailing

        def counted(*arguments: Any, **named: Any) -> bool:
            found = sails(*arguments, **named)
            self.shortened += found
            return found

        monkeypatch.setattr(self.short.server, "_is_plain_sailing", counted)

    def take(self, tail: bytes, message_id: int, code: int = Code.POST, kind: int = CON) -> list[bytes]:
        data = head(kind, code, message_id, b"tk") + tail
        short, long = self.short.take(data), self.long.take(data)
        assert short == long
        return short


def test_a_poll_that_repeats_itself_is_answered_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch)
    first, second, third = (both.take(POLL, n)[0] for n in (1, 2, 3))
    assert both.shortened == 2 and decode_untrusted(first).payload == decode_untrusted(third).payload == b"status"
    assert both.take(POLL, 2) == [second], "a repetition gets what it got"
    assert both.shortened == 2
    both.take(POLL, 4, kind=NON)
    for virtual in (both.short, both.long):
        virtual.endpoint.answers["dfu"] = Reply(Outcome.COMMAND, "dfu", b"another one")
    assert decode_untrusted(both.take(POLL, 5)[0]).payload == b"another one"
    for virtual in (both.short, both.long):
        virtual.endpoint.answers["dfu"] = Reply(Outcome.DENIED, error="no")
    assert decode_untrusted(both.take(POLL, 6)[0]).code == Code.FORBIDDEN
    for virtual in (both.short, both.long):
        virtual.endpoint.quickly = False
        virtual.endpoint.answers["dfu"] = Reply(Outcome.COMMAND, "dfu", b"from the store")
    assert decode_untrusted(both.take(POLL, 7)[0]).payload == b"from the store"
    for virtual in (both.short, both.long):
        virtual.server.drain()
    assert decode_untrusted(both.take(POLL, 8)[0]).code == Code.UNAVAILABLE


def test_who_waits_with_the_same_token_is_still_superseded(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch)
    both.take(POLL, 1)
    both.take(WAIT, 2)
    assert len(both.short.endpoint.parked) == len(both.long.endpoint.parked) == 1
    both.take(POLL, 3)
    assert not both.short.endpoint.parked and not both.long.endpoint.parked and not both.shortened


def test_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch)
    for n in range(8):
        for szx in (0, 2, 5):
            both.take(get(n << 4 | szx), 100 + 8 * n + szx, Code.GET)
    assert both.shortened > 15


def test_chunk_after_chunk_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch)
    for virtual in (both.short, both.long):
        virtual.endpoint.packages[PACKAGE] = [bytes([n]) * (150 + n) for n in range(120)]
    read = 0
    reads = both.short.server._read

    def counted(*arguments: Any) -> Any:
        nonlocal read
        read += 1
        return reads(*arguments)

    monkeypatch.setattr(both.short.server, "_read", counted)
    number = 0
    for chunk in (0, 1, 2, 9, 10, 99, 100, 7):
        for block in range(4):
            number += 1
            answer = decode_untrusted(both.take(get(block << 4 | 2, b"%d" % chunk), number, Code.GET)[0])
            assert answer.payload == (bytes([chunk]) * (150 + chunk))[64 * block : 64 * block + 64] or answer.code == Code.BAD_OPTION
    assert read == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"0", b"1", b"01", b"-1", b"0-1", b"1-1", b"", b"2", b"99", b"x", b"\xb2", b"00000000001", b"7" * 11]),
            st.integers(0, 3),
            st.sampled_from([PACKAGE, PACKAGE[::-1]]),
            st.sampled_from([(), ((17, b"*"),), ((4, b"tag"),), ((15, b"a=b"),), ((35, b"x"),), ((252, b"echo"),), ((27, b"\x06"),)]),
            st.sampled_from([b"", b"payload"]),
        ),
        max_size=12,
    )
)
def test_whatever_follows_a_fetch_is_answered_as_on_the_long_way(
    steps: list[tuple[bytes, int, str, tuple[tuple[int, bytes], ...], bytes]],
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        both = Both(monkeypatch)
        monkeypatch.setattr(both.long.server, "_known", Cache(0))
        for virtual in (both.short, both.long):
            virtual.endpoint.packages[PACKAGE] = [CHUNK, CHUNK[::-1]]
        for number, (chunk, block, package, more, payload) in enumerate(steps):
            both.long.peer.fetching = None
            both.take(get(block << 4 | 2, chunk, package, *more, payload=payload), number, Code.GET)


def test_a_block_is_sent_again_only_as_long_as_the_endpoint_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch)
    for number in range(3):
        both.take(get(number << 4 | 2), number, Code.GET)
    asked_anew = [bool(peer) for peer, *_ in both.short.endpoint.fetches]
    assert asked_anew == [True, True, False], "of the third block it was said that nothing has changed"
    for virtual in (both.short, both.long):
        virtual.endpoint.authorization = b"another"
    assert decode_untrusted(both.take(get(3 << 4 | 2), 4, Code.GET)[0]).code == Code.FORBIDDEN
    for virtual in (both.short, both.long):
        virtual.endpoint.failing = ValueError("a bug")
    assert decode_untrusted(both.take(get(3 << 4 | 2), 5, Code.GET)[0]).code == Code.FAILED


def test_who_has_to_prove_its_address_has_no_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch, verify_addresses=True)
    for n in range(3):
        assert decode_untrusted(both.take(POLL, n)[0]).code == Code.UNAUTHORIZED
    assert not both.shortened


def test_under_oscore_the_same_comes_out_and_nothing_unprotected(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch)
    device = Device()

    def ask(message_id: int, body: bytes = b"status") -> Message:
        data = device.request(message_id, body=body)
        (short,), (long,) = both.short.take(data), both.long.take(data)
        assert short == long
        assert both.short.take(data) == [short], "a repetition gets what it got"
        return device.open(short)

    first = device.request(1)
    (challenge,), (other,) = both.short.take(first), both.long.take(first)
    assert challenge == other
    proof = device.request(2, echo_of_inner(device.open(challenge)))
    assert both.short.take(proof) == both.long.take(proof)
    for number in range(3, 7):
        assert ask(number).payload == b"status"
    assert both.shortened == 3
    for virtual in (both.short, both.long):
        virtual.endpoint.answers["dfu"] = Reply(Outcome.COMMAND, "dfu", b"another one")
    assert ask(7).payload == ask(8).payload == b"another one"
    for virtual in (both.short, both.long):
        virtual.endpoint.quickly = False
    assert ask(9).payload == b"another one"
    # Somebody waits with this token: the long way, and it is protected although the same was answered before.
    for virtual in (both.short, both.long):
        virtual.endpoint.quickly = True
    before = both.shortened
    monkeypatch.setattr(both.short.server.waiting, "held", 1)
    monkeypatch.setattr(both.short.server.waiting, "waits", lambda who, token: True)
    assert ask(10).payload == b"another one" and both.shortened == before


def test_blocks_under_oscore_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch)
    device = Device()
    first = device.request(1)
    (challenge,), _ = both.short.take(first), both.long.take(first)
    proof = device.request(2, echo_of_inner(device.open(challenge)))
    assert both.short.take(proof) == both.long.take(proof)
    path = [(11, b"v1"), (11, b"dfu"), (11, PACKAGE.encode()), (11, b"0")]
    for n in range(8):
        asked = Message(CON, Code.GET, 10 + n, b"t", [*path, (int(Option.BLOCK2), uint(n << 4 | 2))])
        data = encode(device.protect_request(asked))
        (short,), (long,) = both.short.take(data), both.long.take(data)
        assert short == long
        found = device.open(short)
        assert found.payload == CHUNK[64 * n : 64 * n + 64] if 64 * n < len(CHUNK) else found.code == Code.BAD_OPTION
    assert both.shortened >= 4


def test_no_nonce_of_a_request_is_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(Header(b"\5", b"12345678dev1@app1", "dev1@app1"), bytes(16), 1)
    request = RequestIds(b"\5", b"aad", fetch=False)
    context.seal(b"\x45", request)
    with pytest.raises(ValueError, match="second answer"):
        context.seal(b"\x45", request)


@given(st.binary(min_size=13, max_size=13), st.integers(0, (1 << 40) - 1))
def test_a_nonce_is_its_base_and_the_number(common_iv: bytes, number: int) -> None:
    partial_iv = number.to_bytes(5, "big").lstrip(b"\0") or b"\0"
    for identity in (DEVICE_ID, SERVER_ID):
        base = int.from_bytes(nonce_of(common_iv, identity, b"\0"), "big")
        assert (base ^ number).to_bytes(13, "big") == nonce_of(common_iv, identity, partial_iv)


def test_a_device_that_has_moved_is_known_at_its_new_address() -> None:
    virtual = Virtual()
    device = Device()
    device.greet(virtual, 1)
    moved = virtual.new_peer(("198.51.100.7", 5))
    for number, peer in enumerate((virtual.peer, virtual.peer, moved, moved, virtual.peer)):
        (answer,) = virtual.take(device.request(10 + number), peer)
        assert device.open(answer).code == Code.CONTENT
        assert virtual.endpoint.requests[-1].peer == peer.address
