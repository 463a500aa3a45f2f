"""What strangers get, what is bounded, and what OSCORE refuses: the server under a virtual clock."""

from __future__ import annotations

from typing import Any

import pytest
from dfud_coap.block import Block
from dfud_coap.message import CON, NON, Code, Message, Option, decode_untrusted, encode

from dfud.api import Code as Outcome
from dfud.api import Reply, faults
from dfud.testing.transport import AUTHORIZATION
from tests.plugins.coap.oscoredevice import Device, echo_of_inner
from tests.plugins.coap.virtual import CHUNK, Virtual
from tests.plugins.coap.world import IDENTITY, PACKAGE

AUTH = (int(Option.AUTHORIZATION), AUTHORIZATION)


def path(*segments: str) -> list[tuple[int, bytes]]:
    return [(int(Option.URI_PATH), s.encode()) for s in segments]


def post(
    message_id: int,
    *options: tuple[int, bytes],
    channel: str = "dfu",
    body: bytes = b"s",
    token: bytes = b"",
    kind: int = CON,
) -> bytes:
    return encode(Message(kind, Code.POST, message_id, token, [*path("v1", channel), *options], body))


def get(message_id: int, *options: tuple[int, bytes]) -> bytes:
    return encode(Message(CON, Code.GET, message_id, b"", [*path("v1", "dfu", PACKAGE, "0"), *options]))


def codes(sent: list[bytes]) -> list[int]:
    return [decode_untrusted(d).code for d in sent]


def echo_of(data: bytes) -> tuple[int, bytes]:
    value = decode_untrusted(data).first(Option.ECHO)
    assert value is not None
    return int(Option.ECHO), value


# Amplification


def test_nobody_unknown_gets_three_times_what_it_sent() -> None:
    w = Virtual()
    w.endpoint.authorization = None  # whoever asks is answered, but nobody has proved anything
    asked = get(1)
    (challenge,) = w.take(asked)
    assert codes([challenge]) == [Code.UNAUTHORIZED] and len(challenge) <= 3 * len(asked)
    (chunk,) = w.take(get(2, echo_of(challenge)))
    assert decode_untrusted(chunk).payload == CHUNK
    assert codes(w.take(get(3))) == [Code.CONTENT]  # the address is known now
    stranger = w.new_peer(("192.0.2.2", 40000))
    assert codes(w.take(get(4, echo_of(challenge)), stranger)) == [Code.UNAUTHORIZED]  # an Echo is for one address


def test_errors_are_cut_to_what_was_sent() -> None:
    w = Virtual()
    w.endpoint.answers["x"] = Reply(Outcome.DENIED, error="E", message="long " * 100)
    asked = post(1, channel="x", body=b"")
    (answer,) = w.take(asked)
    assert codes([answer]) == [Code.FORBIDDEN] and len(answer) <= 3 * len(asked)
    tiny = bytes.fromhex("40050001")  # FETCH without anything
    (answer,) = w.take(tiny)
    assert len(answer) <= 3 * len(tiny)


def test_right_credentials_need_no_echo_unless_the_config_says_so() -> None:
    assert codes(Virtual().take(get(1, AUTH))) == [Code.CONTENT]
    w = Virtual(verify_addresses=True)
    (challenge,) = w.take(post(1, AUTH))
    assert codes([challenge]) == [Code.UNAUTHORIZED] and not w.endpoint.requests  # nothing has been done
    assert codes(w.take(post(2, AUTH, echo_of(challenge)))) == [Code.CONTENT]
    assert codes(w.take(post(3, AUTH))) == [Code.CONTENT]
    w.until(3601)
    assert codes(w.take(post(4, AUTH))) == [Code.UNAUTHORIZED]
    assert len(w.endpoint.requests) == 2


def test_errors_fall_silent_for_an_address_that_only_makes_them() -> None:
    w = Virtual(errors_per_address=3)
    sent = [w.take(post(n, (int(Option.AUTHORIZATION), b"Basic eDp5"))) for n in range(5)]
    assert [len(s) for s in sent] == [1, 1, 1, 0, 0]
    assert w.take(b"\x40\x00\x00\x07") == []  # not even a reset
    assert codes(w.take(post(9, AUTH))) == [Code.CONTENT]  # whoever is right is served
    other = w.new_peer(("192.0.2.9", 1))
    assert codes(w.take(b"\x40\x00\x00\x07", other)) == [Code.EMPTY]
    w.until(61)
    assert codes(w.take(post(10, (int(Option.AUTHORIZATION), b"Basic eDp5")))) == [Code.FORBIDDEN]


