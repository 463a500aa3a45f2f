"""What a flash holds, for people: of a board.bin before it is written, of a simulated board, or read out of a chip with esptool."""

from __future__ import annotations

import hashlib
import io

import msgspec

from dfud.board import appimage, filesystem, nvs
from dfud.board.flashmap import (
    APP,
    APP_A,
    APP_B,
    APP_STATE,
    BOOTLOADER_MAX_BYTES,
    SECTOR_BYTES,
    SIZES,
    TABLE_AT,
    TABLE_BYTES,
    TABLE_END,
    Part,
    check,
    decode_table_untrusted,
)
from dfud.board.records import (
    Diagnosis,
    Key,
    State,
    decode_trailer_untrusted,
    diagnoses_untrusted,
    keys_untrusted,
    states_untrusted,
)
from dfud.board.stock import description_untrusted
from dfud.errors import PeerError
from dfud.model.espimage import read_esp_image_untrusted
from dfud.wire.manifest import FLAG_APP, decode_envelope_untrusted, verify

STATE, KEYS, DIAG, STAGE = 0x40, 0x41, 0x43, 0x42  # subtypes, bootloader/FORMAT.md
NVS, FILES = 0x02, (0x81, 0x82, 0x83)


class Slot(msgspec.Struct, frozen=True):
    """One slot, or a bank of app images. problem: why its image is not started, or ""; signed: which key's, "no", or "" without a
    manifest."""

    label: str
    size: int
    used: int
    version: str = ""
    sequence: int = 0
    sha256: str = ""
    signed: str = ""
    problem: str = ""


class Space(msgspec.Struct, frozen=True):
    """One stretch of the flash. used: bytes that are not blank, in whole sectors; told: what it holds, in words."""

    label: str
    offset: int
    size: int
    used: int
    told: str


class Look(msgspec.Struct, frozen=True):
    """keys: None if the log of keys cannot be read; current: number of the slot that the state log names, None if it is blank; the
    same of banks: bank and app_states. banks: [] on a board without them."""

    flash_bytes: int
    current: int | None
    slots: list[Slot]
    states: list[State]
    diagnoses: list[Diagnosis]
    keys: list[Key] | None
    spaces: list[Space]
    files: dict[str, int]
    nvs_keys: list[str]
    banks: list[Slot] = []
    bank: int | None = None
    app_states: list[State] = []


