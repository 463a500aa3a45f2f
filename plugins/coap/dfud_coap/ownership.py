"""Whose an OSCORE context is, where several dfud serve one fleet: each has one owner, which alone takes its requests.

A replay window is worth nothing if another process takes what this one has taken. So a context's owner stands in the store, with an
epoch that every change of owner raises by compare and set. Who gets a request of another's context asks the owner for it: the owner
lets go of it and says where its window stands, so that the device notices nothing. Where the owner is dead, or has forgotten it, the
request has to be fresh: an Echo (RFC 8613, B.1.2) is good for one epoch, and taking it ends that epoch, whichever process does. A
process that may not have heard a question (Missed) looks into the store before it takes the next request of each context.

Each process has a slot, led for as long as it lives. Its own Partial IVs are those of its slot, so no two processes use one nonce;
numbers are reserved in the store ahead of their use, since the slot's next holder may have another clock.
"""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import AsyncIterator, Callable

import msgspec
import trio

from dfud.api import Shared, StoreError, contained
from dfud_coap.echo import Echo
from dfud_coap.oscore import Context, Contexts, Header

SLOTS = 16
TRY_S = 1.0  # how long a slot, or a process that does not answer, is tried to be led
ANSWER_S = 0.5
RESERVE_S = 120.0
RENEW_S = 30.0
SKEW_S = 120.0  # by how much the clocks of processes may differ
KEPT_S = 900.0  # after a context was forgotten: longer than any Echo for it is good, with twice the skew
SWEEP_S = 3600.0
TRIES = 4
PAGE = 1000


class Owned(msgspec.Struct, frozen=True):
    """owner: a process, "" none. epoch: grows with every change. at_s: of the last one, on that process' clock."""

    owner: str = ""
    epoch: int = 0
    at_s: float = 0.0


class Held(msgspec.Struct, frozen=True):
    """A slot's. until_ms: numbers below this may have been used."""

    process: str
    until_ms: int
    at_s: float


class Taken(Exception):
    """The request is not acted upon. challenge: the Echo that its sender has to send back; None: it hears nothing."""

    def __init__(self, challenge: bytes | None = None) -> None:
        super().__init__("not acted upon")
        self.challenge = challenge


class Message(msgspec.Struct, frozen=True):
    """What processes say to each other. what: ask, given, nothing, replay."""

    what: str
    context: bytes
    by: str
    to: str
    number: int = 0
    first: int = 0
    seen: int = 0