def test_unprotected_requests_are_refused_and_not_looked_at_unless_plain_is_set() -> None:
    w = Virtual(plain=False)
    assert codes([*w.take(post(1, AUTH)), *w.take(get(2, AUTH))]) == [Code.UNAUTHORIZED] * 2
    assert not w.endpoint.requests and not w.endpoint.fetches


# Bounds


def test_waiting_is_bounded_in_total_and_for_an_address() -> None:
    w = Virtual(waiting=3, waiting_per_address=2)
    wait = (int(Option.URI_QUERY), b"ct=60")
    peers = [w.new_peer(("192.0.2.1", port)) for port in (1, 2, 3)] + [w.new_peer(("192.0.2.7", p)) for p in (1, 2)]
    sent = [codes(w.take(post(1, AUTH, wait, channel="x"), peer)) for peer in peers]
    refused = [Code.UNAVAILABLE]
    assert sent == [[Code.EMPTY], [Code.EMPTY], refused, [Code.EMPTY], refused]
    assert len(w.endpoint.parked) == 3
    w.endpoint.wake(Reply(Outcome.ACCEPTED))
    assert w.server.waiting.held == 0 and not w.server.waiting._of_address
    assert codes(w.take(post(2, AUTH, wait, channel="x"), peers[2])) == [Code.EMPTY]


def test_a_second_request_with_the_token_of_a_waiting_one_ends_that() -> None:
    w = Virtual()
    wait = (int(Option.URI_QUERY), b"ct=60")
    w.take(post(1, AUTH, wait, channel="x", token=b"t"))
    first = w.endpoint.last_waiting
    w.take(post(2, AUTH, wait, channel="x", token=b"t"))
    assert first is not None and first.ended == "cancelled" and len(w.endpoint.parked) == 1


def test_too_many_requests_at_a_time_are_told_to_come_later() -> None:
    w = Virtual(under_way=1)
    w.endpoint.quickly = False
    for number in (1, 2):
        w.server.datagram(w.peer, post(number, AUTH))
    assert codes([d for _, d in w.sent]) == [Code.UNAVAILABLE]
    w.until(0.5)
    w.settle()
    assert codes([d for _, d in w.sent]) == [Code.UNAVAILABLE, Code.CONTENT]


def test_one_address_with_many_requests_leaves_room_for_another() -> None:
    w = Virtual(under_way=4, under_way_per_address=2)
    w.endpoint.quickly = False
    other = w.new_peer(("192.0.2.99", 1))
    for number in range(6):
        w.server.datagram(w.peer, post(number, AUTH, body=b"%d" % number))
    w.server.datagram(other, post(1, AUTH, body=b"other"))
    w.settle()
    assert codes([d for _, d in w.sent]) == [Code.UNAVAILABLE] * 4 + [Code.CONTENT] * 3
    assert w.server.idle and not w.server._work._of_address


def test_telemetry_that_hangs_leaves_places_for_updates() -> None:
    """Where telemetry goes to (a webhook, say) may hang: that costs telemetry."""
    w = Virtual(under_way=10, under_way_per_address=10, under_way_events=4)
    w.endpoint.quickly = False
    for number in range(9):
        w.server.datagram(w.new_peer((f"192.0.2.{number + 10}", 1)), post(number, AUTH, body=b"%d" % number, channel="temp"))
    assert codes([d for _, d in w.sent]) == [Code.UNAVAILABLE] * 5
    w.server.datagram(w.peer, post(20, AUTH, body=b"status"))
    w.settle()
    assert codes([d for _, d in w.sent])[5:].count(Code.UNAVAILABLE) == 0 and len(w.endpoint.requests) == 5
    assert w.server.idle and w.server._work._events == 0


def test_a_slow_request_is_acknowledged_in_time_and_answered_later() -> None:
    w = Virtual()
    w.endpoint.quickly = False
    w.server.datagram(w.peer, post(7, AUTH, token=b"t"))
    w.until(0.9)
    w.server.datagram(w.peer, post(7, AUTH, token=b"t"))  # repeated while it is under way
    assert w.sent == []
    w.until(1.5)
    assert [(t, d.hex()) for t, d in w.sent] == [(1.0, "60000007")]
    w.settle()
    answer = decode_untrusted(w.sent[1][1])
    assert (answer.type, answer.code, answer.token) == (CON, Code.CONTENT, b"t") and len(w.endpoint.requests) == 1
    assert len(w.server.outbox) == 1 and not w.server.idle


