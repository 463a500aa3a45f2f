"""The short ways of the server, for polls and blocks that repeat what it knows: the same bytes come out as on the long way."""

from __future__ import annotations

import pytest
from dfud_coap.message import CON, NON, Code, Option, decode_untrusted, encode_tail, head, uint

from dfud.api import Code as Outcome
from dfud.api import Reply
from tests.plugins.coap.test_limits import AUTH
from tests.plugins.coap.virtual import Virtual
from tests.plugins.coap.world import PACKAGE

POLL = encode_tail([(11, b"v1"), (11, b"dfu"), AUTH], b"status")
WAIT = encode_tail([(11, b"v1"), (11, b"temp"), (15, b"ct=9"), AUTH], b"x")


def get(block: int) -> bytes:
    return encode_tail([(11, b"v1"), (11, b"dfu"), (11, PACKAGE.encode()), (11, b"0"), AUTH, (int(Option.BLOCK2), uint(block))])


class Both:
    """One server that takes the short ways where it may, one that takes the long one always; what comes out of both."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **config: object) -> None:
        self.short, self.long = Virtual(block_max=64, **config), Virtual(block_max=64, **config)
        monkeypatch.setattr(self.long.server, "_is_plain_sailing", lambda exchange, asked: False)
        self.shortened = 0
        sails = self.short.server._is_plain_sailing

        def counted(exchange: object, asked: object) -> bool:
            found = sails(exchange, asked)  # type: ignore[arg-type]
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


def test_who_has_to_prove_its_address_has_no_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(monkeypatch, verify_addresses=True)
    for n in range(3):
        assert decode_untrusted(both.take(POLL, n)[0]).code == Code.UNAUTHORIZED
    assert not both.shortened
