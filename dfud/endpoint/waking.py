"""Parked devices for which something has changed: looked at many at a time, so that they share a commit; no task for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import trio

from dfud.api import NotFoundError, PeerError, Reply, Request, StoreError, contained
from dfud.controller.controller import Controller
from dfud.controller.keeping import Asked
from dfud.controller.sending import Order
from dfud.controller.together import Taken
from dfud.endpoint.auth import Authenticator
from dfud.endpoint.denials import Denied
from dfud.endpoint.limits import TooMany
from dfud.endpoint.parked import Parked, Parking
from dfud.endpoint.replies import AWAY, DENIED, FAILED, TOO_MANY
from dfud.wire import usual
from dfud.wire.messages import Command, Status, Type

TOGETHER = 256  # devices of one commit: a few milliseconds
STORED_AT_ONCE = 2  # groups: one that is written, and one that is ready for when that is done
ALONE_AT_ONCE = 64
REMEMBERED_BYTES = 512  # a status is a hundred; larger ones say something that is not said again


def read_status_untrusted(body: bytes) -> Status:
    """Read a status. The same few bodies come from a whole fleet again and again. Raises PeerError."""
    return _remembered(body) if len(body) <= REMEMBERED_BYTES else usual.read_status_untrusted(body)


@lru_cache(maxsize=4096)
def _remembered(body: bytes) -> Status:
    return usual.read_status_untrusted(body)


class Waking:
    """Looks again at what `parking` hands out. reply: how a command is written for a device."""

    def __init__(
        self,
        controller: Controller,
        authenticator: Authenticator,
        parking: Parking,
        reply: Callable[[str, str, Command], Reply],
    ) -> None:
        self._controller = controller
        self._auth = authenticator
        self._parking = parking
        self._reply = reply
        # Each is in it once at most, as in the parking's own queue.
        self._alone_in, self._alone = trio.open_memory_channel[Parked](float("inf"))
        self._making: dict[str, list[Parked]] = {}
        self._storing = trio.Semaphore(STORED_AT_ONCE)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at them until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(ALONE_AT_ONCE):
                nursery.start_soon(self._look_alone)
            task_status.started()
            while True:
                group = [await self._parking.next()]
                # Whoever woke this one may be about to wake others.
                await trio.lowlevel.checkpoint()
                group += self._parking.more(TOGETHER - 1)
                with contained("endpoint.wake", devices=len(group)) as guard:
                    await self._look(group, nursery)
                if guard.error is not None:
                    for parked in group:
                        self._alone_in.send_nowait(parked)

    async def _look(self, group: Sequence[Parked], nursery: trio.Nursery) -> None:
        asked: list[Asked] = []
        several: list[Parked] = []
        for parked in group:
            request = parked.request
            if parked.again and self._auth.known(request.credentials, request.as_device) is None:
                self._alone_in.send_nowait(parked)  # its credentials may be slow to check
                continue
            parked.again = False
            status = read_status_untrusted(request.body)
            asked.append(Asked(parked.app, parked.device, status, request.transport))
            several.append(parked)
        taken = await self._controller.take(asked)
        try:
            pending = taken.pending
            waits = set(pending)
            for number, parked in enumerate(several):
                if number not in waits:
                    self._decided(parked, taken.answers[number], nursery)
            if pending:
                # The next group is looked at while this one is stored.
                await self._storing.acquire()
                nursery.start_soon(self._store, taken, [(number, several[number]) for number in pending], nursery)
        except BaseException:
            taken.give_up()
            raise

    async def _store(self, taken: Taken, those: Sequence[tuple[int, Parked]], nursery: trio.Nursery) -> None:
        try:
            with contained("endpoint.wake", devices=len(those)) as guard:
                await taken.store()
                for number, parked in those:
                    self._decided(parked, taken.answers[number], nursery)
            if guard.error is not None:
                for _, parked in those:
                    self._alone_in.send_nowait(parked)
        finally:
            self._storing.release()

    def _decided(self, parked: Parked, answer: Command | Order | None, nursery: trio.Nursery) -> None:
        if isinstance(answer, Command):
            self._answer(parked, answer)
        elif answer is None or parked.made:
            self._alone_in.send_nowait(parked)
        elif (key := self._controller.key_of(answer)) in self._making:
            self._making[key].append(parked)
        else:
            self._making[key] = [parked]
            nursery.start_soon(self._make, key, answer)

    async def _make(self, key: str, order: Order) -> None:
        """Have a package made that parked devices wait for, then look at them again; they go on being parked."""
        first = self._making[key][0]
        done = False
        with contained("endpoint.wake", app=first.app, device=first.device):
            try:
                await self._controller.make(order, (first.app, first.device))
                done = True
            except StoreError:
                pass  # each hears by itself what that means for it
        for parked in self._making.pop(key):
            parked.made = True
            if done:
                self._parking.look_again(parked)
            else:
                self._alone_in.send_nowait(parked)

    async def _look_alone(self) -> None:
        async for parked in self._alone:
            if not parked.open:
                continue
            with contained("endpoint.wake", app=parked.app, device=parked.device) as guard:
                await self._reconsider(parked)
            if guard.error is not None:
                parked.answer(FAILED)

    async def _reconsider(self, parked: Parked) -> None:
        request: Request = parked.request
        try:
            if parked.again:
                parked.again = False
                await self._auth.session(request.peer, request.credentials, request.as_device)
            status = read_status_untrusted(request.body)
            command = await self._controller.status(
                parked.app, parked.device, status, request.transport, patience_s=0.0
            )
        except (Denied, NotFoundError, PeerError):
            parked.answer(DENIED)
        except TooMany:
            parked.answer(TOO_MANY)
        except StoreError:
            parked.answer(AWAY)
        else:
            self._answer(parked, command)

    def _answer(self, parked: Parked, command: Command) -> None:
        # A wait that is shorter than its own: something is being made for it, and it asks again at the time that it is told.
        soon = command.type is Type.WAIT and command.poll_s < parked.poll_s
        if soon or command.type in (Type.UPDATE, Type.STOP):
            parked.answer(self._reply(parked.app, parked.device, command))
