"""The endpoint behind every transport."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

import msgspec
import trio

from dfud.api import (
    AppChanged,
    Bus,
    Chunks,
    Code,
    Credentials,
    DeviceAddress,
    DeviceChanged,
    Dialect,
    Endpoint,
    EventSink,
    FirmwareChanged,
    NotFoundError,
    PeerError,
    Reply,
    Request,
    Store,
    StoreError,
    Telemetry,
    Waiting,
)
from dfud.controller.controller import Controller
from dfud.endpoint.auth import Authenticator, Denied, Enroller, Session, TooMany
from dfud.endpoint.commands import Commands
from dfud.endpoint.config import EndpointConfig
from dfud.endpoint.dialects import Conversation
from dfud.wire.enrol import decode_enrolment_untrusted, encode_enrolled
from dfud.wire.messages import Type, decode_status_untrusted, encode_command

DFU = "dfu"
ENROL = "enrol"  # the channel of devices that nobody knows yet
WAKING_AT_ONCE = 256
CHUNKS_PER_REQUEST_MAX = 64
CHUNK_BYTES_PER_REQUEST_MAX = 1 << 18

DENIED = Reply(Code.DENIED, error="AuthenticationError", message="Authentication failed")
TOO_MANY = Reply(Code.TOO_MANY, error="TooManyRequests", message="Too many failed attempts", retry_after_s=60)
NOT_FOUND = Reply(Code.NOT_FOUND, error="NotFound", message="No such package or chunk for this device")
AWAY = Reply(Code.AWAY, error="ServiceUnavailable", message="Try again later", retry_after_s=10)
ACCEPTED = Reply(Code.ACCEPTED)


class _Poll(msgspec.Struct):
    """The last status of a session and its answer, as long as nothing has happened that could change it."""

    body: bytes
    reply: Reply
    until_s: float
    poll_s: int


class DeviceEndpoint(Endpoint):
    """Authenticates, decodes, hands to the controller, parks. `run()` must be running for parked devices to be woken."""

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
        enroller: Enroller | None = None,
    ) -> None:
        self._store = store
        self._bus = bus
        self._controller = controller
        self._auth = authenticator
        self.commands = commands
        self._config = config
        self._dialects = dialects
        self._sinks = sinks
        self._seen_s = seen_s
        self._now = now
        self._enroller = enroller
        self._parked: dict[tuple[str, str], set[_Parked]] = {}
        self._sessions_of_app: dict[str, set[tuple[str, str]]] = {}
        self._polls: dict[tuple[str, str], _Poll] = {}
        self._draining = False
        self._wake_in, self._wake = trio.open_memory_channel[_Parked](1_000_000)
        bus.subscribe(DeviceChanged, lambda e: self._changed(e.app, e.device))
        bus.subscribe(AppChanged, lambda e: self._app_changed(e.app))
        bus.subscribe(FirmwareChanged, lambda e: self._app_changed(e.firmware.app))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look again at parked devices for which something changed, until cancelled."""
        async with trio.open_nursery() as nursery:
            # Side by side, so that many of them share one commit.
            for _ in range(WAKING_AT_ONCE):
                nursery.start_soon(self._reconsider_all)
            task_status.started()

    async def _reconsider_all(self) -> None:
        async for parked in self._wake:
            if parked.open:
                await self._reconsider(parked)

    def drain(self) -> None:
        """Answer everybody who is parked, and park nobody any more."""
        self._draining = True
        self.commands.drain()
        for group in list(self._parked.values()):
            for parked in tuple(group):
                parked.answer(ACCEPTED)

    def _changed(self, app: str, device: str) -> None:
        self._polls.pop((app, device), None)
        for parked in tuple(self._parked.get((app, device), ())):
            self._wake_in.send_nowait(parked)

    def _app_changed(self, app: str) -> None:
        for key in [k for k in self._polls if k[0] == app]:
            del self._polls[key]
        for key, group in list(self._parked.items()):
            if key[0] == app:
                for parked in tuple(group):
                    self._wake_in.send_nowait(parked)

    async def _reconsider(self, parked: _Parked) -> None:
        try:
            status = decode_status_untrusted(parked.body)
            command = await self._controller.status(parked.app, parked.device, status, parked.transport, patience_s=0.0)
        except (NotFoundError, StoreError):
            parked.answer(AWAY)
            return
        if command.type in (Type.UPDATE, Type.STOP):
            parked.answer(Reply(Code.COMMAND, DFU, encode_command(command)))
        elif command.type is Type.WAIT and command.poll_s < parked.poll_s:
            # Something is being made for it: it asks again at the time that it is told.
            parked.answer(Reply(Code.COMMAND, DFU, encode_command(command)))

    # Publishing

    def quick(self, request: Request) -> Reply | Waiting | None:
        if request.channel != DFU:
            return None
        session = self._auth.known(request.credentials, request.as_device)
        if session is None:
            return None
        poll = self._polls.get((session.app, session.device))
        if poll is None or poll.body != request.body or self._now() >= poll.until_s:
            return None
        if request.timeout_s <= 0 or self._draining:
            return poll.reply
        return self._park(session, request, poll.poll_s)

    async def post(self, request: Request) -> Reply | Waiting:
        try:
            if request.channel == ENROL:
                return await self._enrol(request)
            session = await self._auth.session(request.peer, request.credentials, request.as_device)
            if request.channel == DFU:
                return await self._status(session, request)
            return await self._publish(session, request)
        except Denied:
            return DENIED
        except TooMany:
            return TOO_MANY
        except PeerError as error:
            return Reply(Code.MALFORMED, error="InvalidFormat", message=str(error))
        except NotFoundError:
            return DENIED
        except StoreError:
            return AWAY

    async def _enrol(self, request: Request) -> Reply:
        if self._enroller is None:
            raise Denied
        enrolment = decode_enrolment_untrusted(request.body)
        await self._auth.enrol(request.peer, enrolment, self._enroller)
        return Reply(Code.COMMAND, ENROL, encode_enrolled(enrolment.device))

    async def _status(self, session: Session, request: Request) -> Reply | Waiting:
        self._bus.publish(DeviceAddress(session.app, session.device, request.peer))
        body = request.body
        if body and (0x80 <= body[0] <= 0x8F or body[0] == 0xDE):
            status = decode_status_untrusted(body)
        else:
            for dialect in self._dialects:
                if dialect.recognises(request.content_type, body):
                    conversation = Conversation(
                        self._controller, self._store, session.app, session.device, request.transport, self._now
                    )
                    return await dialect.answer(request, conversation)
            status = decode_status_untrusted(body)
        patience_s = min(request.timeout_s, self._config.poll_max_s) or 5.0
        command = await self._controller.status(
            session.app, session.device, status, request.transport, patience_s=patience_s
        )
        reply = Reply(Code.COMMAND, DFU, encode_command(command))
        key = (session.app, session.device)
        calm = command.type is Type.SYNC or (command.type is Type.WAIT and command.poll_s >= 60)
        if calm:
            if len(self._polls) > 500_000:
                self._polls.clear()
            self._polls[key] = _Poll(body, reply, self._now() + min(self._seen_s, command.poll_s), command.poll_s)
        else:
            self._polls.pop(key, None)
        if command.type in (Type.UPDATE, Type.STOP) or request.timeout_s <= 0 or self._draining or not calm:
            return reply
        return self._park(session, request, command.poll_s)

    def _park(self, session: Session, request: Request, poll_s: int) -> Waiting:
        timeout_s = min(request.timeout_s, self._config.poll_max_s, poll_s)
        parked = _Parked(self, session.app, session.device, request.body, request.transport, timeout_s, poll_s)
        self._parked.setdefault((session.app, session.device), set()).add(parked)
        return parked

    def forget(self, parked: _Parked) -> None:
        group = self._parked.get((parked.app, parked.device))
        if group is not None:
            group.discard(parked)
            if not group:
                del self._parked[(parked.app, parked.device)]

    @property
    def parked(self) -> int:
        """How many devices wait."""
        return sum(len(group) for group in self._parked.values())

    async def _publish(self, session: Session, request: Request) -> Reply | Waiting:
        """Take telemetry. Whoever waits does so before the event is out, so that no quick answer to it is lost."""
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
                session.app,
                session.device,
                sender,
                request.channel,
                request.body,
                request.content_type,
                request.data_schema,
                self._now(),
                str(uuid.uuid4()),
            )
            for sink in self._sinks:
                await sink.take(telemetry)
            self._bus.publish(telemetry)
        except BaseException:
            if waiting is not None:
                waiting.cancel()
            raise
        kept = self.commands.take(session.app, session.device)
        if kept is not None:
            if waiting is not None:
                waiting.cancel()
            return kept
        return waiting or ACCEPTED

    # Chunks

    def quick_chunks(
        self, peer: str, credentials: Credentials, package: str, first: int, last: int
    ) -> Chunks | Reply | None:
        session = self._auth.known(credentials)
        if session is None:
            return None
        allowed = self._controller.package_of(session.app, session.device)
        found = self._controller.chunks_in_memory(package)
        if allowed is None or found is None:
            return None
        return self._cut(session, allowed, package, found.chunks, first, last)

    async def chunks(self, peer: str, credentials: Credentials, package: str, first: int, last: int) -> Chunks | Reply:
        try:
            session = await self._auth.session(peer, credentials)
            allowed = await self._controller.load_package_of(session.app, session.device)
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
        for number in range(first + 1, min(last + 1, first + CHUNKS_PER_REQUEST_MAX, len(chunks))):
            size += len(chunks[number])
            if size > CHUNK_BYTES_PER_REQUEST_MAX:
                break
            bodies.append(chunks[number])
        self._controller.fetched(session.app, session.device, package, first)
        return Chunks(package, first, bodies)

    # Keys

    async def key_for(self, transport: str, identity: str) -> bytes | None:
        try:
            return await self._auth.psk(identity)
        except StoreError:
            return None

    def key_for_cached(self, transport: str, identity: str) -> bytes | None:
        return self._auth.psk_cached(identity)


class _Parked(Waiting):
    """A device that waits for something new."""

    __slots__ = ("_endpoint", "_reply", "_wake", "app", "body", "device", "open", "poll_s", "timeout_s", "transport")

    def __init__(
        self,
        endpoint: DeviceEndpoint,
        app: str,
        device: str,
        body: bytes,
        transport: str,
        timeout_s: float,
        poll_s: int,
    ) -> None:
        self._endpoint = endpoint
        self.app = app
        self.device = device
        self.body = body
        self.transport = transport
        self.timeout_s = timeout_s
        self.poll_s = poll_s
        self.open = True
        self._wake: Callable[[Reply], None] | None = None
        self._reply: Reply | None = None

    def answer(self, reply: Reply) -> None:
        if not self.open:
            return
        self._close()
        self._reply = reply
        if self._wake is not None:
            self._wake(reply)

    def _close(self) -> None:
        self.open = False
        self._endpoint.forget(self)

    def listen(self, wake: Callable[[Reply], None]) -> None:
        self._wake = wake
        if self._reply is not None:
            wake(self._reply)

    def expire(self) -> Reply:
        self._close()
        return self._reply or ACCEPTED

    def cancel(self) -> None:
        self._close()