def look_untrusted(data: bytes) -> Look:
    """Read a flash's content; what is missing behind its end is blank. Raises PeerError without a usable partition table."""
    flash_bytes = next((size for size in sorted(SIZES.values()) if len(data) <= size), 0)
    if not flash_bytes:
        raise PeerError(f"{len(data)} bytes: larger than the largest flash of a board, {max(SIZES.values())}")
    parts = decode_table_untrusted(data[TABLE_AT : TABLE_AT + TABLE_BYTES])
    flash_bytes = max(
        flash_bytes, *(size for size in SIZES.values() if size // 2 < max(p.end for p in parts) <= size), 0
    )
    check(parts, flash_bytes)
    flash = data.ljust(flash_bytes, b"\xff")
    parts = tuple(sorted(parts, key=lambda part: part.offset))

    def content(subtype: int) -> bytes:
        return next((flash[p.offset : p.end] for p in parts if p.type != APP and p.subtype == subtype), b"")

    keys = keys_untrusted(content(KEYS))
    states = states_untrusted(content(STATE))
    slots = [_slot(part, flash[part.offset : part.end], keys) for part in parts if part.type == APP]
    app_states = states_untrusted(content(APP_STATE))
    banks = [
        _bank(part, flash[part.offset : part.end], keys)
        for part in parts
        if part.type != APP and part.subtype in (APP_A, APP_B)
    ]
    names = [f"{space}/{key}" for space, values in nvs.decode_untrusted(content(NVS)).items() for key in values]
    files: dict[str, int] = {}
    told = {}
    for part in parts:
        if part.type != APP and part.subtype in FILES:
            told[part.label], files = _files(flash[part.offset : part.end], files)
    spaces = [
        _space("bootloader", 0, BOOTLOADER_MAX_BYTES, flash, ""),
        _space("partition table", TABLE_AT, TABLE_END - TABLE_AT, flash, f"{len(parts)} partitions"),
    ]
    for part in parts:
        slot = next((s for s in slots + banks if s.label == part.label), None)
        said = told.get(part.label) or (f"{slot.version or slot.problem}" if slot else "")
        spaces.append(_space(part.label, part.offset, part.size, flash, said))
    return Look(
        flash_bytes=flash_bytes,
        current=states[-1].slot if states else None,
        slots=slots,
        states=states,
        diagnoses=diagnoses_untrusted(content(DIAG)),
        keys=keys,
        spaces=spaces,
        files=files,
        nvs_keys=sorted(names),
        banks=banks,
        bank=app_states[-1].slot if app_states else None,
        app_states=app_states,
    )


def _space(label: str, offset: int, size: int, flash: bytes, told: str) -> Space:
    blank = b"\xff" * SECTOR_BYTES
    ends = range(offset, offset + size, SECTOR_BYTES)
    used = sum(SECTOR_BYTES for at in ends if flash[at : at + SECTOR_BYTES] != blank)
    return Space(label=label, offset=offset, size=size, used=used, told=told)


def _files(data: bytes, known: dict[str, int]) -> tuple[str, dict[str, int]]:
    if not data.strip(b"\xff"):
        return "blank", known
    try:
        sizes, used = filesystem.read_untrusted(data)
    except PeerError as error:
        return str(error), known
    free = len(data) - used * filesystem.BLOCK_BYTES
    return f"littlefs: {len(sizes)} files, {free} bytes free", known | sizes


def _bank(part: Part, data: bytes, keys: list[Key] | None) -> Slot:
    if not data.strip(b"\xff"):
        return Slot(label=part.label, size=part.size, used=0, problem="empty")
    slot = Slot(label=part.label, size=part.size, used=len(data))
    try:
        raw = decode_trailer_untrusted(data[-SECTOR_BYTES:])
        if not raw:
            return msgspec.structs.replace(slot, problem="no manifest: an image that is being written")
        envelope, manifest = decode_envelope_untrusted(raw)
        image = data[: manifest.size]
        slot = Slot(
            label=part.label,
            size=part.size,
            used=manifest.size,
            version=manifest.version,
            sequence=manifest.sequence,
            sha256=hashlib.sha256(image).hexdigest(),
            signed=envelope.key.hex() or "no",
        )
        if not manifest.flags & FLAG_APP:
            raise PeerError("the manifest is one of a system image")
        if manifest.sha256.hex() != slot.sha256:
            raise PeerError("the manifest describes another image")
        appimage.files_untrusted(image)
        if keys and envelope.key:
            verify(envelope, [key.public for key in keys])
    except PeerError as error:
        return msgspec.structs.replace(slot, problem=str(error))
    return slot


def _slot(part: Part, data: bytes, keys: list[Key] | None) -> Slot:
    if not data.strip(b"\xff"):
        return Slot(label=part.label, size=part.size, used=0, problem="empty")
    try:
        image = read_esp_image_untrusted(io.BytesIO(data), len(data) - SECTOR_BYTES)
    except PeerError as error:
        return Slot(label=part.label, size=part.size, used=0, problem=str(error))
    body = data[: image.size]
    digest = hashlib.sha256(body)
    version, signed, problem, sequence = "", "", "", 0
    if image.described:
        version = description_untrusted(body)[0]
    try:
        raw = decode_trailer_untrusted(data[-SECTOR_BYTES:])
        if raw:
            envelope, manifest = decode_envelope_untrusted(raw)
            version, sequence = manifest.version, manifest.sequence
            signed = envelope.key.hex() or "no"
            # A manifest may count bytes that esptool pads an image with.
            digest = hashlib.sha256(data[: manifest.size])
            if manifest.sha256 != digest.digest():
                problem = "the manifest describes another image"
            elif keys:
                verify(envelope, [key.public for key in keys])
        elif keys:
            problem = "no manifest, and the board has keys"
        if keys is None:
            problem = "the keys cannot be read: nothing is trusted"
    except PeerError as error:
        problem = str(error)
    return Slot(
        label=part.label,
        size=part.size,
        used=image.size,
        version=version,
        sequence=sequence,
        sha256=digest.hexdigest(),
        signed=signed,
        problem=problem,
    )
