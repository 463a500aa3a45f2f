"""The whole flash of a board, put together. docs/board.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from dfud.board import appimage, filesystem, nvs
from dfud.board.flashmap import (
    BOOTLOADER_MAX_BYTES,
    LAYOUTS,
    SIZES,
    TABLE_AT,
    WITHOUT_BANKS,
    check,
    encode_table,
    find,
)
from dfud.board.records import SECTOR_BYTES, encode_keys, encode_trailer
from dfud.board.stock import CHIP, Stock
from dfud.errors import PeerError
from dfud.model.espimage import CHIP_IDS, MAGIC
from dfud.wire.manifest import (
    FLAG_APP,
    KEYS_MAX,
    Envelope,
    Manifest,
    decode_envelope_untrusted,
    encode_envelope,
    encode_manifest,
    verify,
)

NAMESPACE, IDENTITY = "dfud", "identity"
IDENTITY_MAX = 512  # what the board's start-up reads
BLANK = b"\xff"


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who a board is: a device and its secret, or a claim code (and a device's name, or the chip's own)."""

    device: str = ""
    secret: str = ""
    claim: str = ""


def identity_blob(identity: Identity) -> bytes:
    """Return what stands in NVS. Raises PeerError if it is too long."""
    blob = msgspec.json.encode(identity)
    if len(blob) > IDENTITY_MAX:
        raise PeerError(
            f"identity: {len(blob)} bytes, expected at most {IDENTITY_MAX}; a shorter device name or claim code"
        )
    return blob


def identity_image(identity: Identity, flash: str) -> bytes:
    """Return the NVS partition of one board."""
    return nvs.encode({NAMESPACE: {IDENTITY: identity_blob(identity)}}, find(LAYOUTS[flash], "nvs").size)


def settings(
    *, app: str, hardware: str, wifi: tuple[str, str] | None, ntp: str, agent: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what goes into /dfu.json. agent: how it reaches dfud, and whatever else is to be configured."""
    said: dict[str, Any] = {"agent": {"app": app, "hardware": hardware, **agent}, "ntp": ntp}
    if wifi is not None:
        said["wifi"] = {"ssid": wifi[0], "password": wifi[1]}
    return said


def envelope_of(stock: Stock, app: str, hardware: str, signed: bytes, keys: list[bytes]) -> bytes:
    """Return the manifest that goes behind the image: the signed one, judged, or an unsigned one with the image's own version.

    Raises PeerError if it describes another image, or a board with these keys would not boot it.
    """
    if not signed:
        if keys:
            said = (
                f"--app {app} --key publisher.pem --version {stock.version or '1.0'} --hardware {hardware} --sequence 1"
            )
            raise PeerError(
                "a board with keys boots no image without a signed manifest: sign the image with `dfuctl sign FILE --app-at "
                f"{stock.at:#x} {said}` and give the file that it writes with --manifest"
            )
        manifest = Manifest(
            app, stock.version or "0", hardware, 0, len(stock.image), hashlib.sha256(stock.image).digest()
        )
        return encode_envelope(Envelope(encode_manifest(manifest)))
    return _judged(signed, stock.image, app, hardware, keys, 0)


def app_envelope_of(data: bytes, version: str, app: str, hardware: str, signed: bytes, keys: list[bytes]) -> bytes:
    """Return the manifest that goes behind an app image: the signed one, judged, or an unsigned one of this version, sequence 0.

    A board judges what it fetches, and starts what its factory put there: this one needs no signature. Raises PeerError.
    """
    if signed:
        return _judged(signed, data, app, hardware, keys, FLAG_APP)
    digest = hashlib.sha256(data).digest()
    manifest = Manifest(app, version, hardware, 0, len(data), digest, flags=FLAG_APP)
    return encode_envelope(Envelope(encode_manifest(manifest)))


def _judged(signed: bytes, image: bytes, app: str, hardware: str, keys: list[bytes], kind: int) -> bytes:
    digest = hashlib.sha256(image).digest()
    envelope, described = decode_envelope_untrusted(signed)
    if described.flags & FLAG_APP != kind:
        named = ("a system image", "an app image")
        raise PeerError(f"the manifest is for {named[not kind]}, expected one for {named[bool(kind)]}")
    if described.sha256 != digest:
        raise PeerError(
            f"the manifest describes another image (SHA-256 {described.sha256.hex()}, expected {digest.hex()})"
        )
    for what, found, wanted in (("app", described.app, app), ("hardware", described.hardware, hardware)):
        if found != wanted:
            raise PeerError(
                f"the manifest is for {what} {found!r}, expected {wanted!r}: a board would refuse every update"
            )
    if keys:
        verify(envelope, keys)
    return signed


def check_bootloader(data: bytes) -> None:
    """Raise PeerError unless this is dfud's bootloader as far as a file can show it: an image for the chip that fits."""
    if data[:1] != bytes([MAGIC]) or len(data) < 24:
        raise PeerError(
            "bootloader: not an ESP image: expected build/bootloader/bootloader.bin, which `make bootloader` builds"
        )
    if int.from_bytes(data[12:14], "little") != CHIP_IDS[CHIP]:
        raise PeerError(f"bootloader: made for another chip, expected {CHIP}")
    if len(data) > BOOTLOADER_MAX_BYTES:
        raise PeerError(f"bootloader: {len(data)} bytes, expected at most {BOOTLOADER_MAX_BYTES}: is this dfud's?")
    if b"dfud boot" not in data:
        raise PeerError(
            "bootloader: not dfud's: expected build/bootloader/bootloader.bin, which `make bootloader` builds"
        )


def build(
    *,
    flash: str,
    bootloader: bytes,
    stock: Stock,
    envelope: bytes,
    keys: list[bytes],
    development: set[int],
    identity: Identity,
    files: Mapping[str, bytes],
    application: tuple[bytes, bytes] | None = None,
) -> bytes:
    """Return the content of the flash from offset 0 on, without the blank rest behind its last used sector.

    application: an app image and its manifest, for bank A; None: the layout without banks, the application is among the files.
    """
    parts, size = (WITHOUT_BANKS if application is None else LAYOUTS)[flash], SIZES[flash]
    check(parts, size)
    check_bootloader(bootloader)
    if len(keys) > KEYS_MAX:
        raise PeerError(f"{len(keys)} keys, expected at most {KEYS_MAX}")
    slot = find(parts, "ota_0")
    pieces = {
        0: bootloader,
        TABLE_AT: encode_table(parts),
        find(parts, "nvs").offset: identity_image(identity, flash),
        slot.offset: stock.image,
        slot.end - SECTOR_BYTES: encode_trailer(envelope),
        find(parts, "vfs").offset: filesystem.build(files, find(parts, "vfs").size),
    }
    if application is not None:
        bank = find(parts, "app_a")
        appimage.check_size(len(application[0]), flash, "application")
        pieces[bank.offset] = application[0]
        pieces[bank.end - SECTOR_BYTES] = encode_trailer(application[1])
    if keys:
        pieces[find(parts, "dfu_keys").offset] = encode_keys(keys, development)
    content = bytearray(BLANK) * size
    for at, piece in pieces.items():
        content[at : at + len(piece)] = piece
    end = len(content.rstrip(BLANK))
    return bytes(content[: end + -end % SECTOR_BYTES])


def settings_file(said: Mapping[str, Any]) -> bytes:
    return json.dumps(said, separators=(",", ":"), sort_keys=True).encode()
