"""First contact: docs/protocol.md, "Enrolment". Pure."""

from __future__ import annotations

import msgspec

from dfud.errors import PeerError
from dfud.model.names import check_app_name, check_device_name
from dfud.wire.subset import decode_untrusted, encode

PROTO = 1
MESSAGE_MAX_BYTES = 1024
SECRET_MIN, SECRET_MAX = 22, 64  # 22: URL-safe base64 of 128 bits
CODE_MAX = 64


class Enrolment(msgspec.Struct, frozen=True):
    """What a new device says: who it is, the claim code that it was given, and the secret that it made for itself."""

    app: str
    device: str
    code: str
    secret: str

    def __repr__(self) -> str:
        return f"Enrolment({self.app!r}, {self.device!r}, ***)"


def encode_enrolment(enrolment: Enrolment) -> bytes:
    """Write what a device sends."""
    return encode({0: PROTO, 1: enrolment.app, 2: enrolment.device, 3: enrolment.code, 4: enrolment.secret})


def decode_enrolment_untrusted(data: bytes) -> Enrolment:
    """Read what a device sent. Raises PeerError, whose text holds neither the code nor the secret."""
    message = decode_untrusted(data, limit_bytes=MESSAGE_MAX_BYTES)
    if not isinstance(message, dict) or message.get(0) != PROTO:
        raise PeerError("an enrolment: expected a map with protocol 1 under key 0")
    found = [message.get(key) for key in (1, 2, 3, 4)]
    if not all(isinstance(value, str) for value in found):
        raise PeerError("an enrolment: expected text under the keys 1 to 4")
    app, device, code, secret = (str(value) for value in found)
    if not 1 <= len(code) <= CODE_MAX or not code.isascii():
        raise PeerError(f"an enrolment: expected a claim code of 1 to {CODE_MAX} characters")
    if not SECRET_MIN <= len(secret) <= SECRET_MAX or not secret.isascii() or not secret.isprintable():
        raise PeerError(f"an enrolment: expected a secret of {SECRET_MIN} to {SECRET_MAX} printable ASCII characters")
    return Enrolment(check_app_name(app), check_device_name(device), code, secret)


def encode_enrolled(device: str) -> bytes:
    """Write the answer: the name under which the device is known from now on."""
    return encode({0: PROTO, 2: device})
