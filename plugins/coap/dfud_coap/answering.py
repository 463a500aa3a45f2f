"""Answers on their way out: protected, in blocks, within what a stranger may be sent; and from then on who has to acknowledge."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Hashable

from dfud_coap.block import Block, BlockError, Kept, cut, szx_of
from dfud_coap.config import CoapConfig
from dfud_coap.echo import AMPLIFICATION, Echo, Verified
from dfud_coap.message import ACK, Code, Option, head, uint
from dfud_coap.peer import Exchange, Peer, Strangers
from dfud_coap.reliability import Duplicates, Outbox, Timer, Timers
from dfud_coap.translate import TEXT_MAX_BYTES, Answer, Ask

VERIFIED_MAX = 100_000
# What an endpoint says to those whose credentials it does not know.
_UNKNOWN = frozenset({Code.FORBIDDEN, Code.TOO_MANY, Code.BAD_REQUEST})


class Answering:
    """The half of the server that sends. No request is answered twice, and none by more than one message but on repetition."""

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
        self._changed = changed
        self.timers = Timers(sooner)
        self.outbox = Outbox(self.timers, rng)
        self._szx = szx_of(config.block_max)
        self._block_bytes = 16 << self._szx
        self._duplicates = Duplicates(config.remembered)
        self._kept: Kept[Answer] = Kept(config.transfers)
        self._echo = Echo(key)
        self._verified = Verified(VERIFIED_MAX)
        self._strangers = Strangers(config.errors_per_address)

    def _cut(self, who: Hashable, ask: Ask, answer: Answer, now_s: float) -> Answer:
        """Return the block of an answer that was asked for, and keep the others. Raises BlockError."""
        part, block = cut(answer.payload, ask.block2, self._szx)
        if block is None:
            return answer
        options = [*answer.options, (Option.BLOCK2, block.value())]
        if block.more or block.number:
            options.append((Option.ETAG, hashlib.sha256(answer.payload).digest()[:8]))
        if block.number == 0 and block.more:
            options.append((Option.SIZE2, uint(len(answer.payload))))
            self._kept.keep((who, ask.body_key()), answer, now_s)
        return Answer(answer.code, options, part)

    def _is_trusted(self, exchange: Exchange, ask: Ask, code: int) -> bool:
        """Whether the endpoint knows this peer's credentials, going by its answer."""
        return exchange.peer.encrypted or (bool(ask.credentials.authorization) and code not in _UNKNOWN)

    def _finish(
        self, exchange: Exchange, ask: Ask, answer: Answer, now_s: float, *, observe: bytes | None = None
    ) -> None:
        """Answer with what the endpoint said, in blocks if need be."""
        trusted = self._is_trusted(exchange, ask, answer.code)
        if answer.payload and answer.code < Code.BAD_REQUEST:
            try:
                answer = self._cut(exchange.who, ask, answer, now_s)
            except BlockError as error:
                answer = Answer(error.code, [], str(error).encode())
        if ask.block1 is not None:
            last = Block(ask.block1.number, False, min(ask.block1.szx, self._szx))
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
            if not self._strangers.may_tell(exchange.peer.counted, now_s):
                exchange.answered = True
                cancel(exchange.late)
                return
            room = AMPLIFICATION * len(exchange.data) - 16 - len(answer.options) * 8
            answer.payload = answer.payload[: max(0, min(room, TEXT_MAX_BYTES))]
        # Numbers of its own from the first on: aiocoap compares them as RFC 7641 compares Observe, and starts from this one.
        outer = self._protect(exchange, answer, observe, own_iv=observe is not None)
        self._send(exchange, outer.code, outer.tail(), now_s, trusted=trusted or exchange.peer.encrypted)

    def _protect(self, exchange: Exchange, answer: Answer, observe: bytes | None, *, own_iv: bool = False) -> Answer:
        if exchange.security is not None:
            context, request = exchange.security
            if observe is not None:
                answer = Answer(answer.code, [*answer.options, (Option.OBSERVE, b"")], answer.payload)
            return context.protect(answer, request, own_iv=own_iv, observe=observe)
        if observe is not None:
            return Answer(answer.code, [*answer.options, (Option.OBSERVE, observe)], answer.payload)
        return answer

    def _send(self, exchange: Exchange, code: int, tail: bytes, now_s: float, *, trusted: bool) -> None:
        peer, kind = exchange.peer, exchange.answer_kind
        message_id = exchange.message_id if kind == ACK else peer.new_id()
        data = head(kind, code, message_id, exchange.token) + tail
        if not trusted and len(data) > AMPLIFICATION * len(exchange.data) and not self._verified.has(peer.key, now_s):
            self._challenge(exchange, now_s)
            return
        exchange.answered = True
        if exchange.late is not None:
            exchange.late.cancel()
        if exchange.acknowledged:
            self.outbox.send(peer.key, message_id, data, now_s, peer.send, lambda arrived: self._changed())
            return
        if exchange.code != Code.GET:
            self._duplicates.add((peer.key, exchange.message_id), exchange.data, data, now_s)
        peer.send(data)

    def _drop(self, exchange: Exchange) -> None:
        """Leave a request unanswered, and take it for a new one if it comes again."""
        exchange.answered = True
        cancel(exchange.late)
        self._duplicates.forget((exchange.peer.key, exchange.message_id))

    def _purpose(self, peer: Peer) -> bytes:
        return b"address" + repr(peer.key).encode()

    def _challenge(self, exchange: Exchange, now_s: float) -> None:
        """Have the address prove itself before it gets more (RFC 9175, 2.4)."""
        echo = self._echo.make(self._purpose(exchange.peer), now_s)
        tail = Answer(Code.UNAUTHORIZED, [(Option.ECHO, echo)]).tail()
        if 4 + len(exchange.token) + len(tail) > AMPLIFICATION * len(exchange.data):
            tail = b""
        if self._strangers.may_tell(exchange.peer.counted, now_s):
            self._send(exchange, Code.UNAUTHORIZED, tail, now_s, trusted=True)


def cancel(timer: Timer | None) -> None:
    if timer is not None:
        timer.cancel()
