"""From datagrams to the endpoint and back: RFC 7252's message layer, blocks, waiting, observing, OSCORE, limits.

No sockets and no clock in here: peers have a `send`, `now` and `spawn` are passed in. `datagram()` never waits. What needs the
endpoint's slow methods runs in tasks that `spawn` starts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable

import msgspec

from dfud.api import Cache, Chunks, Endpoint, Reply, Request, Waiting, contained, is_acceptable, note
from dfud.api import Code as Outcome
from dfud_coap.answering import Answering
from dfud_coap.block import Block, BlockError, Bodies, cut
from dfud_coap.config import CoapConfig
from dfud_coap.message import ACK, CON, NON, RST, Code, MessageError, Option, Options, decode_tail_untrusted, head, uint
from dfud_coap.observe import Observation, Observers
from dfud_coap.peer import Exchange, Peer
from dfud_coap.securing import Securing
from dfud_coap.translate import (
    CHUNK_MAX_AGE_S,
    Answer,
    CoapRequest,
    Fetching,
    answer_reply,
    chunk_tail,
    etag,
)
from dfud_coap.waiting import RETRY_S, WaitingRoom
from dfud_coap.work import Work

OBSERVE_MARGIN_S = 100
KNOWN_MAX_BYTES = 512
OWN_CHANNELS = frozenset({"dfu", "enrol"})  # whatever is posted to others is telemetry
_MAX_AGE = uint(CHUNK_MAX_AGE_S)


class Server:
    """One for all sockets of a transport. `changed` is called when something has ended; see `idle`.

    It decides what a message is and asks the endpoint; the parts it is made of take protection off (Securing), do what is slow
    (Work), keep those who wait (WaitingRoom), tell observers (Observers) and send (Answering).
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
            endpoint, answering, self._work, self._act, contexts=config.contexts, now=now, wall=wall
        )
        # Half of the places are for those who have proved their address: who makes addresses up cannot take them.
        each = config.transfers_per_address
        self._proven = Bodies((config.transfers + 1) // 2, each, config.body_max)
        self._unproven = Bodies(max(1, config.transfers // 2), each, config.body_max)
        self._known: Cache[tuple[Hashable, int, bytes], CoapRequest] = Cache(config.requests_known)
        self._draining = False
        self._observe_number = 1
        self.observers = Observers(
            self.timers,
            now,
            self._post_again,
            self._notify,
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

    def datagram(self, peer: Peer, data: bytes) -> None:
        """Take one datagram, whatever is in it."""
        if len(data) < 4 or data[0] >> 6 != 1:
            return
        kind, code, message_id, at = data[0] >> 4 & 3, data[1], data[2] << 8 | data[3], 4 + (data[0] & 15)
        if kind > NON or not 0 < code < 0x20 or at > 12 or at > len(data):
            self._signal(peer, kind, code, message_id, len(data) == 4)
            return
        now_s = self._now()
        before = self._duplicates.find((peer.key, message_id), data, now_s)
        if before is not None:
            if before:
                peer.send(before)
            return
        exchange = Exchange(peer, kind, code, message_id, data[4:at], data)
        try:
            tail = data[at:]
            if code == Code.GET:
                asked = peer.fetching.next_untrusted(tail) if peer.fetching is not None else None
            else:
                asked = self._known.get((peer.scope, code, tail))
            if asked is None:
                asked = self._read(exchange, at, now_s)
            if asked is not None:
                self._act(exchange, asked, now_s)
        except Exception as error:
            note("coap.datagram", error, peer=peer.address)
            self._answering.failed(exchange)

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
            self._get_chunks(exchange, asked, now_s)
            return
        request: Request | None = asked.request
        if asked.block1 is not None:
            request = self._assemble(exchange, asked, asked.request, now_s)
        elif asked.block2 is not None and asked.block2.number:
            self._later_block(exchange, asked, now_s)
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
        found = self._endpoint.quick(request)
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
        elif found is asked.reply:
            self._send(
                exchange,
                asked.answer_code,
                asked.tail,
                now_s,
                trusted=self._is_trusted(exchange, asked, asked.answer_code),
            )
        elif asked.observe == 0 and found.code is Outcome.COMMAND and self.waiting.may_hold(exchange.peer.counted):
            self._observe_number = (self._observe_number + 1) & 0xFFFFFF
            self._finish(exchange, asked, self._notification(found), now_s, observe=uint(self._observe_number))
            self.waiting.hold(exchange.peer.counted)
            key = (exchange.who, exchange.token)
            self.observers.register(key, exchange.who, (exchange, asked), request, found)
        else:
            answer = answer_reply(found, fetch=asked.code == Code.FETCH)
            if asked.simple and answer.code < Code.BAD_REQUEST and len(answer.payload) <= self._answering.block_bytes:
                asked.reply, asked.answer_code, asked.tail = found, answer.code, answer.tail()
            self._finish(exchange, asked, answer, now_s)

    # Blocks

    def _assemble(self, exchange: Exchange, asked: CoapRequest, request: Request, now_s: float) -> Request | None:
        """Put a body together; return the request with all of it, or answer here and return None."""
        assert asked.block1 is not None
        block = asked.block1
        echoed = Block(block.number, True, min(block.szx, self._szx))
        try:
            size = next((v for n, v in asked.options if n == Option.SIZE1), b"")
            if len(size) > 4 or int.from_bytes(size, "big") > self._config.body_max:
                raise BlockError(Code.TOO_LARGE, f"at most {self._config.body_max} bytes")
            key = (exchange.who, asked.body_key())
            bodies = self._bodies_of(exchange, key, block, now_s)
            if bodies is None:
                self._answering.challenge(exchange, now_s)
                return None
            body = bodies.add(key, exchange.peer.counted, block, request.body, now_s)
        except BlockError as error:
            options: Options = []
            if error.code is Code.TOO_LARGE:
                options = [(Option.SIZE1, uint(self._config.body_max)), (Option.BLOCK1, echoed.value())]
            self._respond(exchange, Answer(error.code, options, str(error).encode()), now_s)
            return None
        if body is None:
            self._respond(exchange, Answer(Code.CONTINUE, [(Option.BLOCK1, echoed.value())]), now_s)
            return None
        return msgspec.structs.replace(request, body=body)

    def _bodies_of(self, exchange: Exchange, key: Hashable, block: Block, now_s: float) -> Bodies | None:
        """Return where a body is put together; None: its sender has to prove its address first."""
        if block.number and key in self._unproven:
            return self._unproven
        peer, verified = exchange.peer, self._answering.verified
        if exchange.security is not None or peer.encrypted or verified.has(peer.key, now_s):
            return self._proven
        return self._unproven if self._unproven.has_room(peer.counted, now_s) or not block.more else None

    def _later_block(self, exchange: Exchange, asked: CoapRequest, now_s: float) -> None:
        kept = self._answering.kept.get((exchange.who, asked.body_key()), now_s)
        try:
            if kept is None:
                raise BlockError(Code.INCOMPLETE, "this answer is not kept any more: ask again from block 0")
            answer = self._answering.cut(exchange.who, asked, kept, now_s)
        except BlockError as error:
            answer = Answer(error.code, [], str(error).encode())
        self._respond(exchange, answer, now_s, trusted=kept is not None)

    def _get_chunks(self, exchange: Exchange, asked: CoapRequest, now_s: float) -> None:
        if len(self.observers):
            self.observers.fetched(exchange.who, asked.credentials)
        endpoint, address = self._endpoint, exchange.peer.address
        found = endpoint.quick_chunks(address, asked.credentials, asked.package, asked.first, asked.last)
        if found is None:
            self._work.start(
                exchange,
                lambda: endpoint.chunks(address, asked.credentials, asked.package, asked.first, asked.last),
                lambda found: self._send_chunks(exchange, asked, found, self._now()),
                now_s,
            )
        else:
            self._send_chunks(exchange, asked, found, now_s)

    def _send_chunks(self, exchange: Exchange, asked: CoapRequest, found: Chunks | Reply, now_s: float) -> None:
        if isinstance(found, Reply):
            self._finish(exchange, asked, answer_reply(found), now_s)
            return
        tag = asked.tag or etag(found)
        if asked.etags and tag in asked.etags:
            options = [(int(Option.ETAG), tag), (int(Option.MAX_AGE), _MAX_AGE)]
            self._respond(exchange, Answer(Code.VALID, options), now_s, trusted=self._is_trusted(exchange, asked, 0))
            return
        body = found.bodies[0] if len(found.bodies) == 1 else b"".join(found.bodies)
        try:
            part, block = cut(body, asked.block2, self._szx)
        except BlockError as error:
            self._respond(exchange, Answer(error.code, [], str(error).encode()), now_s)
            return
        if exchange.security is None:
            size = len(body) if block is None or block.number == 0 else None
            trusted = self._is_trusted(exchange, asked, 0)
            self._send(exchange, Code.CONTENT, chunk_tail(tag, block, size, part), now_s, trusted=trusted)
            return
        options = [(int(Option.ETAG), tag), (int(Option.MAX_AGE), _MAX_AGE)]
        if block is not None:
            options.append((Option.BLOCK2, block.value()))
        if block is None or block.number == 0:
            options.append((Option.SIZE2, uint(len(body))))
        self._respond(
            exchange, Answer(Code.CONTENT, options, part), now_s, trusted=self._is_trusted(exchange, asked, 0)
        )

    # Observing

    def _notification(self, reply: Reply) -> Answer:
        answer = answer_reply(reply, fetch=True)
        if answer.code < Code.BAD_REQUEST:
            answer.options.append((Option.MAX_AGE, uint(int(self._config.observe_check_s) + OBSERVE_MARGIN_S)))
        return answer

    def _post_again(self, request: Request, then: Callable[[Reply | Waiting], None]) -> None:
        found = self._endpoint.quick(request)
        if found is not None:
            then(found)
            return

        async def post() -> None:
            with contained("coap.observation", peer=request.peer) as guard:
                then(await self._endpoint.post(request))
            if guard.error is not None:
                with contained("coap.observation", peer=request.peer):
                    then(Reply(Outcome.FAILED))  # asked again later

        self._spawn(post)

    def _notify(self, observation: Observation, reply: Reply, then: Callable[[bool], None]) -> None:
        exchange, asked = observation.carrier
        peer: Peer = exchange.peer
        if exchange.security is not None and exchange.security[0].forgotten:
            then(False)
            return
        now_s = self._now()
        answer = self._notification(reply)
        observe = None
        if answer.code < Code.BAD_REQUEST:
            self._observe_number = (self._observe_number + 1) & 0xFFFFFF
            observe = uint(self._observe_number)
            answer = self._answering.cut(exchange.who, asked, answer, now_s)
        outer = self._answering.protect(exchange, answer, observe, own_iv=True)

        def ended(arrived: bool) -> None:
            then(arrived)
            self._changed()

        message_id = peer.new_id()
        data = head(CON, outer.code, message_id, exchange.token) + outer.tail()
        self.outbox.send(peer.key, message_id, data, now_s, peer.send, ended)
