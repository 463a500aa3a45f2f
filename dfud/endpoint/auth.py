"""Who a device is. Every way of being wrong gives the same answer; a known header costs one dictionary look-up."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec
import trio

from dfud.api import (
    Aged,
    App,
    AppChanged,
    Bus,
    Cache,
    Credentials,
    Device,
    DeviceChanged,
    DeviceView,
    Missed,
    Store,
    StoreError,
)
from dfud.endpoint.basic import parse_basic_untrusted
from dfud.endpoint.certificates import TrustAnchors, read_certificate_untrusted, valid
from dfud.endpoint.config import EndpointConfig, password_limits
from dfud.endpoint.crowd import Crowd
from dfud.endpoint.denials import Denied, Reason
from dfud.endpoint.guesses import Guesses
from dfud.endpoint.limits import TooMany
from dfud.endpoint.remembered import Judgement, Remembered
from dfud.endpoint.slots import Slots
from dfud.endpoint.unsure import Concern, access_of
from dfud.model.address import limited
from dfud.model.credentials import is_slow, keys_of, verify
from dfud.model.resources import is_disabled
from dfud.wire.enrol import Enrolment

KEYS_MAX = 100_000
APPS_MAX = 1000
PSK_CACHED_S = 300.0  # a key's validity may end meanwhile
ROUNDS = 3  # how often a judgement is made anew because its records changed while it was made
Key = tuple[bytes, bytes, str, str, str]


class Enroller(Protocol):
    """Makes devices for claim codes; the registry."""

    async def enrol(self, app: str, device: str, code: str, secret: str) -> bool:
        """Return whether `device` now exists with `secret`."""


class Session(msgspec.Struct):
    """A device whose credentials were right. until_s: when its certificate ends, on the wall clock; 0: it has none."""

    app: str
    device: str
    until_s: float = 0.0


class _Known(msgspec.Struct):
    """A pre-shared key. until_s: on the monotonic clock."""

    key: bytes
    until_s: float


Judging = Judgement[Key, Session]
Found = tuple[App, Device]


class Authenticator:
    """Checks credentials against the store; remembers what was right until the app or the device changes.

    now: the wall clock, for validity. clock: one that only moves forward, for limits and for what is remembered. view: reads a
    device; None: the store does.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        config: EndpointConfig,
        key: bytes,
        now: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        *,
        view: Callable[[str, str], Awaitable[DeviceView | None]] | None = None,
    ) -> None:
        self._store = store
        self._key = key
        self._now = now
        self._clock = clock
        # Those of devices behind gateways; all others have a slot.
        self._sessions: Remembered[Key, Session] = Remembered(config.polls)
        self.slots = Slots(config.sessions)
        self._apps: Cache[str, App | None] = Cache(APPS_MAX)
        self._view = view or store.device
        self._access = Concern(store, access_of, self.slots.forget_app)
        self._psk: Remembered[str, _Known] = Remembered(min(config.sessions, KEYS_MAX))
        self._guesses = Guesses(store, bus, config, clock)
        self._limits = password_limits(config)
        self._anchors = TrustAnchors(store)
        # Not of the pool that the store and the packages use, and left behind when dfud stops.
        self._slow = trio.CapacityLimiter(config.slow_checks)
        self._app_changes = 0
        bus.subscribe(DeviceChanged, self._device_changed)
        bus.subscribe(AppChanged, self._app_changed)
        bus.subscribe(Missed, lambda e: self._all_changed())
        bus.subscribe(Aged, lambda e: self._all_changed())
        crowd = Crowd(
            store,
            bus,
            self.slots,
            self._access,
            self._guesses,
            slot=self.slot_of,
            app=self._apps.get,
            key=key,
            limits=self._limits,
        )
        self.judge = crowd.judge

    async def run(self) -> None:
        """Share failures with other processes, until cancelled."""
        await self._guesses.run()

    def _all_changed(self) -> None:
        self._app_changes += 1
        self._anchors.forget()
        self._apps.forget_all()
        self._sessions.all_changed()
        self.slots.forget_all()
        self._psk.all_changed()

    def _device_changed(self, event: DeviceChanged) -> None:
        if not event.access and not event.deleted:
            return
        self._sessions.device_changed(event.app, event.device)
        self.slots.forget(event.app, event.device)
        self._psk.device_changed(event.app, event.device)

    def _app_changed(self, event: AppChanged) -> None:
        self._app_changes += 1
        self._anchors.forget()
        self._apps.forget(event.app)
        self._sessions.app_changed(event.app)
        self._access.changed(event.app, deleted=event.deleted)
        self._psk.app_changed(event.app)

    @staticmethod
    def key(c: Credentials, as_device: str) -> Key:
        return (c.authorization, c.certificate, f"{c.application}\0{c.device}", c.identity, as_device)

    def known(self, credentials: Credentials, as_device: str = "") -> Session | None:
        """Return the session of credentials that were right before, from memory."""
        if as_device:
            found = self._sessions.look_up(self.key(credentials, as_device))
            if found is None:
                return None
            session = found[0]
            if session.until_s and session.until_s < self._now():
                self._sessions.forget(self.key(credentials, as_device))
                return None
            return session
        slot = self.slot(credentials)
        return Session(*self.slots.session(slot)) if slot >= 0 else None

    def slot(self, credentials: Credentials) -> int:
        """Return the slot of a device whose credentials were right before and are so now, or -1."""
        return self.slot_of(self.slots.digest(credentials))

    def slot_of(self, digest: bytes) -> int:
        """Return the slot of a device that is right now, by the digest of its credentials, or -1."""
        slots = self.slots
        slot = slots.find(digest)
        if slot < 0:
            return -1
        if self._access.unsure and slots.session(slot)[0] in self._access.unsure:
            return -1
        ends_s = slots.ends_s[slot]
        return slot if not ends_s or ends_s >= self._now() else -1

    async def _known_again(self, credentials: Credentials) -> Session | None:
        """As known(), of a device whose app has changed: perhaps that does not concern who it is."""
        slot = self.slots.find(self.slots.digest(credentials))
        if slot < 0:
            return None
        app = self.slots.session(slot)[0]
        if app not in self._access.unsure:
            return None
        await self._access.sure(app)
        return self.known(credentials)

    async def session(self, peer: str, credentials: Credentials, as_device: str = "") -> Session:
        """Return who this is, acting for `as_device` if that is given. Raises Denied, TooMany, StoreError.

        What it returns was true when it returns: if a record that it was judged by changes meanwhile, it is judged anew.
        """
        found = self.known(credentials, as_device)
        if found is None and self._access.unsure and not as_device:
            found = await self._known_again(credentials)
        if found is not None:
            return found
        key, address = self.key(credentials, as_device), limited(peer)
        parsed = parse_basic_untrusted(credentials) if credentials.authorization else None
        named = parsed[:2] if parsed is not None else ("", "")
        failed = False
        try:
            await self._guesses.addresses.begin(address)
            try:
                return await self._judged(key, credentials, as_device)
            except Denied:
                failed = True
                raise
            finally:
                self._guesses.end_address(address, failed=failed)
        except Denied as denied:
            self._guesses.denials.tell(denied.reason, denied.app or named[0], denied.device or named[1], address)
            raise
        except TooMany:
            self._guesses.denials.tell(Reason.LIMIT, *named, address)
            raise

    async def _judged(self, key: Key, credentials: Credentials, as_device: str) -> Session:
        for _ in range(ROUNDS):
            judgement = self._sessions.begin(key)
            try:
                app, sender, until_s = await self._identify(credentials, judgement)
                device = await self._act_for(app, sender, as_device, judgement) if as_device else sender
                session = Session(app, device, until_s)
                if as_device:
                    if judgement.keep(session):
                        return session
                    continue
                await self._access.sure(app)
                if judgement.holds():
                    self.slots.keep(self.slots.digest(credentials), app, device, until_s)
                    return session
            finally:
                judgement.give_up()
        raise StoreError("the device's record changes faster than its credentials can be checked", retryable=True)

    async def enrol(self, peer: str, enrolment: Enrolment, enroller: Enroller) -> None:
        """Have a device that nobody knows make itself known. Raises Denied, TooMany, StoreError.

        Wrong codes count as wrong credentials do: for the address, and for the device that is named.
        """
        address = limited(peer)
        named = (enrolment.app, enrolment.device)
        failed = True
        try:
            await self._guesses.addresses.begin(address)
            try:
                await self._guesses.devices.begin(named)
                try:
                    failed = not await enroller.enrol(*named, enrolment.code, enrolment.secret)
                finally:
                    self._guesses.end_device(named, failed=failed)
            finally:
                self._guesses.end_address(address, failed=failed)
        except TooMany:
            self._guesses.denials.tell(Reason.LIMIT, *named, address)
            raise
        if failed:
            self._guesses.denials.tell(Reason.CODE, *named, address)
            raise Denied(Reason.CODE, *named)

    async def _identify(self, credentials: Credentials, judging: Judging) -> tuple[str, str, float]:
        """Return app and device, and until when that is so. Raises Denied."""
        if credentials.identity:
            # Proven by the transport with a key that this class gave out.
            device, _, app = credentials.identity.partition("@")
            found, reason = await self._find(app, unquote(device), judging)
            if found is None:
                raise Denied(reason, app, device)
            return found[0].name, found[1].name, 0.0
        if credentials.certificate and not credentials.authorization:
            return await self._by_certificate(credentials.certificate, judging)
        app, device = await self._by_password(credentials, judging)
        return app, device, 0.0

    async def _by_password(self, credentials: Credentials, judging: Judging) -> tuple[str, str]:
        parsed = parse_basic_untrusted(credentials)
        if parsed is None:
            raise Denied(Reason.MALFORMED)
        app, device, username, password = parsed
        named = (app, device)
        await self._guesses.devices.begin(named)
        failed = False
        try:
            found, reason = await self._find(app, device, judging)
            spec = found[1].spec if found is not None else {}
            if is_slow(spec, username, self._limits):
                # bcrypt and its like are meant to be slow: not on the thread that serves everybody.
                right = await trio.to_thread.run_sync(
                    partial(verify, spec, username, password, self._key, self._limits),
                    limiter=self._slow,
                    abandon_on_cancel=True,
                )
            else:
                right = verify(spec, username, password, self._key, self._limits)
            failed = found is None or not right
            if found is None:
                raise Denied(reason, *named)
            if not right:
                raise Denied(Reason.PASSWORD, *named)
            return found[0].name, found[1].name
        finally:
            self._guesses.end_device(named, failed=failed)

    async def _find(self, app_name: str, device_name: str, judging: Judgement[Any, Any]) -> tuple[Found | None, Reason]:
        """Return an enabled app and its enabled device, by name or alias; else why not."""
        judging.asks()
        app = await self._app(app_name)
        if app is None:
            return None, Reason.UNKNOWN
        if is_disabled(app.spec):
            return None, Reason.DISABLED
        # By its name, as nearly all of them come, for which one read is enough.
        name: str | None = device_name
        judging.found(app_name, device_name)
        view = await self._view(app_name, device_name)
        if view is None:
            judging.asks()
            name = await self._store.find_alias(app_name, device_name)
            if name is None:
                return None, Reason.UNKNOWN
            judging.found(app_name, name)
            view = await self._view(app_name, name)
        if view is None:
            return None, Reason.UNKNOWN
        if is_disabled(view.device.spec):
            return None, Reason.DISABLED
        return (app, view.device), Reason.UNKNOWN

    async def _app(self, name: str) -> App | None:
        return await self._apps.load(name, lambda: self._store.app(name))

    async def _act_for(self, app: str, gateway: str, device: str, judging: Judging) -> str:
        """Return the device that the gateway speaks for; the device must name the gateway."""
        if device == gateway:
            return gateway
        judging.reads(app, device)
        view = await self._store.device(app, device)
        selector = view.device.spec.get("gatewaySelector") if view is not None else None
        names = selector.get("matchNames") if isinstance(selector, dict) else None
        if view is None or not isinstance(names, list) or gateway not in names or is_disabled(view.device.spec):
            raise Denied(Reason.GATEWAY, app, device)
        return device

    async def _by_certificate(self, der: bytes, judging: Judging) -> tuple[str, str, float]:
        """Find the app whose trust anchor signed the certificate, and the device whose name or alias is its subject."""
        presented = read_certificate_untrusted(der)
        if presented is None:
            raise Denied(Reason.MALFORMED)
        now_s, changes = self._now(), self._app_changes
        if not valid(presented.certificate, now_s):
            raise Denied(Reason.CERTIFICATE, device=presented.names[0])
        reason = Reason.CERTIFICATE
        for app, anchor in await self._anchors.issuers(presented, now_s):
            for name in presented.names:
                found, reason = await self._find(app, name, judging)
                if found is not None:
                    if self._app_changes != changes:
                        # Perhaps the anchor is another app's by now, or nobody's.
                        raise StoreError("an app changed while its anchor was looked at", retryable=True)
                    ends = min(presented.certificate.not_valid_after_utc, anchor.not_valid_after_utc)
                    return found[0].name, found[1].name, ends.timestamp()
        raise Denied(reason, device=presented.names[0])

    def secret_of(self, transport: str) -> bytes:
        """Return a secret that the processes on one store, which have the same credential key, have for a transport."""
        return hmac.digest(self._key, b"dfud transport " + transport.encode(), "sha256")

    # Pre-shared keys

    def psk_cached(self, identity: str) -> bytes | None:
        found = self._psk.get(identity)
        return found.key if found is not None and self._clock() < found.until_s else None

    async def psk(self, identity: str) -> bytes | None:
        """Return the first valid pre-shared key of `device@app`, or None."""
        device, _, app = identity.partition("@")
        for _ in range(ROUNDS):
            judging = self._psk.begin(identity)
            try:
                found, _reason = await self._find(app, unquote(device), judging)
                now = datetime.fromtimestamp(self._now(), UTC)
                keys = keys_of(found[1].spec, now, self._key) if found is not None else []
                if not keys:
                    return None
                if judging.keep(_Known(keys[0], self._clock() + PSK_CACHED_S)):
                    return keys[0]
            finally:
                judging.give_up()
        return None
