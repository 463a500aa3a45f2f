"""What a publisher says of an image, and whether that may be. Pure but for reading the image."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dfud.api import App, ConflictError, Firmware, PeerError, RefusedError
from dfud.model.espimage import check_application_untrusted, hardware_name
from dfud.model.firmware import SEQUENCE_MAX, Kind
from dfud.registry.images import Bound
from dfud.wire.manifest import (
    FLAG_APP,
    FLAG_DOWNGRADE,
    FLAG_RAW,
    Manifest,
    beside_of,
    decode_envelope_untrusted,
    key_id,
    unsigned,
    verify,
)
from dfud.wire.trust import Trust, signing_of, trust_of

RANGE_DIGITS = 22  # two numbers below 2^32 and the dots


class Upload(msgspec.Struct, frozen=True):
    """What the publisher says of an image. envelope: the signed manifest; then version, hardware and sequence are its.

    hardware: of a chip in any spelling that espimage.hardware_name knows; the canonical one is stored.
    sequence None: that of the version's other images, else one more than the app's highest. sha256: of the image, checked if
    given. attributes: what a device must have reported to be given this image of the version. requires, stop: who may go to the
    version directly, and that nobody may skip it; said of a version that exists they must be what it has.
    beside: the sequences of the other kind that it runs with, None: any.
    """

    version: str = ""
    hardware: str = ""
    sequence: int | None = None
    kind: Kind = "esp-image"
    sha256: str = ""
    notes: str = ""
    envelope: bytes = b""
    attributes: dict[str, str] = {}
    requires: Bound | None = None
    stop: bool = False
    beside: tuple[int, int] | None = None


def check_image_untrusted(path: Path, size: int, hardware: str) -> None:
    with path.open("rb") as file:
        check_application_untrusted(file, size, hardware)


def check_signature(app: App, envelope: bytes) -> bool:
    """Return whether the envelope is signed by a key of the app. Raises RefusedError if the app does not take it."""
    required, keys = signing_of(app.spec)
    if not envelope:
        if required:
            raise RefusedError(
                f"app {app.name} takes signed firmware only: give a manifest (`dfuctl sign`), or set its "
                'spec.signing.mode to "optional"'
            )
        return False
    decoded, _ = decode_envelope_untrusted(envelope)
    if not decoded.signature and not required:
        return False
    try:
        verify(decoded, keys)
    except PeerError as error:
        raise RefusedError(f"app {app.name}: {error}") from None
    return True


def kind_of(upload: Upload, manifest: Manifest | None) -> Kind:
    """Return what kind of image is given: a manifest says it."""
    if manifest is None:
        return upload.kind
    return "app" if manifest.flags & FLAG_APP else "raw" if manifest.flags & FLAG_RAW else "esp-image"


def replaces(existing: Firmware, upload: Upload, manifest: Manifest | None, kind: Kind) -> bool:
    """Say whether what is given for an image that is published says something new, which then replaces the record.

    Raises ConflictError for what would make it another firmware, RefusedError where its signature would be lost.
    """
    hardware = manifest.hardware if manifest else upload.hardware
    same: list[tuple[str, object, object]] = [("hardware", hardware, existing.hardware), ("kind", kind, existing.kind)]
    same.append(("attributes", upload.attributes, existing.attributes))
    for what, given, held in same:
        if given != held:
            raise ConflictError(f"firmware {existing.version} exists already: {what} {held!r}, {given!r} was given")
    if upload.envelope == existing.manifest:
        return False
    if trust_of({}, existing.manifest) is not Trust.UNSIGNED and not (
        upload.envelope and decode_envelope_untrusted(upload.envelope)[0].signature
    ):
        raise RefusedError(
            f"firmware {existing.version} is published with a signature; unsigned it does not replace that"
        )
    if not upload.envelope:
        return upload.sequence not in (None, existing.sequence) or upload.beside not in (
            None,
            beside_of(existing.manifest),
        )
    return True


def told_of(firmware: Firmware) -> str:
    """Say what a manifest says, for the audit log."""
    try:
        envelope, manifest = decode_envelope_untrusted(firmware.manifest)
    except PeerError:
        return "a manifest that cannot be read"
    told = [f"signed by {envelope.key.hex()}" if envelope.signature else "unsigned", f"sequence {manifest.sequence}"]
    if manifest.floor:
        told.append(f"floor {manifest.floor}")
    if manifest.flags & FLAG_DOWNGRADE:
        told.append("downgrade allowed")
    if manifest.beside is not None:
        told.append(f"with {manifest.beside[0]} to {manifest.beside[1]}")
    told += [f"adds key {key_id(key).hex()}" for key in manifest.add]
    told += [f"revokes key {key.hex()}" for key in manifest.revoke]
    return " ".join(told)


def unsigned_manifest(f: Firmware, beside: tuple[int, int] | None) -> bytes:
    flags = {"raw": FLAG_RAW, "app": FLAG_APP}.get(f.kind, 0)
    manifest = Manifest(
        app=f.app,
        version=f.version,
        hardware=f.hardware,
        sequence=f.sequence,
        size=f.size_bytes,
        sha256=bytes.fromhex(f.sha256),
        flags=flags,
        beside=beside,
    )
    return unsigned(manifest)


def manifest_of(app: App, upload: Upload) -> Manifest | None:
    if not upload.envelope:
        return None
    _, manifest = decode_envelope_untrusted(upload.envelope)
    if manifest.app != app.name:
        raise PeerError(f"the manifest is for app {manifest.app}, not for {app.name}")
    canonical = hardware_name(manifest.hardware)
    if upload.beside not in (None, manifest.beside):
        raise PeerError(
            f"with {range_shown(upload.beside)} was given, the manifest says {range_shown(manifest.beside)}"
        )
    if upload.kind == "app" and not manifest.flags & FLAG_APP:
        raise PeerError(
            "kind app was given, the manifest is of system firmware: sign the image again (`dfuctl sign --kind app`)"
        )
    if canonical != manifest.hardware and not manifest.flags & FLAG_RAW:
        # It is signed as it stands, and devices compare it byte by byte with what they are.
        raise PeerError(
            f"the manifest is for hardware {manifest.hardware!r}, expected {canonical!r}, as devices say it: sign the image again"
        )
    for what, said, stated in (
        ("version", upload.version, manifest.version),
        ("hardware", upload.hardware, canonical),
    ):
        if said and said != stated:
            raise PeerError(f"{what} {said!r} was given, the manifest says {stated!r}")
    return manifest


def read_range_untrusted(text: str) -> tuple[int, int]:
    """Read which sequences of the other kind an image runs with: `1..4`, `3` alone, `2..` upwards. Raises PeerError."""
    low, dots, high = text.partition("..")
    known = low.isascii() and low.isdigit() and (not high or (high.isascii() and high.isdigit()))
    found = (int(low), int(high or (SEQUENCE_MAX if dots else low))) if known and len(text) <= RANGE_DIGITS else (1, 0)
    if not found[0] <= found[1] <= SEQUENCE_MAX:
        raise PeerError(
            f"with {text[:40]!r}: expected LOW..HIGH, sequences of the other kind below 2^32, such as 1..4 or 3.."
        )
    return found


def range_shown(beside: tuple[int, int] | None) -> str:
    return f"{beside[0]}..{beside[1]}" if beside is not None else "any"


def ways_of(firmware: Firmware) -> str:
    """Say for the audit log which ways lead to a version."""
    told = f"from sequence {firmware.requires.low} to {firmware.requires.high}" if firmware.requires else "from all"
    return f"{told}, {'not to be skipped' if firmware.stop else 'may be skipped'}"
