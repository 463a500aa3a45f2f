"""Status and command of dfu/1: docs/protocol.md, "Status" and "Command"."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

import msgspec

from dfud.errors import PeerError
from dfud.wire.subset import decode_untrusted, encode

PROTO = 1
MESSAGE_MAX_BYTES = 4096
PAYLOAD_MIN_BYTES, PAYLOAD_MAX_BYTES = 512, 65536
ATTRIBUTES_MAX = 16
U32_MAX = (1 << 32) - 1


class Kind(IntEnum):
    """Package kinds; a device states the ones it decodes as a bitmask of 1 << kind."""

    FULL = 1
    DELTA = 2
    MAPPED = 3


APP_KINDS = 1 << Kind.FULL | 1 << Kind.DELTA  # of packages of app firmware: it has no addresses to map


class Phase(IntEnum):
    FETCHING = 0
    WRITTEN = 1


class Outcome(IntEnum):
    CONFIRMED = 1
    ROLLED_BACK = 2
    FAILED = 3


class Code(IntEnum):
    OK = 0
    CRASHED = 1
    UNCONFIRMED = 2
    IMAGE_HASH = 3
    SIGNATURE = 4
    DOWNGRADE = 5
    HARDWARE = 6
    TOO_LARGE = 7
    CHUNK = 8
    BASE = 9
    FLASH = 10
    REFUSED = 11
    SELF_TEST = 12
    INTERNAL = 13
    WITH = 14  # the other kind that runs is outside of what the manifest runs with


# What a result without a code is called where it is none to be called ok: dfud or a user ended it.
_UNSAID = {"failed": "unexplained", "rolled-back": "unexplained", "cancelled": "cancelled"}


def code_name(code: int, state: str = "") -> str:
    """Return what users read of a result's code. state: of the deployment that ended with it."""
    if code == Code.OK and state in _UNSAID:
        return _UNSAID[state]
    try:
        return Code(code).name.lower().replace("_", "-")
    except ValueError:
        return f"code-{code}"


class Took(msgspec.Struct, frozen=True):
    """Since the device began with this package, or went on with it after a start: bytes of chunks, and the time of both."""

    received_bytes: int
    receive_ms: int
    decode_ms: int


class Progress(msgspec.Struct, frozen=True):
    package: bytes
    next: int
    phase: int = Phase.FETCHING
    took: Took | None = None


class Result(msgspec.Struct, frozen=True):
    outcome: int
    digest: bytes
    code: int = 0
    text: str = ""
    attempts: int = 0
    reset: int = 0
    record: bytes = b""
    number: int = 0


class Starts(msgspec.Struct, frozen=True):
    """What the device counts over its life: starts, and those of them that ended in a crash; the last crash's words."""

    number: int
    crashes: int = 0
    reset: int = 0
    text: str = ""


class Defer(msgspec.Struct, frozen=True):
    """own: the agent's pause after a failure, which nobody's order shortens; else the application said so."""

    reason: str
    retry_s: int
    own: bool = False


NO_DIGEST = bytes(32)
NO_VERSION = "0"  # of an image that says nothing of itself, as stock ones do


class Banks(msgspec.Struct, frozen=True, gc=False):
    """What a device with app banks says of the app. version "", digest NO_DIGEST: none runs. capacity: bytes of the idle bank.

    accept: the lowest sequence that a new app manifest may have; manifest: that of the running app, None: it has none.
    """

    version: str
    digest: bytes
    capacity: int
    trial: bool = False
    accept: int = 0
    manifest: int | None = None


class Boot(IntFlag):
    """What is weaker on a device without dfud's bootloader: the key `boot` of its status."""

    ONE_TRIAL = 1
    NO_SIGNATURE = 2
    NO_FALLBACK = 4


class Status(msgspec.Struct, frozen=True, gc=False):
    """app: the banks for app firmware, None: it has none. boot: bits of Boot; 0: dfud's bootloader."""

    version: str
    digest: bytes
    hardware: str
    kinds: int
    payload: int
    capacity: int
    trial: bool = False
    progress: Progress | None = None
    result: Result | None = None
    defer: Defer | None = None
    attributes: dict[str, str] = {}
    sequence: int = 0
    starts: Starts | None = None
    manifest: int | None = None
    app: Banks | None = None
    boot: int = 0

    @property
    def of_app(self) -> Status:
        """The same as it is for app firmware: the banks' numbers in place of the slots'. Without banks nothing fits."""
        banks = self.app or Banks("", NO_DIGEST, 0)
        return msgspec.structs.replace(
            self,
            version=banks.version,
            digest=banks.digest,
            kinds=self.kinds & APP_KINDS,
            capacity=banks.capacity,
            trial=banks.trial,
            sequence=banks.accept,
            manifest=banks.manifest,
        )

    @property
    def on_trial(self) -> bool:
        """Whether what runs of either kind is not confirmed."""
        return self.trial or (self.app is not None and self.app.trial)


class Type(IntEnum):
    WAIT = 0
    SYNC = 1
    UPDATE = 2
    STOP = 3


