"""A device that asks for the parts of one chunk, one by one: whether it may have the next one as well. Never blocks."""

from __future__ import annotations

from dfud.api import Credentials, note
from dfud.controller.parts import Parts
from dfud.endpoint.auth import Authenticator

_SHOWN = Credentials()  # a digest stands for what was


class Fetch:
    """What a device was given a chunk by. It keeps nothing that may change: who it is, and what it may have, are looked up each time.

    digest, slot: of what the device has shown.
    """

    __slots__ = ("_app", "_auth", "_device", "_digest", "_name", "_number", "_package", "_parts")

    def __init__(self, auth: Authenticator, parts: Parts, digest: bytes, slot: int, package: str, number: int) -> None:
        self._auth, self._parts = auth, parts
        self._digest = digest
        self._name = auth.slots.name(slot)
        self._app, self._device, _ = auth.slots.session(slot)
        self._package, self._number = package, number

    def again(self, now_s: float) -> bytes | None:
        """Return the chunk, or None: it has to be asked for as it was at first. now_s: trio's time. See Endpoint.chunk_again()."""
        try:
            slot = self._auth.slot(_SHOWN, self._digest)
            if slot < 0 or self._auth.slots.name(slot) != self._name:
                return None
            return self._parts.chunk(self._app, self._device, self._package, self._number, now_s)
        except Exception as error:
            note("endpoint.chunk_again", error)
            return None
