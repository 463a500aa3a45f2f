"""Answers on their way out: protected, in blocks, within what a stranger may be sent; and from then on who has to acknowledge."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Hashable

from dfud.api import PerMinute, contained
from dfud_coap.block import Block, BlockError, Kept, cut, szx_of
from dfud_coap.config import CoapConfig
from dfud_coap.echo import AMPLIFICATION, Echo, Verified
from dfud_coap.message import ACK, Code, Option, head, uint
from dfud_coap.peer import Exchange, Peer
from dfud_coap.reliability import Duplicates, Outbox, Timer, Timers
from dfud_coap.translate import TEXT_MAX_BYTES, Answer, CoapRequest

# What an endpoint says to those whose credentials it does not know.
_UNKNOWN = frozenset({Code.FORBIDDEN, Code.TOO_MANY, Code.BAD_REQUEST})


class Answering:
    """Sends. No request is answered twice, and none by more than one message but on repetition.

    Owns what is remembered for that: timers, the outbox, duplicates, bodies whose later blocks will be asked for, who has proved
    its address and who has been told too many errors.
    """

    def __init__(
        self,
        config: CoapConfig,
        *,
        now: Callable[[], float],
        key: bytes,
        changed: Callable[[], None],
        sooner: Callable[[], None],
        rng: random.Random | None,
    ) -> None:
        self._config = config
        self._now = now
        self.changed = changed
        self.timers = Timers(sooner)
        self.outbox = Outbox(self.timers, config.queued_per_peer, rng)
        self.szx = szx_of(config.block_max)
        self.block_bytes = 16 << self.szx
        self.duplicates = Duplicates(config.remembered, config.remembered_max_bytes)
        self.kept: Kept[Answer] = Kept(config.transfers)
        self.echo = Echo(key)
        self.verified = Verified(config.verified)
        self.strangers = PerMinute(config.errors_per_address, config.counted_max)

    def cut(self, who: Hashable, asked: CoapRequest, answer: Answer, now_s: float) -> Answer:
        """Return the block of an answer that was asked for, and keep the others. Raises BlockError."""
        part, block = cut(answer.payload, asked.block2, self.szx)
        if block is None:
            return answer
        options = [*answer.options, (Option.BLOCK2, block.value())]
        if block.more or block.number:
            options.append((Option.ETAG, hashlib.sha256(answer.payload).digest()[:8]))
        if block.number == 0 and block.more:
            options.append((Option.SIZE2, uint(len(answer.payload))))
            self.kept.keep((who, asked.body_key()), answer, now_s)
        return Answer(answer.code, options, part)

    def is_trusted(self, exchange: Exchange, asked: CoapRequest, code: int) -> bool:
        """Whether the endpoint knows this peer's credentials, going by its answer."""
        return exchange.peer.encrypted or (bool(asked.credentials.authorization) and code not in _UNKNOWN)

    def finish(
        self, exchange: Exchange, asked: CoapRequest, answer: Answer, now_s: float, *, observe: bytes | None = None
    ) -> None:
        """Answer with what the endpoint said, in blocks if need be."""
        trusted = self.is_trusted(exchange, asked, answer.code)
        if answer.payload and answer.code < Code.BAD_REQUEST:
            try:
                answer = self.cut(exchange.who, asked, answer, now_s)
            except BlockError as error:
                answer = Answer(error.code, [], str(error).encode())
        if asked.block1 is not None:
            last = Block(asked.block1.number, False, min(asked.block1.szx, self.szx))
            answer = Answer(answer.code, [*answer.options, (Option.BLOCK1, last.value())], answer.payload)
        self.respond(exchange, answer, now_s, trusted=trusted, observe=observe)

    def respond(
        self,
        exchange: Exchange,
        answer: Answer,
        now_s: float,
        *,
        trusted: bool = False,
        observe: bytes | None = None,
    ) -> None:
        """Send the answer to a request, protected as the request was. Only the first one for an exchange goes out."""
        if exchange.answered:
            return
        if exchange.security is not None:
            trusted = True
        elif not (trusted or exchange.peer.encrypted) and answer.code >= Code.BAD_REQUEST:
            if not self.strangers.take(exchange.peer.counted, now_s):
                exchange.answered = True
                cancel(exchange.late)
                return
            room = AMPLIFICATION * len(exchange.data) - 16 - len(answer.options) * 8
            answer.payload = answer.payload[: max(0, min(room, TEXT_MAX_BYTES))]
        # Numbers of its own from the first on: aiocoap compares them as RFC 7641 compares Observe, and starts from this one.
        outer = self.protect(exchange, answer, observe, own_iv=observe is not None)
        self.send(exchange, outer.code, outer.tail(), now_s, trusted=trusted or exchange.peer.encrypted)

    def protect(self, exchange: Exchange, answer: Answer, observe: bytes | None, *, own_iv: bool = False) -> Answer:
        if exchange.security is not None:
            context, request = exchange.security
            if observe is not None:
                answer = Answer(answer.code, [*answer.options, (Option.OBSERVE, b"")], answer.payload)
            return context.protect(answer, request, own_iv=own_iv, observe=observe)
        if observe is not None:
            return Answer(answer.code, [*answer.options, (Option.OBSERVE, observe)], answer.payload)
        return answer

    def send(self, exchange: Exchange, code: int, tail: bytes, now_s: float, *, trusted: bool) -> None:
        peer, kind = exchange.peer, exchange.answer_kind
        message_id = exchange.message_id if kind == ACK else peer.new_id()
        data = head(kind, code, message_id, exchange.token) + tail
        if not trusted and len(data) > AMPLIFICATION * len(exchange.data) and not self.verified.has(peer.key, now_s):
            self.challenge(exchange, now_s)
            return
        exchange.answered = True
        if exchange.late is not None:
            exchange.late.cancel()
        if exchange.acknowledged and (trusted or self._may_repeat(peer)):
            self.outbox.send(peer.key, message_id, data, now_s, peer.send, lambda arrived: self.changed())
            return
        if exchange.code != Code.GET and not exchange.acknowledged:
            self.duplicates.add(exchange.place, exchange.data, data, now_s)
        peer.send(data)

    def _may_repeat(self, peer: Peer) -> bool:
        """Whether an answer to a stranger is worth the memory that its repetition takes: one for each, so many in all."""
        return self.outbox.active < self._config.repeated_to_strangers and not self.outbox.busy(peer.key)

    def acknowledge(self, exchange: Exchange) -> None:
        """Send the empty ACK: the answer will be a message of its own."""
        if not exchange.confirmable or exchange.acknowledged or exchange.answered:
            return
        exchange.acknowledged = True
        cancel(exchange.late)
        data = head(ACK, 0, exchange.message_id)
        self.duplicates.add(exchange.place, exchange.data, data, self._now())
        exchange.peer.send(data)

    def failed(self, exchange: Exchange) -> None:
        """Answer a request that ended in an exception, if that can be done."""
        with contained("coap.answer", peer=exchange.peer.address):
            self.respond(exchange, Answer(Code.FAILED), self._now())

    def drop(self, exchange: Exchange) -> None:
        """Leave a request unanswered, and take it for a new one if it comes again."""
        exchange.answered = True
        cancel(exchange.late)
        self.duplicates.forget(exchange.place)

    def purpose(self, peer: Peer) -> bytes:
        return b"address" + repr(peer.key).encode()

    def proved(self, peer: Peer, echo: bytes, now_s: float) -> None:
        """Take note of an address that sent an Echo value back, if it is one that it was given."""
        if self.echo.check_untrusted(echo, self.purpose(peer), now_s) is not None:
            self.verified.add(peer.key, now_s)

    def challenge(self, exchange: Exchange, now_s: float) -> None:
        """Have the address prove itself before it gets more (RFC 9175, 2.4)."""
        echo = self.echo.make(self.purpose(exchange.peer), now_s)
        tail = Answer(Code.UNAUTHORIZED, [(Option.ECHO, echo)]).tail()
        if 4 + len(exchange.token) + len(tail) > AMPLIFICATION * len(exchange.data):
            tail = b""
        if self.strangers.take(exchange.peer.counted, now_s):
            self.send(exchange, Code.UNAUTHORIZED, tail, now_s, trusted=True)


def cancel(timer: Timer | None) -> None:
    if timer is not None:
        timer.cancel()