class Command(msgspec.Struct, frozen=True):
    type: Type
    poll_s: int = 0
    version: str = ""
    manifest: bytes = b""
    package: bytes = b""
    kind: int = 0
    size: int = 0
    chunks: int = 0
    total_bytes: int = 0
    base: bytes = b""
    reason: str = ""


def encode_status(status: Status) -> bytes:
    """Write a status; what a device does, used here by simulated devices and tests."""
    message: dict[int, Any] = {
        0: PROTO,
        1: status.version,
        2: status.digest,
        3: status.hardware,
        4: status.kinds,
        5: status.payload,
        6: status.capacity,
    }
    if status.trial:
        message[7] = True
    if status.progress:
        message[8] = {0: status.progress.package, 1: status.progress.next, 2: int(status.progress.phase)}
        if (took := status.progress.took) is not None:
            message[8][3] = [took.received_bytes, took.receive_ms, took.decode_ms]
    if status.result:
        r = status.result
        message[9] = {0: int(r.outcome), 1: r.digest, 2: int(r.code), 3: r.text, 4: r.attempts, 5: r.reset, 6: r.record}
        if r.number:
            message[9][7] = r.number
    if status.defer:
        message[10] = {0: status.defer.reason, 1: status.defer.retry_s}
        if status.defer.own:
            message[10][2] = True
    if status.attributes:
        message[11] = dict(sorted(status.attributes.items()))
    if status.sequence:
        message[12] = status.sequence
    if status.starts:
        s = status.starts
        message[13] = {0: s.number, 1: s.crashes, 2: s.reset, 3: s.text}
    if status.manifest is not None:
        message[14] = status.manifest
    if status.app is not None:
        message[15] = _banks_message(status.app)
    if status.boot:
        message[16] = int(status.boot)
    return encode(message)


def _banks_message(banks: Banks) -> dict[int, Any]:
    message: dict[int, Any] = {0: banks.version, 1: banks.digest, 2: banks.capacity}
    if banks.trial:
        message[3] = True
    if banks.accept:
        message[4] = banks.accept
    if banks.manifest is not None:
        message[5] = banks.manifest
    return message


def decode_status_untrusted(data: bytes | memoryview) -> Status:
    """Read a status from a device. Raises PeerError that names the field."""
    m = _map(decode_untrusted(data, limit_bytes=MESSAGE_MAX_BYTES), "status")
    if m.get(0) != PROTO:
        raise PeerError(f"status: proto {m.get(0)!r}, expected {PROTO}")
    progress = result = defer = starts = None
    if (p := _optional_map(m, 8, "progress")) is not None:
        progress = Progress(
            _bin(p, 0, "progress.package", 16, 16),
            _uint(p, 1, "progress.next", 0, 1 << 32),
            _uint(p, 2, "progress.phase", 0, 1, 0),
            _took(p),
        )
    if (r := _optional_map(m, 9, "result")) is not None:
        result = Result(
            outcome=_uint(r, 0, "result.outcome", 1, 3),
            digest=_bin(r, 1, "result.digest", 32, 32),
            code=_uint(r, 2, "result.code", 0, 255, 0),
            text=_str(r, 3, "result.text", 0, 1024, ""),
            attempts=_uint(r, 4, "result.attempts", 0, 255, 0),
            reset=_uint(r, 5, "result.reset", 0, 255, 0),
            record=_bin(r, 6, "result.record", 0, 512, b""),
            number=_uint(r, 7, "result.number", 0, U32_MAX, 0),
        )
    if (s := _optional_map(m, 13, "starts")) is not None:
        starts = Starts(
            _uint(s, 0, "starts.number", 0, U32_MAX),
            _uint(s, 1, "starts.crashes", 0, U32_MAX, 0),
            _uint(s, 2, "starts.reset", 0, 255, 0),
            _str(s, 3, "starts.text", 0, 512, ""),
        )
    if (d := _optional_map(m, 10, "defer")) is not None:
        defer = Defer(
            _str(d, 0, "defer.reason", 0, 64, ""), _uint(d, 1, "defer.retry_s", 0, 1 << 31), _flag(d, 2, "defer.own")
        )
    attributes = _optional_map(m, 11, "attributes") or {}
    if len(attributes) > ATTRIBUTES_MAX:
        raise PeerError(f"status: {len(attributes)} attributes, expected at most {ATTRIBUTES_MAX}")
    for key, value in attributes.items():
        if type(key) is not str or type(value) is not str or len(key.encode()) > 64 or len(value.encode()) > 64:
            raise PeerError("status: an attribute is not text of at most 64 bytes")
    return Status(
        version=_str(m, 1, "version", 1, 64),
        digest=_bin(m, 2, "digest", 32, 32),
        hardware=_str(m, 3, "hardware", 1, 32),
        kinds=_uint(m, 4, "kinds", 1, U32_MAX),
        payload=_uint(m, 5, "payload", PAYLOAD_MIN_BYTES, PAYLOAD_MAX_BYTES),
        capacity=_uint(m, 6, "capacity", 0, U32_MAX),
        trial=_flag(m, 7, "status: trial"),
        progress=progress,
        result=result,
        defer=defer,
        attributes=attributes,
        sequence=_uint(m, 12, "sequence", 0, U32_MAX, 0),
        starts=starts,
        manifest=_uint(m, 14, "manifest", 0, U32_MAX) if 14 in m else None,
        app=_banks(m),
        boot=_uint(m, 16, "boot", 0, U32_MAX, 0),
    )


