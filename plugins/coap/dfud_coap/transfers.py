"""What takes more than one message: bodies in blocks, the later blocks of an answer, chunks of packages. RFC 7959."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import msgspec

from dfud.api import Chunks, Endpoint, Reply, Request
from dfud_coap.answering import Answering
from dfud_coap.block import Block, BlockError, Bodies, cut
from dfud_coap.config import CoapConfig
from dfud_coap.message import Code, Option, Options, uint
from dfud_coap.peer import Exchange
from dfud_coap.translate import CHUNK_MAX_AGE_S, Answer, CoapRequest, answer_reply, chunk_tail, etag
from dfud_coap.work import Work

_MAX_AGE = uint(CHUNK_MAX_AGE_S)


class Transfers:
    """Answers what it can by itself; `assemble()` returns a request when its body is whole."""

    def __init__(
        self, config: CoapConfig, endpoint: Endpoint, answering: Answering, work: Work, now: Callable[[], float]
    ) -> None:
        self._endpoint = endpoint
        self._answering = answering
        self._send = answering.send  # looked up for every block
        self._work = work
        self._now = now
        self._body_max = config.body_max
        # Half of the places are for those who have proved their address: who makes addresses up cannot take them.
        each = config.transfers_per_address
        self._proven = Bodies((config.transfers + 1) // 2, each, config.body_max)
        self._unproven = Bodies(max(1, config.transfers // 2), each, config.body_max)

    def assemble(self, exchange: Exchange, asked: CoapRequest, request: Request, now_s: float) -> Request | None:
        """Put a body together; return the request with all of it, or answer here and return None."""
        assert asked.block1 is not None
        block = asked.block1
        echoed = Block(block.number, True, min(block.szx, self._answering.szx))
        try:
            size = next((v for n, v in asked.options if n == Option.SIZE1), b"")
            if len(size) > 4 or int.from_bytes(size, "big") > self._body_max:
                raise BlockError(Code.TOO_LARGE, f"at most {self._body_max} bytes")
            key = (exchange.who, asked.body_key())
            bodies = self._bodies_of(exchange, key, block, now_s)
            if bodies is None:
                self._answering.challenge(exchange, now_s)
                return None
            body = bodies.add(key, exchange.peer.counted, block, request.body, now_s)
        except BlockError as error:
            options: Options = []
            if error.code is Code.TOO_LARGE:
                options = [(Option.SIZE1, uint(self._body_max)), (Option.BLOCK1, echoed.value())]
            self._answering.respond(exchange, Answer(error.code, options, str(error).encode()), now_s)
            return None
        if body is None:
            self._answering.respond(exchange, Answer(Code.CONTINUE, [(Option.BLOCK1, echoed.value())]), now_s)
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

    def later_block(self, exchange: Exchange, asked: CoapRequest, now_s: float) -> None:
        kept = self._answering.kept.get((exchange.who, asked.body_key()), now_s)
        try:
            if kept is None:
                raise BlockError(Code.INCOMPLETE, "this answer is not kept any more: ask again from block 0")
            answer = self._answering.cut(exchange.who, asked, kept, now_s)
        except BlockError as error:
            answer = Answer(error.code, [], str(error).encode())
        self._answering.respond(exchange, answer, now_s, trusted=kept is not None)

    def fetch(self, exchange: Exchange, asked: CoapRequest, now_s: float) -> None:
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
            self._answering.finish(exchange, asked, answer_reply(found), now_s)
            return
        tag = asked.tag or etag(found)
        if asked.etags and tag in asked.etags:
            options = [(int(Option.ETAG), tag), (int(Option.MAX_AGE), _MAX_AGE)]
            self._answering.respond(
                exchange, Answer(Code.VALID, options), now_s, trusted=self._answering.is_trusted(exchange, asked, 0)
            )
            return
        body = found.bodies[0] if len(found.bodies) == 1 else b"".join(found.bodies)
        try:
            part, block = cut(body, asked.block2, self._answering.szx)
        except BlockError as error:
            self._answering.respond(exchange, Answer(error.code, [], str(error).encode()), now_s)
            return
        if exchange.security is None:
            size = len(body) if block is None or block.number == 0 else None
            trusted = self._answering.is_trusted(exchange, asked, 0)
            self._send(exchange, Code.CONTENT, chunk_tail(tag, block, size, part), now_s, trusted=trusted)
            return
        options = [(int(Option.ETAG), tag), (int(Option.MAX_AGE), _MAX_AGE)]
        if block is not None:
            options.append((Option.BLOCK2, block.value()))
        if block is None or block.number == 0:
            options.append((Option.SIZE2, uint(len(body))))
        self._answering.respond(
            exchange, Answer(Code.CONTENT, options, part), now_s, trusted=self._answering.is_trusted(exchange, asked, 0)
        )
