"""Records to bytes and back, for stores that keep them as msgpack. Every failure names the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from dfud.api.store import (
    AddCounts,
    Change,
    DeleteDevice,
    DeleteDocument,
    ExpectDevice,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    PutFirmware,
    SetFirmware,
    TrimDocuments,
)
from dfud.errors import StoreError, UnreadableError
from dfud.model.deployment import Deployment
from dfud.model.resources import Device

T = TypeVar("T")
ENCODER = msgspec.msgpack.Encoder()
NO_FIRMWARE = b""  # in the column `firmware` of a device: its spec has none, whatever the body says
DEPTH_MAX = 100  # the decoder takes about a thousand levels, less where the stack is deep already
INTEGERS = range(-(1 << 63), 1 << 64)  # what msgpack can say


BODILESS = frozenset({ExpectDevice, AddCounts, PutDocument, DeleteDocument, DeleteDevice, TrimDocuments})
Encoded = tuple[Change, tuple[bytes, ...]]


def encode_all(changes: Sequence[Change]) -> list[Encoded]:
    """Return each change with the bodies that it stores. Raises StoreError that names what cannot be stored.

    Of a deployment that changes put several times only the last one is stored, so that is encoded, once, for all of them.
    """
    found: list[Encoded] = []
    last: Deployment | None = None
    body = b""
    final = {change.deployment.id: change.deployment for change in changes if type(change) is PutDeployment}
    for change in changes:
        if type(change) is PutActual:
            found.append((change, (_encode(change, change.actual),)))
        elif type(change) is PutDeployment:
            latest = final[change.deployment.id]
            if latest is not last:
                last, body = latest, _encode(change, latest)
            entry = change.entry
            found.append((change, (body,) if entry is None else (body, _encode(change, entry))))
        elif type(change) in BODILESS:
            found.append((change, ()))
        else:
            found.append((change, encode(change)))
    return found


def encode(change: Change) -> tuple[bytes, ...]:
    """Return the bodies that `change` stores. Raises StoreError that names what cannot be stored."""
    match change:
        case PutApp(app):
            _check_spec(_what(change), app.spec)
            return (_encode(change, app),)
        case PutDevice(device):
            _check_spec(_what(change), device.spec)
            return (_encode(change, device),)
        case SetFirmware(_, _, firmware):
            if firmware is None:
                return (NO_FIRMWARE,)
            _check_spec(_what(change), firmware)
            return (_encode(change, firmware),)
        case PutFirmware(firmware):
            return (_encode(change, firmware),)
        case PutActual() | PutDeployment():
            return encode_all([change])[0][1]
    return ()


def _what(change: Change) -> str:
    match change:
        case PutApp(app):
            return f"app {app.name}"
        case PutDevice(device):
            return f"device {device.name} of app {device.app}"
        case SetFirmware(app, _, _):
            return f"spec.firmware of devices of app {app}"
        case PutFirmware(firmware):
            return f"firmware {firmware.version} of app {firmware.app}"
        case PutActual(actual):
            return f"what device {actual.device} of app {actual.app} said"
        case PutDeployment(deployment, _):
            return f"deployment {deployment.id} or its history"
    return type(change).__name__


def _encode(change: Change, value: object) -> bytes:
    try:
        return ENCODER.encode(value)
    except (OverflowError, UnicodeError, RecursionError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise _refused(_what(change), str(error)) from error


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
