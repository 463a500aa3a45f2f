"""Requests under OSCORE on their way in: which key, which context, whether fresh."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dfud.api import Endpoint, StoreError
from dfud_coap.answering import Answering
from dfud_coap.echo import Echo
from dfud_coap.message import Code, Option, Options, uint
from dfud_coap.oscore import (
    KEY_BYTES,
    Context,
    Contexts,
    Header,
    OscoreError,
    RequestIds,
    read_inner_untrusted,
    read_option_untrusted,
)
from dfud_coap.ownership import Ownership, Taken
from dfud_coap.peer import Exchange
from dfud_coap.translate import Answer, CoapRequest, Fault, read_request_untrusted
from dfud_coap.waiting import RETRY_S
from dfud_coap.work import Work


class Securing:
    """Takes protection off, and hands what was asked to `act`. wall: a clock in seconds since the epoch that is never set back.

    repeats: takes an inner request that it recognises by its bytes, or returns False; remember: has it recognise the next one.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        answering: Answering,
        work: Work,
        act: Callable[[Exchange, CoapRequest, float], None],
        *,
        repeats: Callable[[Exchange, Context, bytes, float], bool],
        remember: Callable[[Context, bytes, CoapRequest], None],
        contexts: int,
        now: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._endpoint = endpoint
        self._answering = answering
        self._echo: Echo = answering.echo
        self._work = work
        self._act = act
        self._repeats = repeats
        self._remember = remember
        self._now = now
        self.wall = wall
        self.contexts = Contexts(contexts)
        self.ownership: Ownership | None = None

    def take(self, exchange: Exchange, value: bytes, options: Options, payload: bytes, now_s: float) -> None:
        observe = bool(options) and any(number == Option.OBSERVE for number, _ in options)
        try:
            if exchange.code not in (Code.POST, Code.FETCH):
                raise OscoreError(Code.METHOD_NOT_ALLOWED, "expected POST or FETCH around OSCORE")
            header = read_option_untrusted(value)
            context = self.contexts.get(header.id_context)
            if (
                context is not None
                and context.key == self._endpoint.key_for_cached("coap", header.identity)
                and (self.ownership is None or self.ownership.is_sure(context))
            ):
                plain, request = context.decrypt_untrusted(header, exchange.code, payload)
                if not observe:
                    exchange.security = (context, request)
                    if self._repeats(exchange, context, plain, now_s):
                        return
                    exchange.security = None
                inner = read_inner_untrusted(plain, observe)
                self._unprotected(exchange, context, inner, request, plain if not observe else b"")
                return
        except OscoreError as error:
            self._not_secured(exchange, error, now_s)
            return
        if self._answering.strangers.blocked(exchange.peer.counted, now_s):
            return

        if self.ownership is not None:
            work = partial(self._owned, self.ownership, exchange, header, value, payload, observe)
            self._work.start(exchange, work, lambda act: act(), now_s)
            return

        def keyed(key: bytes | None) -> None:
            try:
                self._keyed(exchange, header, key, value, payload, observe)
            except OscoreError as error:
                self._not_secured(exchange, error, self._now())

        self._work.start(exchange, lambda: self._endpoint.key_for("coap", header.identity), keyed, now_s)

    def _keyed(
        self, exchange: Exchange, header: Header, key: bytes | None, value: bytes, payload: bytes, observe: bool
    ) -> None:
        """Go on with the device's key from the store. Raises OscoreError."""
        context = self.contexts.get(header.id_context)
        if context is not None and context.key != key:
            self.contexts.forget(header.id_context)
            context = None
        if key is None or len(key) != KEY_BYTES:
            raise OscoreError(Code.UNAUTHORIZED, "Security context not found")
        if context is not None:
            self._unprotected(exchange, context, *context.unprotect_untrusted(exchange.code, value, payload, observe))
            return
        now_s = self._now()
        context = self.contexts.derive(header, key, self.wall())
        if context is None:
            # More first contacts than there are numbers: silence, and the device repeats itself.
            self._answering.drop(exchange)
            return
        inner, request = context.unprotect_untrusted(exchange.code, value, payload, observe)
        purpose = b"oscore" + header.id_context
        made_s = self._echo.check_untrusted(inner.first(Option.ECHO), purpose, now_s)
        if made_s is not None and self.contexts.is_fresh(made_s):
            context.fresh_from(header)
            self.contexts.establish(context, made_s)
            self._unprotected(exchange, context, inner, request)
            return
        self._challenge(exchange, context, request, self._echo.make(purpose, now_s))

    def _challenge(self, exchange: Exchange, context: Context, request: RequestIds, echo: bytes) -> None:
        outer = context.protect(Answer(Code.UNAUTHORIZED, [(Option.ECHO, echo)]), request, own_iv=True)
        self._answering.send(exchange, outer.code, outer.tail(), self._now(), trusted=True)

    async def _owned(
        self, ownership: Ownership, exchange: Exchange, header: Header, value: bytes, payload: bytes, observe: bool
    ) -> Callable[[], None]:
        """As _keyed(), where several processes have the contexts; return what is to be done then."""
        try:
            async with ownership.turn(header.id_context):
                return await self._found_out(ownership, exchange, header, value, payload, observe)
        except OscoreError as error:
            return partial(self._not_secured, exchange, error, self._now())
        except StoreError:
            away = Answer(Code.UNAVAILABLE, [(Option.MAX_AGE, uint(RETRY_S))])
            return partial(self._answering.respond, exchange, away, self._now())

    async def _found_out(
        self, ownership: Ownership, exchange: Exchange, header: Header, value: bytes, payload: bytes, observe: bool
    ) -> Callable[[], None]:
        key = await self._endpoint.key_for("coap", header.identity)
        context = self.contexts.get(header.id_context)
        if context is not None and context.key != key:
            self.contexts.forget(header.id_context)
            context = None
        if key is None or len(key) != KEY_BYTES:
            raise OscoreError(Code.UNAUTHORIZED, "Security context not found")
        if context is not None and not (ownership.is_sure(context) or await ownership.still(context)):
            self.contexts.lend(context)
            context = None
        if context is None:
            tried = self.contexts.lent(header, key) or self.contexts.derive(header, key, self.wall())
            if tried is None:
                return partial(self._answering.drop, exchange)
            # By now the device's key is known to have made it: strangers cause no work in other processes.
            inner, request = tried.unprotect_untrusted(exchange.code, value, payload, observe)
            try:
                context, fresh = await ownership.own(header, tried, inner.first(Option.ECHO))
            except Taken as taken:
                if taken.challenge is None:
                    return partial(self._answering.drop, exchange)
                return partial(self._challenge, exchange, tried, request, taken.challenge)
            if fresh:
                context.fresh_from(header)
                return partial(self._unprotected, exchange, context, inner, request)
        # Nothing is awaited from here on, so its window is this one's.
        inner, request = context.unprotect_untrusted(exchange.code, value, payload, observe)
        return partial(self._unprotected, exchange, context, inner, request)

    def _unprotected(self, exchange: Exchange, context: Context, inner: Any, request: Any, plain: bytes = b"") -> None:
        """plain: the inner request as it came, if the next one may be recognised by that."""
        now_s = self._now()
        exchange.security = (context, request)
        asked = self.read_request(exchange, inner.code, inner.options, inner.payload, context.identity, now_s)
        if asked is not None:
            if plain:
                self._remember(context, plain, asked)
            self._act(exchange, asked, now_s)

    def _not_secured(self, exchange: Exchange, error: OscoreError, now_s: float) -> None:
        self._answering.respond(exchange, Answer(error.answer, [(Option.MAX_AGE, b"")], str(error).encode()), now_s)

    def read_request(
        self, exchange: Exchange, code: int, options: Options, payload: bytes, identity: str, now_s: float
    ) -> CoapRequest | None:
        peer = exchange.peer
        try:
            return read_request_untrusted(
                code,
                options,
                payload,
                peer=peer.address,
                certificate=peer.certificate if not identity else b"",
                identity=identity,
                encrypted=peer.encrypted or bool(identity),
            )
        except Fault as fault:
            # RFC 7252, 5.4.1: a non-confirmable request with a critical option that is not known is dropped.
            if exchange.confirmable or fault.answer.code != Code.BAD_OPTION:
                self._answering.respond(exchange, fault.answer, now_s)
            return None
