"""From datagrams to the endpoint and back: RFC 7252's message layer, blocks, waiting, observing, OSCORE, limits.

No sockets and no clock in here: peers have a `send`, `now` and `spawn` are passed in. `datagram()` never waits. What needs the
endpoint's slow methods runs in tasks that `spawn` starts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable

from dfud.api import Cache, Chunks, Endpoint, Reply, Request, Waiting, is_acceptable, note
from dfud.api import Code as Outcome
from dfud_coap.answering import Answering
from dfud_coap.config import CoapConfig
from dfud_coap.message import (
    ACK,
    CON,
    NON,
    RST,
    Code,
    MessageError,
    Option,
    ack,
    decode_tail_untrusted,
    head,
    only_option_untrusted,
    uint,
)
from dfud_coap.notifying import Notifying
from dfud_coap.observe import Observers
from dfud_coap.oscore import Context
from dfud_coap.peer import Exchange, Peer
from dfud_coap.securing import Securing
from dfud_coap.transfers import Transfers
from dfud_coap.translate import Answer, CoapRequest, Fetching, answer_reply
from dfud_coap.waiting import RETRY_S, WaitingRoom
from dfud_coap.work import Work

KNOWN_MAX_BYTES = 512
_OSCORE = int(Option.OSCORE)
_CONTENT = bytes((Code.CONTENT,))
OWN_CHANNELS = frozenset({"dfu", "enrol"})  # whatever is posted to others is telemetry


class Server:
    """One for all sockets of a transport. `changed` is called when something has ended; see `idle`.

    It decides what a message is and asks the endpoint; the parts it is made of take protection off (Securing), do what is slow
    (Work), move what takes several messages (Transfers), keep those who wait (WaitingRoom), tell observers (Observers, Notifying)
    and send (Answering).
    """

    def __init__(
        self,
        config: CoapConfig,
        endpoint: Endpoint,
        *,
        spawn: Callable[..., None],
        now: Callable[[], float],
        wall: Callable[[], float],
        key: bytes,
        changed: Callable[[], None] = lambda: None,
        sooner: Callable[[], None] = lambda: None,
        rng: random.Random | None = None,
    ) -> None:
        self._config = config
        self._verify_addresses = config.verify_addresses
        self._endpoint = endpoint
        self._spawn = spawn
        self._now = now
        self._changed = changed
        answering = Answering(config, now=now, key=key, changed=changed, sooner=sooner, rng=rng)
        self._answering = answering
        self.timers = answering.timers
        self.outbox = answering.outbox
        # Looked up for every datagram.
        self._duplicates = answering.duplicates
        self._strangers = answering.strangers
        self._szx = answering.szx
        self._send = answering.send
        self._respond = answering.respond
        self._finish = answering.finish
        self._is_trusted = answering.is_trusted
        self._work = Work(
            config.under_way,
            config.under_way_per_address,
            config.under_way_events,
            answering,
            spawn=spawn,
            now=now,
        )
        self.waiting = WaitingRoom(config.waiting, config.waiting_per_address, answering, now=now)
        self.securing = Securing(
            endpoint,
            answering,
            self._work,
            self._act,
            repeats=self._repeats_inside,
            remember=self._remember_inside,
            contexts=config.contexts,
            now=now,
            wall=wall,
        )
        self._transfers = Transfers(config, endpoint, answering, self._work, now)
        self._known: Cache[tuple[Hashable, int, bytes], CoapRequest] = Cache(config.requests_known)
        self._draining = False
        self._notifying = Notifying(
            endpoint, answering, check_s=config.observe_check_s, spawn=spawn, now=now, changed=changed
        )
        self.observers = Observers(
            self.timers,
            now,
            self._notifying.post_again,
            self._notifying.notify,
            lambda o: self.waiting.release(o.carrier[0].peer.counted),
            check_s=config.observe_check_s,
            wait_s=config.observe_check_s,
        )

    @property
    def idle(self) -> bool:
        """Whether everything that was accepted is answered, and the answers have arrived or been given up."""
        return not self._work.count and not len(self.waiting) and not len(self.outbox)

    def drain(self) -> None:
        """Refuse what is new; answer what waits."""
        self._draining = True
        self.observers.end_all()
        self.waiting.end_all()

    def gone(self, peer: Peer) -> None:
        """The peer's session has ended: nobody waits any more."""
        if self.waiting.holds(peer.counted):
            self.observers.peer_gone(peer.key)
            self.waiting.peer_gone(peer.key)
        self.outbox.forget(peer.key, self._now())

    # Messages in

    def datagram(self, peer: Peer, data: bytes, now_s: float | None = None) -> None:
        """Take one datagram, whatever is in it. now_s: when it came, for one of many; None: now."""
        if len(data) < 4 or data[0] >> 6 != 1:
            return
        kind, code, message_id, at = data[0] >> 4 & 3, data[1], data[2] << 8 | data[3], 4 + (data[0] & 15)
        if kind > NON or not 0 < code < 0x20 or at > 12 or at > len(data):
            self._signal(peer, kind, code, message_id, len(data) == 4)
            return
        now_s = self._now() if now_s is None else now_s
        before = self._duplicates.find(peer.number | message_id, data, now_s)
        if before is not None:
            if before:
                peer.send(before)
            return
        exchange = None  # what can be answered at once needs none
        try:
            asked: CoapRequest | None = None
            if code == Code.GET:
                fetching, block = _fetching_untrusted(peer, data, at)
                if fetching is not None:
                    if kind == CON and self._is_plain_sailing(peer, peer.key, data[4:at], fetching.asked):
                        answer = self._block(peer, fetching, block, ack(Code.CONTENT, data, at), now_s)
                        if answer:
                            peer.send(answer)
                            return
                    asked = fetching.next(block)
            else:
                asked = self._known.get((peer.scope, code, data[at:]))
                if asked is not None and asked.reply is not None and asked.request is not None and kind == CON:
                    if self._is_plain_sailing(peer, peer.key, data[4:at], asked):
                        found = self._repeated(asked, asked.request)
                        if found is asked.reply:
                            answer = ack(asked.answer_code, data, at) + asked.tail
                            self._duplicates.add(peer.number | message_id, data, answer, now_s)
                            peer.send(answer)
                            return
                        exchange = Exchange(peer, kind, code, message_id, data[4:at], data)
                        self._ask(exchange, asked, asked.request, found, now_s)
                        return
            exchange = Exchange(peer, kind, code, message_id, data[4:at], data)
            if asked is None:
                asked = self._read(exchange, at, now_s)
            if asked is not None:
                self._act(exchange, asked, now_s)
        except Exception as error:
            note("coap.datagram", error, peer=peer.address)
            self._answering.failed(exchange or Exchange(peer, kind, code, message_id, data[4:at], data))

    # What nearly all messages are: neither is remembered longer, nor decided otherwise, than on the long way through _act().

    def _is_plain_sailing(
        self, peer: Peer, who: Hashable, token: bytes, asked: CoapRequest, *, secured: bool = False
    ) -> bool:
        """Whether a request whose bytes are known can only be answered with what the endpoint says. secured: it came under OSCORE."""
        if self._draining:
            return False
        if not (secured or peer.encrypted) and (self._verify_addresses or not asked.credentials.authorization):
            return False
        if not self.waiting.held:
            return True
        return not (self.observers.observes(who) or self.waiting.waits(who, token))

    def _repeated(self, asked: CoapRequest, request: Request) -> Reply | Waiting | None:
        """Return what the endpoint has in memory for a request that it answered with asked.reply."""
        if asked.again is not None and asked.again() is asked.reply:
            return asked.reply
        return self._endpoint.quick(request)

    def _block(self, peer: Peer, fetching: Fetching, block: int, before: bytes, now_s: float) -> bytes:
        """Return the answer with a block of the chunk that a peer is fetching, behind `before`; b"": it goes the long way."""
        if not fetching.front:
            return b""
        again = fetching.again
        asked = fetching.asked
        body = again(asked.first, now_s) if again is not None else None
        if body is None:
            found = self._endpoint.quick_chunks(peer.address, asked.credentials, asked.package, asked.first, asked.last)
            if type(found) is not Chunks:
                return b""
            if again is None:
                fetching.again = self._endpoint.chunk_again(asked.credentials, asked.package)
            body = found.bodies[0]
        return fetching.answer(before, block, self._szx, body)

    def _repeats_inside(self, exchange: Exchange, context: Context, plain: bytes, now_s: float) -> bool:
        """As the short ways, for what came under OSCORE."""
        peer, who = exchange.peer, context.id_context
        if not exchange.confirmable:
            return False
        if plain[0] == Code.GET:
            fetching, block = _fetching_untrusted(context, plain, 1)
            if fetching is None or not self._is_plain_sailing(peer, who, exchange.token, fetching.asked, secured=True):
                return False
            answer = self._block(peer, fetching, block, _CONTENT, now_s)
            if answer:
                self._seal(exchange, answer, now_s)
            return bool(answer)
        asked = self._known.get((who, 0, plain))
        if asked is None or asked.reply is None or asked.request is None:
            return False
        if asked.request.peer != peer.address:
            return False  # it has moved: what is known is of its old address
        if not self._is_plain_sailing(peer, who, exchange.token, asked, secured=True):
            return False
        found = self._repeated(asked, asked.request)
        if found is asked.reply:
            self._seal(exchange, b"%c%b" % (asked.answer_code, asked.tail), now_s)
        else:
            self._ask(exchange, asked, asked.request, found, now_s)
        return True

    def _seal(self, exchange: Exchange, plain: bytes, now_s: float) -> None:
        """Send an answer, given as code, options and payload, under OSCORE."""
        assert exchange.security is not None
        context, ids = exchange.security
        code, tail = context.seal(plain, ids)
        answer = ack(code, exchange.data, 4 + len(exchange.token)) + tail
        exchange.answered = True
        self._duplicates.add(exchange.place, exchange.data, answer, now_s)
        exchange.peer.send(answer)

    def _remember_inside(self, context: Context, plain: bytes, asked: CoapRequest) -> None:
        if len(plain) > KNOWN_MAX_BYTES:
            return
        if asked.request is None:
            context.fetching = Fetching.of(asked, plain[1:])
        elif asked.simple:
            self._known.put((context.id_context, 0, plain), asked)

    def _signal(self, peer: Peer, kind: int, code: int, message_id: int, empty: bool) -> None:
        """An acknowledgement or a reset; a ping, or something that cannot be understood (RFC 7252, 4.2 and 4.3)."""
        now_s = self._now()
        if kind in (ACK, RST) and code == 0 and empty:
            if self.outbox.end(peer.key, message_id, kind == ACK, now_s):
                self._changed()
        elif kind == CON:
            self._reset(peer, message_id, now_s)

    def _reset(self, peer: Peer, message_id: int, now_s: float) -> None:
        if self._strangers.take(peer.counted, now_s):
            peer.send(head(RST, 0, message_id))

    def _read(self, exchange: Exchange, at: int, now_s: float) -> CoapRequest | None:
        """Understand a request, or answer it here and return None."""
        peer = exchange.peer
        secured = only_option_untrusted(exchange.data, at, _OSCORE)
        if secured is not None:
            self.securing.take(exchange, secured[0], [], secured[1], now_s)
            return None
        try:
            options, payload = decode_tail_untrusted(exchange.data, at)
        except MessageError:
            if exchange.confirmable:
                self._reset(peer, exchange.message_id, now_s)
            return None
        for number, value in options:
            if number == Option.OSCORE:
                self.securing.take(exchange, value, options, payload, now_s)
                return None
        if not (peer.encrypted or self._config.plain):
            self._respond(exchange, Answer(Code.UNAUTHORIZED, [], b"OSCORE or DTLS is needed"), now_s)
            return None
        asked = self.securing.read_request(exchange, exchange.code, options, payload, "", now_s)
        if asked is not None and asked.request is None:
            peer.fetching = Fetching.of(asked, exchange.data[at:]) if len(exchange.data) <= KNOWN_MAX_BYTES else None
        elif asked is not None and asked.simple and len(exchange.data) <= KNOWN_MAX_BYTES:
            self._known.put((peer.scope, exchange.code, exchange.data[at:]), asked)
        return asked

    # Requests

    def _act(self, exchange: Exchange, asked: CoapRequest, now_s: float) -> None:
        if self._draining:
            self._respond(exchange, Answer(Code.UNAVAILABLE, [(Option.MAX_AGE, uint(RETRY_S))]), now_s)
            return
        if exchange.security is None and not exchange.peer.encrypted:
            answering = self._answering
            if asked.echo is not None:
                answering.proved(exchange.peer, asked.echo, now_s)
            if self._config.verify_addresses and not answering.verified.has(exchange.peer.key, now_s):
                answering.challenge(exchange, now_s)
                return
        if asked.request is None:
            if len(self.observers):
                self.observers.fetched(exchange.who, asked.credentials)
            self._transfers.fetch(exchange, asked, now_s)
            return
        request: Request | None = asked.request
        if asked.block1 is not None:
            request = self._transfers.assemble(exchange, asked, asked.request, now_s)
        elif asked.block2 is not None and asked.block2.number:
            self._transfers.later_block(exchange, asked, now_s)
            return
        if request is not None:
            self._publish(exchange, asked, request, now_s)

    def _publish(self, exchange: Exchange, asked: CoapRequest, request: Request, now_s: float) -> None:
        self.waiting.superseded(exchange, asked)
        if request.content_type and not is_acceptable(request.channel, request.content_type, request.body):
            self._finish(exchange, asked, Answer(Code.NOT_ACCEPTABLE), now_s)
            return
        if len(self.observers) and request.channel == "dfu":
            self.observers.posted(exchange.who, request)
        self._ask(exchange, asked, request, self._endpoint.quick(request), now_s)

    def _ask(
        self, exchange: Exchange, asked: CoapRequest, request: Request, found: Reply | Waiting | None, now_s: float
    ) -> None:
        """Go on with what the endpoint found in memory."""
        if found is None:
            self._work.start(
                exchange,
                lambda: self._endpoint.post(request),
                lambda found: self._found(exchange, asked, request, found, self._now()),
                now_s,
                event=request.channel not in OWN_CHANNELS,
            )
        else:
            self._found(exchange, asked, request, found, now_s)

    def _found(
        self, exchange: Exchange, asked: CoapRequest, request: Request, found: Reply | Waiting, now_s: float
    ) -> None:
        try:
            self._tell(exchange, asked, request, found, now_s)
        except BaseException:
            if isinstance(found, Waiting):
                found.cancel()  # nobody will hear of it
            raise

    def _tell(
        self, exchange: Exchange, asked: CoapRequest, request: Request, found: Reply | Waiting, now_s: float
    ) -> None:
        if isinstance(found, Waiting):
            if self._draining:
                self._finish(exchange, asked, answer_reply(found.expire()), now_s)
            else:
                self.waiting.park(exchange, asked, found, now_s)
        elif found is asked.reply and exchange.security is None:
            self._send(
                exchange,
                asked.answer_code,
                asked.tail,
                now_s,
                trusted=self._is_trusted(exchange, asked, asked.answer_code),
            )
        elif asked.observe == 0 and found.code is Outcome.COMMAND and self.waiting.may_hold(exchange.peer.counted):
            number = self._notifying.next_number()
            self._finish(exchange, asked, self._notifying.notification(found), now_s, observe=number)
            self.waiting.hold(exchange.peer.counted)
            key = (exchange.who, exchange.token)
            self.observers.register(key, exchange.who, (exchange, asked), request, found)
        else:
            answer = answer_reply(found, fetch=asked.code == Code.FETCH)
            if asked.simple and answer.code < Code.BAD_REQUEST and len(answer.payload) <= self._answering.block_bytes:
                asked.reply, asked.answer_code, asked.tail = found, answer.code, answer.tail()
                asked.again = asked.again or self._endpoint.quick_again(request)
            self._finish(exchange, asked, answer, now_s)


def _fetching_untrusted(of: Peer | Context, data: bytes, at: int) -> tuple[Fetching | None, int]:
    """Return the fetch that a GET goes on with, whose options begin at data[at], and its Block2; None: it is not recognised."""
    fetching = of.fetching
    if fetching is None:
        return None, -1
    block = fetching.block_untrusted(data, at)
    if block < 0:
        fetching = fetching.following_untrusted(data[at:])
        if fetching is None:
            return None, -1
        of.fetching = fetching
        block = fetching.block_untrusted(data, at)
    return fetching, block