def _took(p: dict[Any, Any]) -> Took | None:
    value = p.get(3)
    if value is None:
        return None
    if type(value) is not list or len(value) != 3 or not all(type(n) is int and 0 <= n <= U32_MAX for n in value):
        raise PeerError(f"progress.took: found {str(value)[:60]}, expected three integers from 0 to {U32_MAX}")
    return Took(*value)


def _banks(m: dict[Any, Any]) -> Banks | None:
    b = _optional_map(m, 15, "app")
    if b is None:
        return None
    banks = Banks(
        version=_str(b, 0, "app.version", 0, 64),
        digest=_bin(b, 1, "app.digest", 32, 32),
        capacity=_uint(b, 2, "app.capacity", 0, U32_MAX),
        trial=_flag(b, 3, "app.trial"),
        accept=_uint(b, 4, "app.accept", 0, U32_MAX, 0),
        manifest=_uint(b, 5, "app.manifest", 0, U32_MAX) if 5 in b else None,
    )
    if (banks.version == "") != (banks.digest == NO_DIGEST):
        raise PeerError("app: expected a version and a digest, or neither where no app runs")
    return banks


def encode_command(command: Command) -> bytes:
    """Write a command: only the keys that its type has, in ascending order."""
    message: dict[int, Any] = {0: int(command.type), 1: command.poll_s}
    if command.type in (Type.SYNC, Type.UPDATE) and command.version:
        message[2] = command.version
    if command.type is Type.UPDATE:
        message[3] = command.manifest
        message[4] = command.package
        message[5] = command.kind
        message[6] = command.size
        message[7] = command.chunks
        message[8] = command.total_bytes
        if command.base:
            message[9] = command.base
    if command.reason and command.type in (Type.WAIT, Type.STOP):
        message[10] = command.reason
    return encode(message)


def decode_command_untrusted(data: bytes | memoryview) -> Command:
    """Read a command; what a device does, used here by simulated devices and tests. Raises PeerError."""
    m = _map(decode_untrusted(data, limit_bytes=MESSAGE_MAX_BYTES), "command")
    kind = Type(_uint(m, 0, "type", 0, 3))
    poll_s = _uint(m, 1, "poll_s", 0, 1 << 31)
    if kind is not Type.UPDATE:
        return Command(kind, poll_s, _str(m, 2, "version", 0, 64, ""), reason=_str(m, 10, "reason", 0, 256, ""))
    return Command(
        type=kind,
        poll_s=poll_s,
        version=_str(m, 2, "version", 1, 64),
        manifest=_bin(m, 3, "manifest", 1, 1024),
        package=_bin(m, 4, "package", 16, 16),
        kind=_uint(m, 5, "kind", 1, 31),
        size=_uint(m, 6, "size", 1, U32_MAX),
        chunks=_uint(m, 7, "chunks", 1, U32_MAX),
        total_bytes=_uint(m, 8, "bytes", 1, U32_MAX),
        base=_bin(m, 9, "base", 32, 32, b""),
    )


def _map(value: Any, what: str) -> dict[Any, Any]:
    if type(value) is not dict:
        raise PeerError(f"{what}: expected a map, found {type(value).__name__}")
    return value


def _optional_map(m: dict[Any, Any], key: int, what: str) -> dict[Any, Any] | None:
    value = m.get(key)
    return None if value is None else _map(value, what)


def _uint(m: dict[Any, Any], key: int, what: str, low: int, high: int, default: int | None = None) -> int:
    if default is not None and key not in m:
        return default
    value = m.get(key)
    if type(value) is not int or not low <= value <= high:
        raise PeerError(f"{what}: found {str(value)[:40]!r}, expected an integer from {low} to {high}")
    return value


def _flag(m: dict[Any, Any], key: int, what: str) -> bool:
    value = m.get(key, False)
    if type(value) is not bool:
        raise PeerError(f"{what} is not a bool")
    return value


def _str(m: dict[Any, Any], key: int, what: str, low: int, high: int, default: str | None = None) -> str:
    if default is not None and key not in m:
        return default
    value = m.get(key)
    if type(value) is not str or not low <= len(value.encode()) <= high:
        raise PeerError(f"{what}: expected text of {low} to {high} bytes")
    return value


def _bin(m: dict[Any, Any], key: int, what: str, low: int, high: int, default: bytes | None = None) -> bytes:
    if default is not None and key not in m:
        return default
    value = m.get(key)
    if type(value) is not bytes or not low <= len(value) <= high:
        raise PeerError(f"{what}: expected {low} to {high} bytes")
    return value