class Ownership:
    """wall: seconds since the epoch. me: this process while it has a slot, else ""."""

    def __init__(
        self, shared: Shared, contexts: Contexts, spawn: Callable[..., None], wall: Callable[[], float]
    ) -> None:
        self._shared = shared
        self._contexts = contexts
        self._spawn = spawn
        self._wall = wall
        self._echo = Echo(shared.secret, SKEW_S)
        self._turns: dict[bytes, trio.Lock] = {}
        self._asked: dict[bytes, tuple[trio.Event, list[Message]]] = {}
        self.me = ""
        self.missed = 0
        contexts.slots = SLOTS
        contexts.dropped = self._dropped
        shared.listen(self._heard, self._unsure)

    # The slot

    async def run(self) -> None:
        """Have a slot, until cancelled; another one after it was lost. Raises StoreError."""
        numbers = list(range(SLOTS))
        random.shuffle(numbers)
        while True:
            for number in numbers:
                with trio.move_on_after(TRY_S) as trying:
                    async with self._shared.lead(f"slot.{number}"):
                        trying.deadline = float("inf")
                        await self._serve(number)

    async def _serve(self, number: int) -> None:
        name = secrets.token_hex(8)
        contexts, key = self._contexts, f"slot/{number:02}"
        try:
            raw = await self._shared.get(key)
            before = msgspec.json.decode(raw, type=Held) if raw is not None else Held("", 0, 0.0)
            contexts.slot, contexts.ahead_ms = number, 0
            contexts.ahead_ms = max(0, before.until_ms - contexts.now_ms(self._wall()))
            swept_at = trio.current_time() + SWEEP_S
            while True:
                until_ms = contexts.now_ms(self._wall()) + int(RESERVE_S * 1000)
                held = msgspec.json.encode(Held(f"{number}.{name}", until_ms, self._wall()))
                if not await self._shared.put(key, held, raw):
                    return  # somebody else has written it: the lead was lost
                raw, contexts.reserved_ms = held, until_ms
                self.me = f"{number}.{name}"
                if trio.current_time() >= swept_at:
                    swept_at = trio.current_time() + SWEEP_S
                    await self._sweep()
                await trio.sleep(RENEW_S)
        finally:
            self.me = ""
            contexts.disown()

    # Requests

    def is_sure(self, context: Context) -> bool:
        """Say whether nobody else can have become the owner of a context that is here."""
        return bool(self.me) and context.sure == self.missed

    async def still(self, context: Context) -> bool:
        """Look into the store whether a context is still this process'. Raises StoreError."""
        missed, me = self.missed, self.me
        found, _ = await self._stored(context.id_context)
        if not me or me != self.me or found.owner != me or found.epoch != context.epoch:
            return False
        context.sure = missed
        return True

    @contextlib.asynccontextmanager
    async def turn(self, id_context: bytes) -> AsyncIterator[None]:
        """Of requests of one context, one at a time finds out whose it is."""
        lock = self._turns.setdefault(id_context, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._turns.pop(id_context, None)

    async def own(self, header: Header, context: Context, echo: bytes | None) -> tuple[Context, bool]:
        """Make a context this process' own for a request that carries this Echo. Return what stands for it, and whether the
        request is known to be fresh: else the window judges. Raises Taken, StoreError.
        """
        id_context = header.id_context
        number = int.from_bytes(header.partial_iv, "big")
        for _ in range(TRIES):
            missed, me = self.missed, self.me
            if not me:
                raise StoreError("this process has no slot yet", retryable=True)
            found, raw = await self._stored(id_context)
            if found.owner and found.owner != me:
                answer = await self._ask(found.owner, id_context, number)
                if answer is None:
                    if not await self._is_dead(found.owner):
                        raise StoreError(f"process {found.owner} does not answer", retryable=True)
                    await self._put(id_context, Owned("", found.epoch + 1, self._wall()), raw)
                    continue
                if answer.what == "replay":
                    raise Taken
                if answer.what == "given":
                    if await self._put(id_context, Owned(me, found.epoch + 1, self._wall()), raw):
                        context = self._contexts.take_over(context, answer.first, answer.seen)
                        context.epoch, context.sure = found.epoch + 1, missed
                        return context, False
                    continue
            purpose = b"oscore" + id_context + b"%d" % found.epoch
            made_s = self._echo.check_untrusted(echo, purpose, self._wall())
            if made_s is None:
                raise Taken(self._echo.make(purpose, self._wall()))
            if await self._put(id_context, Owned(me, found.epoch + 1, self._wall()), raw):
                context.since_s = made_s
                context = self._contexts.take_over(context, 0, 0)
                context.epoch, context.sure = found.epoch + 1, missed
                return context, True
        raise StoreError("a security context changes its owner again and again", retryable=True)

    async def _stored(self, id_context: bytes) -> tuple[Owned, bytes | None]:
        raw = await self._shared.get(_key(id_context))
        return (Owned() if raw is None else msgspec.json.decode(raw, type=Owned)), raw

    async def _put(self, id_context: bytes, owned: Owned, expect: bytes | None) -> bool:
        return await self._shared.put(_key(id_context), msgspec.json.encode(owned), expect)

    # Between processes

    async def _ask(self, owner: str, id_context: bytes, number: int) -> Message | None:
        """Ask the owner of a context for it; None: it has not answered."""
        event, answers = trio.Event(), list[Message]()
        self._asked[id_context] = event, answers
        try:
            await self._tell(Message("ask", id_context, self.me, owner, number))
            with trio.move_on_after(ANSWER_S):
                await event.wait()
        finally:
            del self._asked[id_context]
        return answers[0] if answers else None

    async def _tell(self, message: Message) -> None:
        await self._shared.tell(msgspec.msgpack.encode(message))

    def _heard(self, body: bytes) -> None:
        with contained("coap.ownership"):
            self._take(msgspec.msgpack.decode(body, type=Message))

    def _take(self, message: Message) -> None:
        if not self.me or message.to != self.me:
            return
        if message.what != "ask":
            event, answers = self._asked.get(message.context, (None, []))
            if event is not None:
                answers.append(message)
                event.set()
            return
        context = self._contexts.get(message.context)
        answer = Message("nothing", message.context, self.me, message.by)
        if context is not None and not context.window.is_new(message.number):
            answer = msgspec.structs.replace(answer, what="replay")
        elif context is not None and self.is_sure(context):
            first, seen = self._contexts.lend(context)
            answer = msgspec.structs.replace(answer, what="given", first=first, seen=seen)
        elif context is not None:
            self._contexts.lend(context)  # its window may be old: whoever asks has to have the device prove itself
        self._spawn(self._answer, answer)

    async def _answer(self, message: Message) -> None:
        with contained("coap.ownership"):
            await self._tell(message)

    def _unsure(self) -> None:
        self.missed += 1

    async def _is_dead(self, owner: str) -> bool:
        """Say whether a process has ended, or has lost its slot and with it all that it had."""
        number = owner.partition(".")[0]
        raw = await self._shared.get(f"slot/{int(number):02}")
        if raw is None or msgspec.json.decode(raw, type=Held).process != owner:
            return True
        dead = False
        with trio.move_on_after(TRY_S):
            async with self._shared.lead(f"slot.{number}"):
                dead = True
        return dead

    # What is over

    def _dropped(self, context: Context) -> None:
        if self.me and not context.lent:
            self._spawn(self._remove_later, context.id_context, self.me)

    async def _remove_later(self, id_context: bytes, me: str) -> None:
        await trio.sleep(KEPT_S)
        with contained("coap.ownership"):
            found, raw = await self._stored(id_context)
            if found.owner == me and self._contexts.get(id_context) is None:
                await self._shared.put(_key(id_context), None, raw)

    async def _sweep(self) -> None:
        """Remove what processes owned that have ended."""
        living = {msgspec.json.decode(raw, type=Held).process for _, raw in await self._shared.all("slot/")}
        after = ""
        while page := await self._shared.all("context/", after=after, limit=PAGE):
            after = page[-1][0]
            for key, raw in page:
                found = msgspec.json.decode(raw, type=Owned)
                if found.owner not in living and self._wall() - found.at_s > SWEEP_S:
                    await self._shared.put(key, None, raw)


def _key(id_context: bytes) -> str:
    return f"context/{id_context.hex()}"