def test_an_endpoint_that_fails_costs_one_request() -> None:
    w = Virtual()
    w.endpoint.quickly = False

    async def broken(request: Any) -> Any:
        raise ValueError("a bug")

    w.endpoint.post = broken  # type: ignore[method-assign]
    assert codes(w.take(post(1, AUTH))) == [Code.FAILED]
    assert faults()["coap.request"] and w.server.idle


def test_draining_answers_what_waits_refuses_what_is_new_and_then_is_idle() -> None:
    w = Virtual()
    w.take(post(1, AUTH, (int(Option.URI_QUERY), b"ct=60"), channel="x"))
    observe = encode(Message(CON, Code.FETCH, 2, b"o", [(6, b""), *path("v1", "dfu"), AUTH], b"s"))
    w.take(observe)
    assert len(w.server.observers) == 1
    w.server.drain()
    answer = decode_untrusted(w.sent[-1][1])
    assert (answer.type, answer.code) == (CON, Code.CHANGED) and not w.server.idle
    assert len(w.server.observers) == 0 and not w.endpoint.parked
    assert codes(w.take(post(3, AUTH))) == [Code.UNAVAILABLE]
    w.take(bytes.fromhex(f"6000{answer.message_id:04x}"))
    assert w.server.idle


def test_a_session_that_ends_leaves_nothing_behind() -> None:
    w = Virtual()
    w.take(post(1, AUTH, (int(Option.URI_QUERY), b"ct=60"), channel="x"))
    w.take(encode(Message(CON, Code.FETCH, 2, b"o", [(6, b""), *path("v1", "dfu"), AUTH], b"s")))
    w.endpoint.last_waiting.answer(Reply(Outcome.COMMAND, "dfu", b"u"))  # type: ignore[union-attr]
    assert len(w.server.outbox) == 1
    w.server.gone(w.peer)
    assert len(w.server.outbox) == 0 and not w.endpoint.parked and w.server.idle and w.server.waiting.held == 0


def test_what_is_remembered_of_peers_and_requests_goes_by_use() -> None:
    w = Virtual(requests_known=16)
    w.take(post(1, AUTH, body=b"honest"))
    for number in range(50):
        stranger = w.new_peer((f"192.0.2.{number + 10}", 1))
        w.take(post(number + 10, AUTH, body=b"%d" % number), stranger)
        w.take(post(number + 1000, AUTH, body=b"honest"))
    assert len(w.server._known) == 16
    assert any(ask[0] == w.peer.scope for ask in w.server._known._values), "who comes again is still known"


def test_late_answers_to_strangers_are_repeated_for_so_many_only() -> None:
    """Each repetition holds its message for up to 93 s: strangers who never acknowledge must not fill memory with them."""
    w = Virtual(repeated_to_strangers=3)

    async def post_slowly(request: Any) -> Any:
        return Reply(Outcome.DENIED, error="Denied")

    w.endpoint.quickly = False
    w.endpoint.post = post_slowly  # type: ignore[method-assign]
    for number in range(20):
        peer = w.new_peer((f"192.0.2.{number + 10}", 1))
        for message_id in (1, 2):
            w.server.datagram(peer, post(message_id, body=b"%d" % message_id))
    w.until(1.5)
    w.settle()
    assert codes([d for _, d in w.sent]).count(Code.FORBIDDEN) == 40, "each is answered"
    assert len(w.server.outbox) == w.server.outbox.active == 3, "one for each"
    w.until(300)
    assert w.server.idle


# OSCORE


def test_an_unknown_context_is_acted_upon_only_after_it_proved_that_it_is_fresh() -> None:
    w, d = Virtual(plain=False), Device()
    first = d.request(1)
    (challenge,) = w.take(first)
    assert not w.endpoint.requests and len(challenge) <= len(first)
    echo = echo_of_inner(d.open(challenge))
    second = d.request(2, echo)
    (answer,) = w.take(second)
    assert d.open(answer).payload == b"s"
    (got,) = w.endpoint.requests
    assert (got.credentials.identity, got.credentials.authorization, got.encrypted) == (IDENTITY, b"", True)
    (third,) = w.take(d.request(3))
    assert d.open(third).code == Code.CONTENT and len(w.endpoint.requests) == 2
    # Repeated on the message layer: the same answer, nothing done twice. Replayed: refused.
    assert w.take(second) == [answer]
    replayed = bytearray(second)
    replayed[2] ^= 0xFF
    assert codes(w.take(bytes(replayed))) == [Code.UNAUTHORIZED]
    assert codes(w.take(bytes(replayed), w.new_peer(("203.0.113.5", 9)))) == [Code.UNAUTHORIZED]
    assert len(w.endpoint.requests) == 2


