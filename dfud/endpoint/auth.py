"""Who a device is. Every way of being wrong gives the same answer; a known header costs one dictionary look-up.

Forms of Basic credentials and query parameters: docs/drogue.md.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec
import trio
from cryptography import x509

from dfud.api import App, AppChanged, Bus, Credentials, Device, DeviceChanged, Store
from dfud.endpoint.config import EndpointConfig
from dfud.model.address import limited
from dfud.model.anchors import anchors_of
from dfud.model.credentials import KEYED, keys_of, passwords, verify
from dfud.model.resources import is_disabled
from dfud.model.windows import PerMinute
from dfud.wire.enrol import Enrolment

SESSIONS_MAX = 200_000
AUTHORIZATION_MAX_BYTES = 2048
PSK_CACHED_S = 300.0  # a key's validity may end meanwhile
Key = tuple[bytes, bytes, str, str, str]


class Denied(Exception):
    """The credentials are not right; nobody is told why."""


class TooMany(Exception):
    """Too many wrong credentials from this address, or for what was named."""


class Enroller(Protocol):
    """Makes devices for claim codes; the registry."""

    async def enrol(self, app: str, device: str, code: str, secret: str) -> bool:
        """Return whether `device` now exists with `secret`."""


class Session(msgspec.Struct):
    """A device whose credentials were right. `poll` is the endpoint's, for answering an unchanged status at once."""

    app: str
    device: str
    poll: Any = None


def parse_basic_untrusted(credentials: Credentials) -> tuple[str, str, str | None, str] | None:
    """Return (app, device, username, password) as the header and the query parameters name them, or None.

    username None: the password is the device's own.
    """
    scheme, _, value = credentials.authorization.partition(b" ")
    if scheme.lower() != b"basic" or len(value) > AUTHORIZATION_MAX_BYTES:
        return None
    try:
        user, colon, password = base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    if not colon or not user:
        return None
    app, device = credentials.application, credentials.device
    if app and device:
        return app, device, user, password
    if app:
        return app, user, None, password
    name, at, of_app = user.partition("@")
    if not at:
        return None
    if device:
        return of_app, device, unquote(name), password
    return of_app, unquote(name), None, password


