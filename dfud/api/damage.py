"""The records that could not be read: each is named once in the log, counted, and left out of lists until it is repaired."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from dfud.api.store import (
    Change,
    DeleteApp,
    DeleteDevice,
    DeleteFirmware,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutFirmware,
)
from dfud.errors import UnreadableError

log = logging.getLogger("dfud.store")
KNOWN_MAX = 10_000  # beyond it, they are left out of lists without being told

Key = tuple[str, ...]


class Damage:
    """Keys are (kind, app, device or version, ...); for an app ("app", name)."""

    def __init__(self) -> None:
        self._known: dict[Key, None] = {}

    def __len__(self) -> int:
        return len(self._known)

    def found(self, error: UnreadableError, *key: str) -> None:
        """Take note of a record that cannot be read."""
        if key not in self._known and len(self._known) < KNOWN_MAX:
            self._known[key] = None
            log.error("a stored record cannot be read", extra={"error": str(error)})

    def names(self, *prefix: str) -> list[str]:
        """Return the last parts of the keys that begin with `prefix`."""
        if not self._known:
            return []
        return [key[-1] for key in self._known if key[:-1] == prefix]

    def read(self, *key: str) -> None:
        """A record was read: whatever was wrong with it has been repaired, perhaps by hand."""
        if self._known:
            self._known.pop(key, None)

    def mended(self, changes: Iterable[Change]) -> None:
        """These changes are stored: what they replaced or deleted is whole again."""
        if not self._known:
            return
        for change in changes:
            match change:
                case PutApp(app):
                    self._known.pop(("app", app.name), None)
                case DeleteApp(name):
                    self._known = {k: None for k in self._known if len(k) < 2 or k[1] != name}
                case PutDevice(device):
                    self._known.pop(("device", device.app, device.name), None)
                case DeleteDevice(app, name):
                    self._known = {k: None for k in self._known if k[1:3] != (app, name)}
                case PutActual(actual):
                    self._known.pop(("actual", actual.app, actual.device), None)
                case PutFirmware(firmware):
                    self._known.pop(("firmware", firmware.app, firmware.version), None)
                case DeleteFirmware(app, version):
                    self._known.pop(("firmware", app, version), None)
                case PutDeployment(deployment):
                    self._known.pop(("deployment", deployment.app, deployment.device, deployment.id), None)
