"""What a device asks for again: the answer to the same poll, the chunk of which it has had a part. From memory alone; never blocks.

Nothing is kept here that may change: who it is, and what it may have, are looked up each time. What the device has shown stands
here as a digest, which need not be made again.
"""

from __future__ import annotations

from collections.abc import Callable

from dfud.api import Credentials, Reply, Request, contained, note
from dfud.controller.fetches import Fetches
from dfud.endpoint.auth import Authenticator
from dfud.endpoint.unsure import Concern


class Again:
    """What a device gets that asks for the same again. clock: monotonic."""

    def __init__(self, auth: Authenticator, policy: Concern, fetches: Fetches, clock: Callable[[], float]) -> None:
        self._auth, self._policy, self._fetches, self._clock = auth, policy, fetches, clock

    def poll(self, request: Request) -> Callable[[], Reply | None] | None:
        """See Endpoint.quick_again()."""
        if request.channel != "dfu" or request.as_device or request.timeout_s > 0:
            return None
        with contained("endpoint.quick_again"):
            return Poll(self._auth, self._policy, self._clock, request).again
        return None

    def chunk(self, credentials: Credentials, package: str) -> Callable[[int, float], bytes | None] | None:
        """See Endpoint.chunk_again()."""
        with contained("endpoint.chunk_again"):
            digest = self._auth.slots.digest(credentials)
            slot = self._auth.slot_of(digest)
            if slot >= 0:
                return Fetch(self._auth, self._fetches, digest, slot, package).again
        return None


class Poll:
    """A poll that does not wait. clock: monotonic."""

    __slots__ = ("_auth", "_body", "_clock", "_digest", "_policy")

    def __init__(self, auth: Authenticator, policy: Concern, clock: Callable[[], float], request: Request) -> None:
        self._auth, self._policy, self._clock = auth, policy, clock
        self._digest = auth.slots.digest(request.credentials)
        self._body = request.body

    def again(self) -> Reply | None:
        """Return the answer, or None: quick() has to be asked. See Endpoint.quick_again()."""
        try:
            slot = self._auth.slot_of(self._digest)
            if slot < 0 or self._policy.unsure:
                return None
            return self._auth.slots.calm(slot, self._body, self._clock())
        except Exception as error:
            note("endpoint.quick_again", error)
            return None


class Fetch:
    """A device and the package of which it has been given a chunk. digest, slot: of what it has shown."""

    __slots__ = ("_app", "_auth", "_device", "_digest", "_fetches", "_name", "_package")

    def __init__(self, auth: Authenticator, fetches: Fetches, digest: bytes, slot: int, package: str) -> None:
        self._auth, self._fetches = auth, fetches
        self._digest = digest
        self._name = auth.slots.name(slot)
        self._app, self._device, _ = auth.slots.session(slot)
        self._package = package

    def again(self, number: int, now_s: float) -> bytes | None:
        """Return the chunk, or None: it has to be asked for as it was at first. now_s: trio's time. See Endpoint.chunk_again()."""
        try:
            slot = self._auth.slot_of(self._digest)
            if slot < 0 or self._auth.slots.name(slot) != self._name:
                return None
            return self._fetches.chunk(self._app, self._device, self._package, number, now_s)
        except Exception as error:
            note("endpoint.chunk_again", error)
            return None
