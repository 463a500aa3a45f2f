"""Statuses that come at one time: their devices are read at once and what they say is stored in one commit.

Nobody waits for others to come: whoever is there when the loop gets round is taken. What cannot be answered here is left to whoever
sent it in: each by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from dfud.api import Bus, DeviceAddress, PeerError, Reply, Request, StoreError, Waiting, contained, note
from dfud.controller.controller import Controller
from dfud.controller.keeping import Asked
from dfud.controller.sending import Order
from dfud.controller.together import Taken
from dfud.endpoint.auth import Authenticator, Session
from dfud.endpoint.crowd import Present
from dfud.endpoint.pressure import Pressure, Waiter
from dfud.endpoint.replies import AWAY, DENIED
from dfud.endpoint.unsure import Concern
from dfud.endpoint.waking import read_status_untrusted
from dfud.wire.messages import Command

SOON_S = 300.0  # a disk may hang
TOGETHER = 256  # statuses of one commit: a few milliseconds
STORING = 2  # commits under way: one is written, the next one waits for it; who comes then may as well share the one after that
GATHER_S = 0.02  # a disk may be slow, and what they say need not be stored at all
Alone = Callable[[Request], Awaitable[Reply]]
Settle = Callable[[Session, Request, Command, bytes], Reply | Waiting]


class _Arrival:
    """One that waits for its answer in its own task, until `resume()`."""

    __slots__ = ("answer", "digest", "later", "request", "task", "waits")

    def __init__(self, request: Request, digest: bytes) -> None:
        self.request = request
        self.digest = digest
        self.task = trio.lowlevel.current_task()
        self.answer: Reply | Waiting | None = None
        self.waits = True
        self.later = False

    def resume(self, answer: Reply | Waiting | None = None) -> None:
        if self.waits:
            self.waits = False
            self.answer = answer
            trio.lowlevel.reschedule(self.task)

    def gone(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self.waits = False
        return trio.lowlevel.Abort.SUCCEEDED


class Soon(Waiter, Waiting):
    """One that waits without a task: for its turn, then for its answer. digest: of its credentials; alone: takes it by itself, where
    it has to be."""

    __slots__ = ("_arrivals", "_pressure", "_reply", "_wake", "alone", "digest", "later", "request", "waits")
    timeout_s = SOON_S

    def __init__(self, arrivals: Arrivals, request: Request, digest: bytes, pressure: Pressure, alone: Alone) -> None:
        super().__init__()
        self.request = request
        self.digest = digest
        self.alone = alone
        self.waits = True
        self.later = False
        self._arrivals = arrivals
        self._pressure: Pressure | None = pressure
        self._reply: Reply | None = None
        self._wake: Callable[[Reply], None] | None = None
        pressure.soon(self)
        if self.has_turn:
            arrivals.enter(self)

    def told(self) -> None:
        if self.has_turn:
            self._arrivals.enter(self)
        elif self._pressure is not None:
            self.end(self._pressure.away())

    def resume(self, answer: Reply | Waiting | None = None) -> None:
        """Give it its answer; None: it has to be taken by itself."""
        if not self.waits:
            return
        if type(answer) is Reply:
            self.end(answer)
            return
        self.waits = False
        reply, left = AWAY, False
        try:
            if answer is None:
                left = self._arrivals.leave_alone(self)
            else:
                reply = answer.expire() if isinstance(answer, Waiting) else answer
        finally:
            if not left:
                self.end(reply)

    def end(self, reply: Reply) -> None:
        """Answer it, unless nobody waits any longer."""
        if self._pressure is None:
            return
        self._over()
        self._reply = reply
        if self._wake is not None:
            # Not contained(): this is what a report costs, and a wake-up cannot be cancelled.
            try:
                self._wake(reply)
            except Exception as error:
                note("endpoint.arrivals", error, transport=self.request.transport)

    def _over(self) -> None:
        self.waits = False
        if self._pressure is not None:
            pressure, self._pressure = self._pressure, None
            pressure.leave(self)

    def listen(self, wake: Callable[[Reply], None]) -> None:
        self._wake = wake
        if self._reply is not None:
            wake(self._reply)

    def expire(self) -> Reply:
        self._over()
        return self._reply or AWAY

    def cancel(self) -> None:
        self._over()


class Arrivals:
    """settle: gives the answer to a status with its command; policy: says whether answers to an app's devices count."""

    def __init__(
        self, bus: Bus, controller: Controller, authenticator: Authenticator, policy: Concern, settle: Settle
    ) -> None:
        self._bus = bus
        self._controller = controller
        self._auth = authenticator
        self._policy = policy
        self._settle = settle
        self._waiting: list[_Arrival | Soon] = []
        self._nursery: trio.Nursery | None = None
        self._idle = trio.lowlevel.ParkingLot()
        self._storing = 0
        self._gathered = trio.lowlevel.ParkingLot()
        self._runs = False

    def takes(self, request: Request) -> bool:
        """Whether such a request is taken here at all."""
        return self._runs and not request.as_device

    def enter(self, one: Soon) -> None:
        """Take one whose turn has come."""
        if self._runs:
            self._wait(one)
        else:
            one.resume()

    def _wait(self, one: _Arrival | Soon) -> None:
        self._waiting.append(one)
        if self._idle:
            self._idle.unpark()
        if len(self._waiting) >= TOGETHER and self._gathered:
            self._gathered.unpark()

    async def _gather(self) -> None:
        """Let others come while earlier ones are being stored: under load many share a commit, and nobody waits for a timer."""
        with trio.move_on_after(GATHER_S):
            while self._storing >= STORING and len(self._waiting) < TOGETHER:
                await self._gathered.park()

    def leave_alone(self, one: Soon) -> bool:
        """Have one taken by itself; return whether that is done: it is not when dfud stops."""
        if self._nursery is None:
            return False
        self._nursery.start_soon(self._by_itself, one)
        return True

    async def _by_itself(self, one: Soon) -> None:
        reply = AWAY
        try:
            reply = await one.alone(one.request)
        finally:
            one.end(reply)

    async def take(self, request: Request) -> Reply | Waiting | None:
        """Return the answer to a status; None: it has to be taken by itself, and nothing was stored of it."""
        if not self.takes(request):
            return None
        one = _Arrival(request, self._auth.slots.digest(request.credentials))
        self._wait(one)
        await trio.lowlevel.wait_task_rescheduled(one.gone)
        return one.answer

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer them until cancelled."""
        self._runs = True
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    if not self._waiting:
                        await self._idle.park()
                    if self._storing >= STORING:
                        await self._gather()
                    group, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
                    try:
                        with contained("endpoint.arrivals", devices=len(group)):
                            await self._take([one for one in group if one.waits], nursery)
                    finally:
                        _resume(one for one in group if not one.later)
        finally:
            self._runs = False
            self._nursery = None
            _resume(self._waiting)

    async def _take(self, group: Sequence[_Arrival | Soon], nursery: trio.Nursery) -> None:
        try:
            outcomes = await self._auth.judge([one.request for one in group], [one.digest for one in group])
        except StoreError:
            return
        heard = self._bus.hears(DeviceAddress)
        asked: list[Asked] = []
        whose: list[tuple[_Arrival | Soon, Session, bytes]] = []
        for one, outcome in zip(group, outcomes, strict=True):
            if outcome is None:
                continue
            if not isinstance(outcome, Present):
                one.resume(DENIED)
                continue
            request, app, device = one.request, outcome.app, outcome.device
            body = request.body
            # What is said in other dialects, or in none, is read elsewhere.
            if not body or not (0x80 <= body[0] <= 0x8F or body[0] == 0xDE) or not self._policy.is_sure(app):
                continue
            try:
                status = read_status_untrusted(body)
            except PeerError:
                continue
            if heard:
                self._bus.publish(DeviceAddress(app, device, request.peer))
            asked.append(Asked(app, device, status, request.transport, outcome.view))
            whose.append((one, Session(app, device), outcome.digest))
        if not asked:
            return
        taken = await self._controller.take(asked)
        try:
            pending = set(taken.pending)
            for number, (one, session, digest) in enumerate(whose):
                if number not in pending:
                    self._answer(one, session, digest, taken.answers[number])
            for number in pending:
                whose[number][0].later = True
            if pending:
                nursery.start_soon(self._store, taken, [(number, *whose[number]) for number in pending])
        except BaseException:
            taken.give_up()
            raise

    def _answer(self, one: _Arrival | Soon, session: Session, digest: bytes, answer: Command | Order | None) -> None:
        if isinstance(answer, Command) and one.waits:
            one.resume(self._settle(session, one.request, answer, digest))
        else:
            one.resume()

    async def _store(self, taken: Taken, those: Sequence[tuple[int, _Arrival | Soon, Session, bytes]]) -> None:
        self._storing += 1
        try:
            with contained("endpoint.arrivals", devices=len(those)):
                await taken.store()
                for number, one, session, digest in those:
                    self._answer(one, session, digest, taken.answers[number])
        finally:
            self._storing -= 1
            self._gathered.unpark()
            _resume(one for _, one, _, _ in those)


def _resume(those: Iterable[_Arrival | Soon]) -> None:
    """Let go on who still waits, whatever becomes of one of them."""
    for one in those:
        if one.waits:
            with contained("endpoint.arrivals"):
                one.resume()