def test_an_echo_is_for_its_context_and_its_time() -> None:
    w, d, other = Virtual(plain=False), Device(1), Device(2)
    (challenge,) = w.take(d.request(1))
    echo = echo_of_inner(d.open(challenge))
    (again,) = w.take(other.request(2, echo))
    echo_of_inner(other.open(again))
    w.until(31)
    (late,) = w.take(d.request(3, echo))
    echo_of_inner(d.open(late))
    assert not w.endpoint.requests


def test_a_replay_of_what_established_a_forgotten_context_is_not_acted_upon() -> None:
    w, d = Virtual(plain=False, contexts=1), Device(1)
    (challenge,) = w.take(d.request(1))
    w.until(1)
    established = d.request(2, echo_of_inner(d.open(challenge)))
    (answer,) = w.take(established)
    assert d.open(answer).code == Code.CONTENT
    w.until(2)
    Device(2).greet(w)  # takes the only place
    done = len(w.endpoint.requests)
    replayed = bytearray(established)
    replayed[2] ^= 0xFF
    (refused,) = w.take(bytes(replayed))
    assert len(w.endpoint.requests) == done
    assert echo_of_inner(d.open(refused))
    # No nonce of the server's own was used twice over all this.
    assert len(set(d.ivs)) == len(d.ivs) == 2


@pytest.mark.parametrize(
    "device",
    [Device(key=b"\0" * 16), Device(identity="nobody@app1")],
    ids=["wrong key", "unknown device"],
)
def test_a_wrong_key_and_an_unknown_device_look_alike(device: Device) -> None:
    w = Virtual(plain=False)
    (answer,) = w.take(device.request(1))
    message = decode_untrusted(answer)
    assert (message.code, message.options) == (Code.UNAUTHORIZED, [(14, b"")])
    assert message.payload == b"Security context not found" and not w.endpoint.requests


def test_a_key_that_was_taken_away_ends_its_contexts() -> None:
    w, d = Virtual(plain=False), Device()
    d.greet(w)
    w.endpoint.keys[IDENTITY] = b"n" * 16
    assert codes(w.take(d.request(5))) == [Code.UNAUTHORIZED] and len(w.server.securing.contexts) == 0
    w.endpoint.keys.clear()
    assert codes(w.take(d.request(6))) == [Code.UNAUTHORIZED]
    assert len(w.endpoint.requests) == 1


def test_a_protected_request_answers_whoever_sent_it_and_notifications_have_numbers_of_their_own() -> None:
    w, d = Virtual(plain=False), Device()
    d.greet(w)
    data = d.request(5, (int(Option.OBSERVE), b""), code=Code.FETCH)
    (answer,) = w.take(data)
    assert decode_untrusted(answer).first(Option.OBSERVE) is not None
    assert d.open(answer).code == Code.CONTENT
    w.endpoint.wake(Reply(Outcome.COMMAND, "dfu", b"update"))
    told = w.sent[-1][1]
    assert decode_untrusted(told).type == CON and d.open(told).payload == b"update"
    assert len(set(d.ivs)) == len(d.ivs) == 3


def test_option_4209_inside_oscore_does_not_change_who_it_is() -> None:
    w, d = Virtual(plain=False), Device()
    d.greet(w)
    w.take(d.request(5, AUTH))
    assert w.endpoint.requests[-1].credentials.authorization == b""
    assert w.endpoint.requests[-1].credentials.identity == IDENTITY


def test_a_non_confirmable_wait_is_taken_once() -> None:
    w = Virtual()
    data = post(1, AUTH, (int(Option.URI_QUERY), b"ct=60"), channel="x", kind=NON)
    assert w.take(data) == [] and w.take(data) == []
    assert len(w.endpoint.requests) == 1
    w.endpoint.wake(Reply(Outcome.COMMAND, "c", b"b"))
    answer = decode_untrusted(w.sent[-1][1])
    assert (answer.type, answer.code) == (NON, Code.CONTENT) and w.server.idle


def test_an_observation_ends_with_its_context() -> None:
    """Another context may have taken the place of a forgotten one, and its numbers."""
    w, d = Virtual(plain=False, contexts=1), Device(1)
    d.greet(w)
    w.take(d.request(5, (int(Option.OBSERVE), b""), code=Code.FETCH))
    assert len(w.server.observers) == 1
    Device(2).greet(w)  # takes the only place
    before = len(w.sent)
    w.endpoint.wake(Reply(Outcome.COMMAND, "dfu", b"update"))
    assert len(w.sent) == before and len(w.server.observers) == 0 and w.server.idle


