"""Records to bytes and back, for stores that keep them as msgpack. Every failure names the record."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgspec

from dfud.api.store import (
    Change,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutFirmware,
    SetFirmware,
)
from dfud.errors import StoreError, UnreadableError
from dfud.model.resources import Device

T = TypeVar("T")
NO_FIRMWARE = b""  # in the column `firmware` of a device: its spec has none, whatever the body says
DEPTH_MAX = 100  # the decoder takes about a thousand levels, less where the stack is deep already
INTEGERS = range(-(1 << 63), 1 << 64)  # what msgpack can say


def encode(change: Change) -> tuple[bytes, ...]:
    """Return the bodies that `change` stores. Raises StoreError that names what cannot be stored."""
    match change:
        case PutApp(app):
            _check_spec(f"app {app.name}", app.spec)
            return (_encode(f"app {app.name}", app),)
        case PutDevice(device):
            what = f"device {device.name} of app {device.app}"
            _check_spec(what, device.spec)
            return (_encode(what, device),)
        case SetFirmware(app, _, firmware):
            if firmware is None:
                return (NO_FIRMWARE,)
            what = f"spec.firmware of devices of app {app}"
            _check_spec(what, firmware)
            return (_encode(what, firmware),)
        case PutFirmware(firmware):
            return (_encode(f"firmware {firmware.version} of app {firmware.app}", firmware),)
        case PutActual(actual):
            return (_encode(f"what device {actual.device} of app {actual.app} said", actual),)
        case PutDeployment(deployment, entry):
            body = _encode(f"deployment {deployment.id}", deployment)
            return (body,) if entry is None else (body, _encode(f"history of deployment {deployment.id}", entry))
    return ()


def _encode(what: str, value: object) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeError, RecursionError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise _refused(what, str(error)) from error


def _check_spec(what: str, spec: Any) -> None:
    """Refuse what could not be read back as it was given; without recursion, for that is what it judges."""
    level: list[Any] = [spec]
    for _ in range(DEPTH_MAX):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
            elif isinstance(value, (list, tuple)):
                below += value
            elif isinstance(value, float) and not math.isfinite(value):
                raise _refused(what, f"spec holds the number {value}, expected a finite one")
            elif isinstance(value, int) and value not in INTEGERS:
                raise _refused(what, "spec holds an integer out of range, expected -2^63 to 2^64-1")
        if not below:
            return
        level = below
    raise _refused(what, f"spec is nested deeper than {DEPTH_MAX} levels")


def _refused(what: str, why: str) -> StoreError:
    # A name may be what is wrong; the message has to be sayable all the same.
    return StoreError(f"{what} cannot be stored: {why}".encode("utf-8", "backslashreplace").decode())


def decode(what: str, kind: type[T], body: Any) -> T:
    """Return the record. Raises UnreadableError that names it."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError, TypeError, ValueError) as error:
        raise unreadable(what, str(error)) from error


class _Spec(msgspec.Struct, frozen=True):
    firmware: Any = msgspec.UNSET


class _Wishing(msgspec.Struct):
    """What of a device's record is read where only its spec.firmware counts."""

    spec: _Spec = _Spec()


def firmware_of(what: str, body: Any, firmware: Any) -> Any:
    """Return a device's spec.firmware, UNSET if it has none; body and firmware as they are stored. Raises UnreadableError."""
    if firmware is None:
        return decode(what, _Wishing, body).spec.firmware
    return msgspec.UNSET if firmware == NO_FIRMWARE else decode(what, Any, firmware)


def with_columns(what: str, device: Device, firmware: Any, newer: int, version: str) -> Device:
    """Return a device with what SetFirmware wrote beside its body: spec.firmware, and by how much that raised its generation."""
    if firmware is None:
        return device
    spec = {key: value for key, value in device.spec.items() if key != "firmware"}
    if firmware != NO_FIRMWARE:
        spec["firmware"] = decode(what, Any, firmware)
    metadata = msgspec.structs.replace(
        device.metadata, generation=device.metadata.generation + newer, resource_version=version
    )
    return msgspec.structs.replace(device, metadata=metadata, spec=spec)


def unreadable(what: str, why: str) -> UnreadableError:
    return UnreadableError(f"the record of {what} cannot be read ({why}): put it again, delete it, or restore a backup")
