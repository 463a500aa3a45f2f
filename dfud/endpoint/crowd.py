"""The credentials of many devices that come at one time: their records are read at once, and nothing is awaited after that.

Only what nearly all of them show is judged here: a password of the device's own name, quickly compared. Whatever is odd is left to
the Authenticator, which judges each by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from dfud.api import (
    Aged,
    App,
    AppChanged,
    Bus,
    Credentials,
    DeviceChanged,
    DeviceStateChanged,
    DeviceView,
    Missed,
    Request,
    Store,
)
from dfud.endpoint.basic import parse_basic_untrusted
from dfud.endpoint.guesses import Guesses
from dfud.endpoint.slots import Slots
from dfud.endpoint.unsure import Concern
from dfud.model.address import limited
from dfud.model.credentials import PasswordLimits, verify_quick
from dfud.model.resources import is_disabled

ANYTHING = ""  # in what has changed: all of it


class Present(msgspec.Struct, frozen=True, gc=False):
    """A device whose credentials are right. digest: of what it showed; view: what is stored of it, if that was read for it now."""

    app: str
    device: str
    digest: bytes
    view: DeviceView | None = None


class Wrong(msgspec.Struct, frozen=True, gc=False):
    """One whose credentials are not. It was counted and told."""


WRONG = Wrong()
Outcome = Present | Wrong | None


class _Shown(msgspec.Struct, gc=False):
    number: int
    digest: bytes
    username: str | None
    password: str


class Crowd:
    """slot: finds the slot of credentials that were right, by their digest; app: reads an app."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        slots: Slots,
        access: Concern,
        guesses: Guesses,
        *,
        slot: Callable[[bytes], int],
        app: Callable[[str], App | None],
        key: bytes,
        limits: PasswordLimits,
    ) -> None:
        self._store = store
        self._slots = slots
        self._access = access
        self._guesses = guesses
        self._slot = slot
        self._app = app
        self._key = key
        self._limits = limits
        self._watches: list[set[str | tuple[str, str]]] = []
        bus.subscribe(DeviceChanged, self._device_changed)
        bus.subscribe(DeviceStateChanged, self._device_changed)
        bus.subscribe(AppChanged, lambda e: self._changed(e.app))
        bus.subscribe(Missed, lambda e: self._changed(e.app or ANYTHING))
        bus.subscribe(Aged, lambda e: self._changed(ANYTHING))

    def _device_changed(self, event: DeviceChanged | DeviceStateChanged) -> None:
        if self._watches:
            self._changed((event.app, event.device))

    def _changed(self, what: str | tuple[str, str]) -> None:
        for watch in self._watches:
            watch.add(what)

    @contextmanager
    def _watch(self) -> Iterator[set[str | tuple[str, str]]]:
        """Yield what changes from now on: (app, device), or an app."""
        watch: set[str | tuple[str, str]] = set()
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches[:] = [other for other in self._watches if other is not watch]

    async def judge(self, requests: Sequence[Request], digests: Sequence[bytes]) -> list[Outcome]:
        """Return for each who it is; None: it has to be judged by itself. digests: of their credentials.

        What it returns is true when it returns. Raises StoreError.
        """
        found: list[Outcome] = [None] * len(requests)
        known: list[tuple[int, str, str, bytes]] = []
        shown: dict[str, dict[str, list[_Shown]]] = {}
        for number, (request, digest) in enumerate(zip(requests, digests, strict=True)):
            slot = self._slot(digest)
            if slot >= 0:
                app, device, _ = self._slots.session(slot)
                known.append((number, app, device, digest))
            elif (parsed := _password_of(request.credentials)) is not None:
                app, device, username, password = parsed
                shown.setdefault(app, {}).setdefault(device, []).append(_Shown(number, digest, username, password))
        if not shown:
            for number, app, device, digest in known:
                found[number] = Present(app, device, digest)
            return found
        views: dict[str, dict[str, DeviceView]] = {}
        with self._watch() as changed:
            for app, names in shown.items():
                if self._app(app) is not None and self._access.is_sure(app):
                    views[app] = await self._store.views(app, list(names))
        for number, app, device, digest in known:
            if (app, device) not in changed and app not in changed and ANYTHING not in changed:
                found[number] = Present(app, device, digest)
        for app, devices in shown.items():
            record = self._app(app)
            if record is None or is_disabled(record.spec) or not self._access.is_sure(app):
                continue
            if app not in views or app in changed or ANYTHING in changed:
                continue
            for device, several in devices.items():
                view = views[app].get(device)
                if view is not None and (app, device) not in changed and not is_disabled(view.device.spec):
                    for one in several:
                        found[one.number] = self._compared(requests[one.number], app, device, view, one)
        return found

    def _compared(self, request: Request, app: str, device: str, view: DeviceView, one: _Shown) -> Outcome:
        address = limited(request.peer)
        if not self._guesses.free(address, (app, device)):
            return None  # it waits there, or is told
        right = verify_quick(view.device.spec, one.username, one.password, self._key, self._limits)
        if right is None:
            return None
        if not right:
            self._guesses.wrong(address, (app, device))
            return WRONG
        self._slots.keep(one.digest, app, device, 0.0)
        return Present(app, device, one.digest, view)


def _password_of(credentials: Credentials) -> tuple[str, str, str | None, str] | None:
    if credentials.identity or not credentials.authorization:
        return None
    return parse_basic_untrusted(credentials)