def test_challenges_that_would_outrun_the_clock_are_silence_and_a_later_one_is_given() -> None:
    w, d = Virtual(plain=False), Device()
    first = d.request(1)
    told = []
    for number in range(200):
        replayed = bytearray(first)
        replayed[2:4] = number.to_bytes(2, "big")
        told.append(len(w.take(bytes(replayed))))
    assert told[:100] == [1] * 100 and told[-1] == 0
    assert w.server.idle
    w.until(2)
    replayed = bytearray(first)
    replayed[2:4] = (199).to_bytes(2, "big")  # the very message that was met with silence, repeated by the device
    (challenge,) = w.take(bytes(replayed))
    assert echo_of_inner(d.open(challenge))


def test_a_request_of_somebody_else_with_the_same_token_does_not_end_a_wait() -> None:
    w = Virtual()
    wait = (int(Option.URI_QUERY), b"ct=60")
    w.take(post(1, AUTH, wait, channel="x", token=b"t"))
    other = (int(Option.AUTHORIZATION), b"Basic eDp5")
    assert codes(w.take(post(2, other, wait, channel="x", token=b"t"))) == [Code.FORBIDDEN]
    assert len(w.endpoint.parked) == 1
    w.endpoint.authorization = None
    assert codes(w.take(post(3, other, wait, channel="x", token=b"t"))) == [Code.UNAVAILABLE]
    assert len(w.endpoint.parked) == 1 and w.server.waiting.held == 1


# Blocks of several bodies


def block(number: int, more: bool, szx: int = 0) -> bytes:
    return Block(number, more, szx).value()


def test_two_bodies_at_a_time_are_kept_apart_by_their_request_tags() -> None:
    w = Virtual()
    one, two = (int(Option.REQUEST_TAG), b"1"), (int(Option.REQUEST_TAG), b"2")
    sent = []
    for number, (tag, letter) in enumerate([(one, b"a"), (two, b"b"), (one, b"c"), (two, b"d")]):
        first = number < 2
        option = (int(Option.BLOCK1), block(0 if first else 1, first))
        sent += w.take(post(number, AUTH, tag, option, channel="x", body=letter * (16 if first else 3)))
    assert codes(sent) == [Code.CONTINUE, Code.CONTINUE, Code.CHANGED, Code.CHANGED]
    assert [r.body for r in w.endpoint.requests] == [b"a" * 16 + b"ccc", b"b" * 16 + b"ddd"]


def test_a_long_status_is_registered_in_blocks_and_a_long_command_told_in_blocks() -> None:
    w = Virtual()
    status = b"s" * 20
    base = [*path("v1", "dfu"), AUTH]
    for number, (part, more) in enumerate([(status[:16], True), (status[16:], False)]):
        options = [(int(Option.OBSERVE), b""), *base, (int(Option.BLOCK1), block(number, more))]
        (answer,) = w.take(encode(Message(CON, Code.FETCH, number, b"o", options, part)))
    registered = decode_untrusted(answer)
    assert registered.payload == status and registered.first(Option.OBSERVE) is not None
    command = bytes(range(256)) * 9
    w.endpoint.wake(Reply(Outcome.COMMAND, "dfu", command))
    told = decode_untrusted(w.sent[-1][1])
    assert told.first(Option.BLOCK2) == block(0, True, 6) and told.first(Option.SIZE2) == b"\x09\x00"
    got, tags = told.payload, {told.first(Option.ETAG)}
    for number in (1, 2):
        options = [*base, (int(Option.BLOCK2), block(number, False, 6))]
        (answer,) = w.take(encode(Message(CON, Code.FETCH, 10 + number, b"r", options, status)))
        rest = decode_untrusted(answer)
        got, tags = got + rest.payload, tags | {rest.first(Option.ETAG)}
        assert rest.first(Option.COMMAND) == b"dfu" and rest.first(Option.OBSERVE) is None
    assert got == command and len(tags) == 1 and len(w.endpoint.requests) == 2
    w.until(94)
    (late,) = w.take(
        encode(Message(CON, Code.FETCH, 20, b"r", [*base, (int(Option.BLOCK2), block(1, False, 6))], status))
    )
    assert codes([late]) == [Code.INCOMPLETE]
