"""What the processes on one database tell each other by NOTIFY: which records changed, and what Store.tell() says. Pure.

A notification has less than 8000 bytes. What does not fit becomes "something of this app was missed".
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from dfud.api import (
    AppChanged,
    DeviceChanged,
    DeviceStateChanged,
    DocumentChanged,
    Firmware,
    FirmwareChanged,
    Missed,
    Told,
)

CHANNEL = "dfud"
PAYLOAD_MAX = 7900
DEVICES_MAX = 1000  # of one app in one batch; beyond, everything of the app is forgotten: that costs less
Notice = tuple[Any, ...]


class Notices:
    """Gathers what one batch changes. A kind and a key once: whoever hears it reads what is stored then."""

    def __init__(self) -> None:
        self._found: dict[Notice, None] = {}
        self._devices: dict[str, int] = {}

    def merge(self, other: Notices) -> None:
        self._found.update(other._found)
        for app, number in other._devices.items():
            self._devices[app] = self._devices.get(app, 0) + number

    def __bool__(self) -> bool:
        return bool(self._found)

    def _add(self, *notice: Any) -> None:
        self._found[notice] = None

    def app(self, name: str, *, deleted: bool = False) -> None:
        self._add("a", name, deleted)

    def device(self, app: str, device: str, *, deleted: bool = False) -> None:
        self._devices[app] = self._devices.get(app, 0) + 1
        self._add("d", app, device, deleted)

    def devices(self, app: str, names: list[str]) -> None:
        """What they are to run has changed, and nothing else."""
        self._devices[app] = self._devices.get(app, 0) + len(names)
        for name in names:
            self._add("d", app, name, False, False)

    def state(self, app: str, device: str) -> None:
        self._devices[app] = self._devices.get(app, 0) + 1
        self._add("s", app, device)

    def firmware(self, firmware: Firmware, *, deleted: bool = False) -> None:
        self._add("f", base64.b64encode(msgspec.msgpack.encode(firmware)).decode(), firmware.app, deleted)

    def document(self, collection: str, key: str) -> None:
        self._add("c", collection, key)

    def missed(self, app: str) -> None:
        self._add("m", app)

    def told(self, topic: str, body: bytes) -> None:
        self._add("t", topic, base64.b64encode(body).decode())

    def payloads(self, origin: str) -> list[str]:
        """Return the notifications, in the order of what happened. origin: who says so."""
        many = {app for app, number in self._devices.items() if number > DEVICES_MAX}
        notices: dict[Notice, None] = {}
        for notice in self._found:
            if notice[0] in ("d", "s") and notice[1] in many:
                notice = ("m", notice[1])
            elif len(_encoded([origin, notice])) > PAYLOAD_MAX:
                notice = ("m", notice[2] if notice[0] == "f" else notice[1] if notice[0] in ("a", "d", "s") else "")
            notices[notice] = None
        found: list[str] = []
        part: list[Any] = [origin]
        size = 0
        for notice in notices:
            more = len(_encoded(notice)) + 1
            if size + more > PAYLOAD_MAX - 100:
                found.append(_encoded(part))
                part, size = [origin], 0
            part.append(notice)
            size += more
        return [*found, _encoded(part)] if len(part) > 1 else found


def _encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def read(payload: bytes) -> tuple[str, list[Any]]:
    """Return who sent a notification and the events in it. What cannot be read, as of a newer dfud, is Missed."""
    try:
        origin, *notices = msgspec.json.decode(payload)
        return str(origin), [_event(notice) for notice in notices]
    except (msgspec.MsgspecError, ValueError, TypeError, LookupError):
        return "", [Missed()]


def _event(notice: Any) -> Any:
    match notice:
        case ["a", name, deleted]:
            return AppChanged(name, deleted)
        case ["d", app, device, deleted]:
            return DeviceChanged(app, device, deleted)
        case ["d", app, device, deleted, access]:
            return DeviceChanged(app, device, deleted, access)
        case ["s", app, device]:
            return DeviceStateChanged(app, device)
        case ["f", body, _, deleted]:
            return FirmwareChanged(msgspec.msgpack.decode(base64.b64decode(body), type=Firmware), deleted)
        case ["c", collection, key]:
            return DocumentChanged(collection, key)
        case ["t", topic, body]:
            return Told(topic, base64.b64decode(body))
        case ["m", app]:
            return Missed(app)
    raise ValueError(notice)
