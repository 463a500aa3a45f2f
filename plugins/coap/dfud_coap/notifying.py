"""What observers are sent (RFC 7641): notifications, and the question behind them asked again."""

from __future__ import annotations

from collections.abc import Callable

from dfud.api import Code as Outcome
from dfud.api import Endpoint, Reply, Request, Waiting, contained
from dfud_coap.answering import Answering
from dfud_coap.message import CON, Code, Option, head, uint
from dfud_coap.observe import Observation
from dfud_coap.peer import Peer
from dfud_coap.translate import Answer, answer_reply

OBSERVE_MARGIN_S = 100


class Notifying:
    """check_s: how long a notification is true, but for OBSERVE_MARGIN_S. changed: called when one has arrived or was given up."""

    def __init__(
        self,
        endpoint: Endpoint,
        answering: Answering,
        *,
        check_s: float,
        spawn: Callable[..., None],
        now: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._endpoint = endpoint
        self._answering = answering
        self._check_s = check_s
        self._spawn = spawn
        self._now = now
        self._changed = changed
        self._number = 1

    def next_number(self) -> bytes:
        """Return the value of the next Observe option."""
        self._number = (self._number + 1) & 0xFFFFFF
        return uint(self._number)

    def notification(self, reply: Reply) -> Answer:
        answer = answer_reply(reply, fetch=True)
        if answer.code < Code.BAD_REQUEST:
            answer.options.append((Option.MAX_AGE, uint(int(self._check_s) + OBSERVE_MARGIN_S)))
        return answer

    def post_again(self, request: Request, then: Callable[[Reply | Waiting], None]) -> None:
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

    def notify(self, observation: Observation, reply: Reply, then: Callable[[bool], None]) -> None:
        exchange, asked = observation.carrier
        peer: Peer = exchange.peer
        if exchange.security is not None and exchange.security[0].forgotten:
            then(False)
            return
        now_s = self._now()
        answer = self.notification(reply)
        observe = None
        if answer.code < Code.BAD_REQUEST:
            observe = self.next_number()
            answer = self._answering.cut(exchange.who, asked, answer, now_s)
        outer = self._answering.protect(exchange, answer, observe, own_iv=True)

        def ended(arrived: bool) -> None:
            then(arrived)
            self._changed()

        message_id = peer.new_id()
        data = head(CON, outer.code, message_id, exchange.token) + outer.tail()
        self._answering.outbox.send(peer.key, message_id, data, now_s, peer.send, ended)
