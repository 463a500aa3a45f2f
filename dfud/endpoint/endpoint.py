"""The endpoint behind every transport. Whatever happens in one request, its methods answer it and raise nothing."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence

import msgspec
import trio

from dfud.api import (
    Aged,
    AppChanged,
    Bus,
    Cache,
    Capability,
    Chunks,
    Code,
    Credentials,
    DeploymentChanged,
    DeviceAddress,
    DeviceChanged,
    DeviceStateChanged,
    Dialect,
    Endpoint,
    EventSink,
    FirmwareChanged,
    Missed,
    NotFoundError,
    PeerError,
    PolicyChanged,
    Reply,
    Request,
    Shared,
    Store,
    StoreError,
    Telemetry,
    Waiting,
    contained,
    note,
)
from dfud.controller.controller import Controller
from dfud.endpoint.again import Again
from dfud.endpoint.answers import DFU, Answered, encoded, is_calm, said_of
from dfud.endpoint.arrivals import Arrivals, Soon
from dfud.endpoint.auth import Authenticator, Enroller, Session
from dfud.endpoint.commands import Commands
from dfud.endpoint.config import EndpointConfig
from dfud.endpoint.denials import Denied, Reason
from dfud.endpoint.dialects import Conversation
from dfud.endpoint.limits import TooMany
from dfud.endpoint.parked import ACCEPTED, Parked, Parking
from dfud.endpoint.pressure import Pressure
from dfud.endpoint.replies import AWAY, DENIED, FAILED, NOT_FOUND, TOO_MANY
from dfud.endpoint.returning import LOOK_S, Returning
from dfud.endpoint.shared import StoreShared
from dfud.endpoint.sinking import Sinks
from dfud.endpoint.spreading import spread_s
from dfud.endpoint.unsure import Concern, policy_of
from dfud.endpoint.waking import Waking, read_status_untrusted
from dfud.model.deployment import Event
from dfud.model.names import check_name
from dfud.wire.enrol import decode_enrolment_untrusted, encode_enrolled
from dfud.wire.messages import Command, Type

log = logging.getLogger("dfud.endpoint")

SENT_MAX = 500_000
ENROL = "enrol"  # the channel of devices that nobody knows yet


class DeviceEndpoint(Endpoint):
    """Authenticates, decodes, hands to the controller, parks. `run()` must be running for parked devices to be woken, and for
    what was kept for devices to be known.

    now: the wall clock, for what is told. clock: one that only moves forward, for what is remembered.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        controller: Controller,
        authenticator: Authenticator,
        commands: Commands,
        config: EndpointConfig,
        *,
        dialects: Sequence[Dialect],
        sinks: Sequence[EventSink],
        seen_s: float,
        now: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        enroller: Enroller | None = None,
    ) -> None:
        self._store = store
        self._bus = bus
        self._controller = controller
        self._auth = authenticator
        self.commands = commands
        self._config = config
        self._dialects = dialects
        self.sinks = Sinks(sinks, config.events_s)
        self._seen_s = seen_s
        self._now = now
        self._clock = clock
        self._enroller = enroller
        self._parking = Parking()
        self._waking = Waking(controller, authenticator, self._parking, self._command)
        self._polls: Cache[tuple[str, str], Answered] = Cache(config.polls, lambda key: key[0])
        self._slots = authenticator.slots
        self._policy = Concern(store, policy_of, self._slots.forget_app_calm)
        self._again = Again(authenticator, self._policy, controller.fetches, clock)
        self._arrivals = Arrivals(bus, controller, authenticator, self._policy, self._settled)
        self._sent: Cache[tuple[str, str], int] = Cache(min(config.sessions, SENT_MAX))
        self._sends = 0
        self._asked: tuple[Request, bytes] | None = (
            None  # what quick() did not answer, with the digest of its credentials
        )
        self.pressure = Pressure(config.judged_at_once, config.late_s, config.away_s)
        self._draining = False
        self._shared: dict[str, StoreShared] = {}
        bus.subscribe(DeviceChanged, lambda e: self._changed(e.app, e.device, access=e.access or e.deleted))
        bus.subscribe(DeviceStateChanged, lambda e: self._changed(e.app, e.device, access=False))
        bus.subscribe(Missed, lambda e: self._missed(e.app))
        bus.subscribe(Aged, lambda e: self._aged())
        bus.subscribe(AppChanged, self._app_changed)
        bus.subscribe(PolicyChanged, lambda e: self._policy_changed(e.app))
        bus.subscribe(FirmwareChanged, lambda e: self._policy_changed(e.firmware.app))
        bus.subscribe(DeploymentChanged, self._stepped)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read what is kept for devices, then look again at parked ones for which something changed, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.commands.run)
            await nursery.start(self._waking.run)
            nursery.start_soon(self.pressure.watch)
            nursery.start_soon(self._tell_of_return)
            await nursery.start(self._arrivals.run)
            task_status.started()

    async def _tell_of_return(self) -> None:
        """Log how long it takes until the fleet is back, if one comes."""
        returning = Returning(self._clock())
        while not returning.over:
            await trio.sleep(LOOK_S)
            told = returning.look(len(self._slots), self.pressure.turned_away, self._clock())
            if told is not None:
                log.info("the fleet is back", extra=msgspec.structs.asdict(told))

    def drain(self) -> None:
        """Answer everybody who is parked, and park nobody any more."""
        self._draining = True
        self.commands.drain()
        for parked in tuple(self._parking):
            parked.answer(ACCEPTED)

    def _changed(self, app: str, device: str, *, access: bool) -> None:
        self._polls.forget((app, device))
        self._slots.forget_calm(app, device)
        self._parking.device_changed(app, device, access=access)

    def _aged(self) -> None:
        """Nothing is answered from memory until it was looked at again; who is parked is told at the latest when its poll ends."""
        self._slots.forget_all_calm()
        self._polls.forget_all()

    def _missed(self, app: str) -> None:
        if app:
            self._policy.changed(app, deleted=False)
            self._policy_changed(app)
        else:
            self._policy.all_changed()
            self._slots.forget_all_calm()
            self._polls.forget_all()
            self._parking.all_changed()

    def _app_changed(self, event: AppChanged) -> None:
        self._policy.changed(event.app, deleted=event.deleted)
        self._polls.forget_group(event.app)
        self._parking.app_changed(event.app)

    def _policy_changed(self, app: str) -> None:
        self._slots.forget_app_calm(app)
        self._polls.forget_group(app)
        self._parking.app_changed(app)

    def _stepped(self, event: DeploymentChanged) -> None:
        if event.entry.event == Event.SENT:
            self._sends += 1
            self._sent.put((event.entry.app, event.entry.device), self._sends)

    def _command(self, app: str, device: str, command: Command) -> Reply:
        """Write a command; an update says with which decision it was sent, so that a repeated wish is told again."""
        if command.type is not Type.UPDATE:
            return said_of(command, spread_s(command, app, device, self._config.poll_spread))
        told = self._sent.get((app, device), 0)
        return Reply(Code.COMMAND, DFU, encoded(command), told=told or 0)

    # Publishing

    def quick(self, request: Request) -> Reply | Waiting | None:
        # Not contained(): this is what a poll costs.
        try:
            found = self._quick(request)
            # Told before it would be late: who waited for long would have given up by then, and asked again.
            return self.pressure.away() if found is None and self.pressure.full else found
        except Exception as error:
            note("endpoint.quick", error, transport=request.transport, peer=request.peer)
            return FAILED

    def _quick(self, request: Request) -> Reply | Waiting | None:
        if request.channel != DFU:
            return None
        if request.as_device:
            return self._quick_behind(request)
        digest = self._slots.digest(request.credentials)
        slot = self._auth.slot_of(digest)
        reply = self._slots.calm(slot, request.body, self._clock()) if slot >= 0 else None
        if reply is None:
            self._asked = (request, digest)
            return None
        waits = request.timeout_s > 0 and not self._draining
        if not waits and not self._policy.unsure:
            return reply
        session = Session(*self._slots.session(slot))
        if session.app in self._policy.unsure:
            return None
        return self._park(session, request, self._slots.poll_s(slot)) if waits else reply

    def quick_again(self, request: Request) -> Callable[[], Reply | None] | None:
        return self._again.poll(request)

    def _quick_behind(self, request: Request) -> Reply | Waiting | None:
        """As _quick(), for a device that a gateway speaks for."""
        session = self._auth.known(request.credentials, request.as_device)
        poll = self._polls.get((session.app, session.device)) if session is not None else None
        if session is None or poll is None or poll.body != request.body or self._clock() >= poll.until_s:
            return None
        if request.timeout_s <= 0 or self._draining:
            return poll.reply
        return self._park(session, request, poll.poll_s)

    def soon(self, request: Request) -> Waiting | None:
        if request.channel != DFU or request.timeout_s > 0 or not self._arrivals.takes(request):
            return None
        if self.pressure.full:
            return None
        asked, self._asked = self._asked, None
        same = asked is not None and asked[0] is request
        digest = asked[1] if asked is not None and same else self._slots.digest(request.credentials)
        return Soon(self._arrivals, request, digest, self.pressure, self._alone)

    def is_full(self) -> bool:
        return self.pressure.full

    async def _alone(self, request: Request) -> Reply:
        with contained("endpoint.post", transport=request.transport, channel=request.channel[:64], peer=request.peer):
            found = await self._post(request)
            return found.expire() if isinstance(found, Waiting) else found
        return FAILED

    async def post(self, request: Request) -> Reply | Waiting:
        self._asked = None
        if not await self.pressure.turn():
            return self.pressure.away()
        try:
            if request.channel == DFU and (found := await self._arrivals.take(request)) is not None:
                return found
            with contained(
                "endpoint.post", transport=request.transport, channel=request.channel[:64], peer=request.peer
            ):
                return await self._post(request)
        finally:
            self.pressure.end()
        return FAILED

    async def _post(self, request: Request) -> Reply | Waiting:
        try:
            if request.channel == ENROL:
                return await self._enrol(request)
            session = await self._auth.session(request.peer, request.credentials, request.as_device)
            if request.channel == DFU:
                return await self._status(session, request)
            return await self._publish(session, request)
        except (Denied, NotFoundError):
            return DENIED
        except TooMany:
            return TOO_MANY
        except PeerError as error:
            return Reply(Code.MALFORMED, error="InvalidFormat", message=str(error))
        except StoreError:
            return AWAY

    async def _enrol(self, request: Request) -> Reply:
        if self._enroller is None:
            raise Denied(Reason.CODE)
        enrolment = decode_enrolment_untrusted(request.body)
        await self._auth.enrol(request.peer, enrolment, self._enroller)
        return Reply(Code.COMMAND, ENROL, encode_enrolled(enrolment.device))

    async def _status(self, session: Session, request: Request) -> Reply | Waiting:
        self._bus.publish(DeviceAddress(session.app, session.device, request.peer))
        body = request.body
        if body and (0x80 <= body[0] <= 0x8F or body[0] == 0xDE):
            status = read_status_untrusted(body)
        else:
            for dialect in self._dialects:
                if dialect.recognises(request.content_type, body):
                    conversation = Conversation(
                        self._controller, self._store, session.app, session.device, request.transport, self._now
                    )
                    return await dialect.answer(request, conversation)
            status = read_status_untrusted(body)
        patience_s = min(request.timeout_s, self._config.poll_max_s) or 5.0
        key = (session.app, session.device)
        if session.app in self._policy.unsure:
            await self._policy.sure(session.app)
            if (found := self._quick(request)) is not None:
                return found
        await self._policy.sure(session.app)
        reading = self._polls.begin(key)
        try:
            command = await self._controller.status(
                session.app, session.device, status, request.transport, patience_s=patience_s
            )
            answer = self._settled(session, request, command, stale=reading.stale)
            if request.as_device and is_calm(command):
                reply = self._command(session.app, session.device, command)
                self._polls.end(reading, Answered(body, reply, self._calm_until_s(command), command.poll_s))
        finally:
            self._polls.give_up(reading)
        if isinstance(answer, Parked) and reading.stale:
            # What changed while its status was taken came too early to wake it.
            answer.again = True
            self._parking.look_again(answer)
        return answer

    def _settled(
        self, session: Session, request: Request, command: Command, digest: bytes = b"", *, stale: bool = False
    ) -> Reply | Parked:
        """Answer a status with its command, or park who sent it; remember what stays true.

        digest: of its credentials, where it is known; stale: something has changed since.
        """
        reply = self._command(session.app, session.device, command)
        calm = is_calm(command)
        if not calm:
            self._polls.forget((session.app, session.device))
            self._slots.forget_calm(session.app, session.device)
        elif not stale and not request.as_device:
            slot = self._auth.slot_of(digest or self._slots.digest(request.credentials))
            if slot >= 0:
                self._slots.keep_calm(slot, request.body, reply, self._calm_until_s(command), command.poll_s)
        if request.timeout_s <= 0 or self._draining or not calm:
            return reply
        return self._park(session, request, command.poll_s)

    def _calm_until_s(self, command: Command) -> float:
        # A wait may end with time, which nobody tells; being in sync does not.
        calm_s = self._seen_s if command.type is Type.SYNC else min(self._seen_s, command.poll_s)
        return self._clock() + calm_s

    def _park(self, session: Session, request: Request, poll_s: int) -> Parked:
        timeout_s = min(request.timeout_s, self._config.poll_max_s, poll_s)
        parked = Parked(self._parking, session.app, session.device, request, timeout_s=timeout_s, poll_s=poll_s)
        self._parking.add(parked)
        return parked

    @property
    def parked(self) -> int:
        """How many devices wait."""
        return len(self._parking)

    async def _publish(self, session: Session, request: Request) -> Reply | Waiting:
        """Take telemetry. Whoever waits does so before the event is out, so that no quick answer to it is lost."""
        check_name("channel", request.channel)
        waiting = None
        if request.timeout_s > 0 and not self._draining:
            timeout_s = min(request.timeout_s, self._config.poll_max_s)
            waiting = self.commands.wait(session.app, session.device, timeout_s)
        try:
            sender = session.device
            if request.as_device:
                gateway = await self._auth.session(request.peer, request.credentials)
                sender = gateway.device
            telemetry = Telemetry(
                app=session.app,
                device=session.device,
                sender=sender,
                channel=request.channel,
                body=request.body,
                content_type=request.content_type,
                data_schema=request.data_schema,
                at_s=self._now(),
                id=str(uuid.uuid4()),
            )
            problem = await self.sinks.take(telemetry)
            kept: Reply | None = None
            if problem is None:
                self._bus.publish(telemetry)
                kept = await self.commands.take(session.app, session.device)
        except BaseException:
            if waiting is not None:
                waiting.cancel()
            raise
        if problem is not None:
            if waiting is not None:
                waiting.cancel()
            return problem
        if kept is not None:
            if waiting is not None:
                waiting.cancel()
            return kept
        return waiting or ACCEPTED

    # Chunks

    def quick_chunks(
        self, peer: str, credentials: Credentials, package: str, first: int, last: int
    ) -> Chunks | Reply | None:
        try:
            return self._quick_chunks(credentials, package, first, last)
        except Exception as error:
            note("endpoint.quick_chunks", error, peer=peer)
            return FAILED

    def _quick_chunks(self, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply | None:
        session = self._auth.known(credentials)
        if session is None:
            return None
        allowed = self._controller.fetches.package_of(session.app, session.device)
        found = self._controller.fetches.package(package)
        if allowed is None or found is None or allowed != package:
            return None
        return self._cut(session, allowed, package, found.chunks, first, last)

    def chunk_again(self, credentials: Credentials, package: str) -> Callable[[int, float], bytes | None] | None:
        return self._again.chunk(credentials, package)

    async def chunks(self, peer: str, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply:
        with contained("endpoint.chunks", peer=peer):
            return await self._chunks(peer, credentials, package, first, last)
        return FAILED

    async def _chunks(self, peer: str, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply:
        try:
            session = await self._auth.session(peer, credentials)
            allowed = await self._controller.load_package_of(session.app, session.device, package)
            found = await self._controller.load_chunks(package) if allowed == package else None
        except (Denied, NotFoundError):
            return DENIED
        except TooMany:
            return TOO_MANY
        except StoreError:
            return AWAY
        if found is None:
            return NOT_FOUND
        return self._cut(session, allowed, package, found.chunks, first, last)

    def _cut(
        self, session: Session, allowed: str, package: str, chunks: Sequence[bytes], first: int, last: int
    ) -> Chunks | Reply:
        if allowed != package or not 0 <= first <= last or first >= len(chunks):
            return NOT_FOUND
        bodies = [chunks[first]]
        size = len(bodies[0])
        for number in range(first + 1, min(last + 1, first + self._config.chunks_per_request, len(chunks))):
            size += len(chunks[number])
            if size > self._config.chunk_bytes_per_request:
                break
            bodies.append(chunks[number])
        self._controller.fetched(session.app, session.device, package, first)
        return Chunks(package, first, bodies)

    # Keys

    async def key_for(self, transport: str, identity: str) -> bytes | None:
        with contained("endpoint.key_for", transport=transport):
            try:
                return await self._auth.psk(identity)
            except StoreError:
                return None
        return None

    def shared(self, transport: str) -> Shared | None:
        if Capability.SHARED not in self._store.capabilities:
            return None
        if transport not in self._shared:
            self._shared[transport] = StoreShared(self._store, self._bus, transport, self._auth.secret_of(transport))
        return self._shared[transport]

    def key_for_cached(self, transport: str, identity: str) -> bytes | None:
        try:
            return self._auth.psk_cached(identity)
        except Exception as error:
            note("endpoint.key_for", error, transport=transport)
            return None