class Authenticator:
    """Checks credentials against the store; remembers what was right until the app or the device changes."""

    def __init__(self, store: Store, bus: Bus, config: EndpointConfig, key: bytes, now: Callable[[], float]) -> None:
        self._store = store
        self._key = key
        self._now = now
        self._sessions: dict[Key, Session] = {}
        self._of_device: dict[tuple[str, str], set[Key]] = {}
        self._addresses = PerMinute(config.failures_per_address)
        self._devices = PerMinute(config.failures_per_device)
        self._anchors: dict[str, list[tuple[str, x509.Certificate]]] | None = None
        self._psk: dict[str, tuple[bytes, float]] = {}
        self._identities: dict[tuple[str, str], set[str]] = {}
        bus.subscribe(DeviceChanged, self._device_changed)
        bus.subscribe(AppChanged, self._app_changed)

    def _device_changed(self, event: DeviceChanged) -> None:
        for key in self._of_device.pop((event.app, event.device), ()):
            self._sessions.pop(key, None)
        for identity in self._identities.pop((event.app, event.device), ()):
            self._psk.pop(identity, None)

    def _app_changed(self, event: AppChanged) -> None:
        self._anchors = None
        for app, device in [k for k in (*self._of_device, *self._identities) if k[0] == event.app]:
            self._device_changed(DeviceChanged(app, device))

    @staticmethod
    def key(c: Credentials, as_device: str) -> Key:
        return (c.authorization, c.certificate, f"{c.application}\0{c.device}", c.identity, as_device)

    def known(self, credentials: Credentials, as_device: str = "") -> Session | None:
        """Return the session of credentials that were right before, from memory."""
        return self._sessions.get(self.key(credentials, as_device))

    async def session(self, peer: str, credentials: Credentials, as_device: str = "") -> Session:
        """Return who this is, acting for `as_device` if that is given. Raises Denied, TooMany, StoreError."""
        key = self.key(credentials, as_device)
        found = self._sessions.get(key)
        if found is not None:
            return found
        now_s = self._now()
        peer = limited(peer)
        if self._addresses.blocked(peer, now_s):
            raise TooMany
        try:
            app, sender = await self._identify(credentials, now_s)
            device = await self._act_for(app, sender, as_device) if as_device else sender
        except Denied:
            self._addresses.add(peer, now_s)
            raise
        session = Session(app, device)
        if len(self._sessions) >= SESSIONS_MAX:
            self._sessions.clear()
            self._of_device.clear()
        self._sessions[key] = session
        for name in {device, sender}:
            # Whatever changes a gateway ends what it does for others, too.
            self._of_device.setdefault((app, name), set()).add(key)
        return session

    async def enrol(self, peer: str, enrolment: Enrolment, enroller: Enroller) -> None:
        """Have a device that nobody knows make itself known. Raises Denied, TooMany, StoreError.

        Wrong codes count as wrong credentials do: for the address, and for the device that is named.
        """
        now_s = self._now()
        peer = limited(peer)
        named = (enrolment.app, enrolment.device)
        if self._addresses.blocked(peer, now_s) or self._devices.blocked(named, now_s):
            raise TooMany
        if not await enroller.enrol(enrolment.app, enrolment.device, enrolment.code, enrolment.secret):
            self._addresses.add(peer, now_s)
            self._devices.add(named, now_s)
            raise Denied

    async def _identify(self, credentials: Credentials, now_s: float) -> tuple[str, str]:
        if credentials.identity:
            # Proven by the transport with a key that this class gave out.
            device, _, app = credentials.identity.partition("@")
            found = await self._find(app, unquote(device))
        elif credentials.certificate and not credentials.authorization:
            found = await self._by_certificate(credentials.certificate)
        else:
            return await self._by_password(credentials, now_s)
        if found is None:
            raise Denied
        return found[0].name, found[1].name

    async def _by_password(self, credentials: Credentials, now_s: float) -> tuple[str, str]:
        parsed = parse_basic_untrusted(credentials)
        if parsed is None:
            raise Denied
        app_name, device_name, username, password = parsed
        if self._devices.blocked((app_name, device_name), now_s):
            raise TooMany
        found = await self._find(app_name, device_name)
        spec = found[1].spec if found is not None else {}
        if any(not (isinstance(p, dict) and KEYED in p) for p in passwords(spec, username)):
            # bcrypt and its like are meant to be slow: not on the thread that serves everybody.
            right = await trio.to_thread.run_sync(verify, spec, username, password, self._key)
        else:
            right = verify(spec, username, password, self._key)
        if found is None or not right:
            self._devices.add((app_name, device_name), now_s)
            raise Denied
        return found[0].name, found[1].name

    async def _find(self, app_name: str, device_name: str) -> tuple[App, Device] | None:
        """Return an enabled app and its enabled device, by name or alias."""
        app = await self._store.app(app_name)
        if app is None or is_disabled(app.spec):
            return None
        name = await self._store.find_alias(app_name, device_name)
        view = await self._store.device(app_name, name) if name is not None else None
        if view is None or is_disabled(view.device.spec):
            return None
        return app, view.device

    async def _act_for(self, app: str, gateway: str, device: str) -> str:
        """Return the device that the gateway speaks for; the device must name the gateway."""
        if device == gateway:
            return gateway
        view = await self._store.device(app, device)
        selector = view.device.spec.get("gatewaySelector") if view is not None else None
        names = selector.get("matchNames") if isinstance(selector, dict) else None
        if view is None or not isinstance(names, list) or gateway not in names or is_disabled(view.device.spec):
            raise Denied
        return device

    async def _by_certificate(self, der: bytes) -> tuple[App, Device] | None:
        """Find the app whose trust anchor signed the certificate, and the device whose name or alias is its subject."""
        try:
            certificate = x509.load_der_x509_certificate(der)
            issuer = certificate.issuer.rfc4514_string()
            subject = certificate.subject.rfc4514_string()
            names = [str(a.value) for a in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
            # As Drogue writes a subject, and `drg create device-cert` into spec.alias.
            names.insert(0, ", ".join(f"{a.rfc4514_attribute_name}={a.value!s}" for a in certificate.subject))
        except ValueError:
            return None
        now = datetime.fromtimestamp(self._now(), UTC)
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            return None
        if self._anchors is None:
            self._anchors = await self._load_anchors()
        for app, anchor in self._anchors.get(issuer, ()):
            if not anchor.not_valid_before_utc <= now <= anchor.not_valid_after_utc:
                continue
            try:
                certificate.verify_directly_issued_by(anchor)
            except Exception as error:
                if not isinstance(error, ValueError | TypeError) and type(error).__name__ != "InvalidSignature":
                    raise
                continue
            for name in (subject, *names):
                if (found := await self._find(app, name)) is not None:
                    return found
        return None

    async def _load_anchors(self) -> dict[str, list[tuple[str, x509.Certificate]]]:
        anchors: dict[str, list[tuple[str, x509.Certificate]]] = {}
        offset = 0
        while apps := await self._store.apps(limit=500, offset=offset):
            offset += len(apps)
            for app in apps:
                for certificate in anchors_of(app.spec):
                    anchors.setdefault(certificate.subject.rfc4514_string(), []).append((app.name, certificate))
        return anchors

    # Pre-shared keys

    def psk_cached(self, identity: str) -> bytes | None:
        found = self._psk.get(identity)
        return found[0] if found is not None and self._now() < found[1] else None

    async def psk(self, identity: str) -> bytes | None:
        """Return the first valid pre-shared key of `device@app`, or None."""
        device, _, app = identity.partition("@")
        found = await self._find(app, unquote(device))
        now_s = self._now()
        keys = keys_of(found[1].spec, datetime.fromtimestamp(now_s, UTC), self._key) if found is not None else []
        if found is None or not keys:
            return None
        if len(self._psk) >= SESSIONS_MAX:
            # One device can be named in many ways (aliases, percent-encoding): a stranger could fill this.
            self._psk.clear()
            self._identities.clear()
        self._psk[identity] = (keys[0], now_s + PSK_CACHED_S)
        self._identities.setdefault((found[0].name, found[1].name), set()).add(identity)
        return keys[0]
