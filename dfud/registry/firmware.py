"""Firmware of an app: taking uploads, judging them, reading and deleting."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio

from dfud.api import (
    App,
    Bus,
    ConflictError,
    DeleteFirmware,
    Firmware,
    FirmwareChanged,
    NotFoundError,
    PeerError,
    PutFirmware,
    RefusedError,
    Store,
)
from dfud.model.desired import desired_of
from dfud.model.espimage import check_esp_image_untrusted
from dfud.model.names import check_name
from dfud.registry import audit
from dfud.registry.status import timestamp
from dfud.wire.manifest import FLAG_RAW, Manifest, decode_envelope_untrusted, unsigned, verify

KINDS = ("esp-image", "raw")


class Upload(msgspec.Struct, frozen=True):
    """What the publisher says of an image. envelope: the signed manifest; then version, hardware and sequence are its.

    sequence None: one more than the app's highest. sha256: of the image, checked if given.
    """

    version: str = ""
    hardware: str = ""
    sequence: int | None = None
    kind: Literal["esp-image", "raw"] = "esp-image"
    sha256: str = ""
    notes: str = ""
    envelope: bytes = b""


class FirmwareRegistry:
    def __init__(self, store: Store, bus: Bus, now: Callable[[], float], max_bytes: int) -> None:
        self._store = store
        self._bus = bus
        self._now = now
        self._max_bytes = max_bytes

    async def publish(self, app_name: str, upload: Upload, body: AsyncIterable[bytes], by: str) -> Firmware:
        """Store one image and its record. On any error nothing remains.

        Raises PeerError for an image that is not what it should be, RefusedError for one that may not be published,
        ConflictError for a version that exists with another image; publishing the same again gives the record there is.
        """
        app = await self._app(app_name)
        manifest = _manifest_of(app, upload)
        version = check_name("version", manifest.version if manifest else upload.version)
        hardware = check_name("hardware", manifest.hardware if manifest else upload.hardware)
        signed = _signed(app, upload.envelope)
        writer = await self._store.new_blob()
        try:
            size = 0
            async for data in body:
                size += len(data)
                if size > self._max_bytes:
                    raise PeerError(f"the firmware is larger than {self._max_bytes} bytes")
                await writer.write(data)
            if not size:
                raise PeerError("the firmware is empty")
            sha256 = await writer.commit()
            if upload.sha256 and upload.sha256.lower() != sha256:
                raise PeerError(f"the image arrived with SHA-256 {sha256}, expected {upload.sha256.lower()}")
            if manifest is not None and (manifest.sha256.hex() != sha256 or manifest.size != size):
                raise PeerError(f"the manifest is for another image than the one given (SHA-256 {sha256})")
            raw = bool(manifest.flags & FLAG_RAW) if manifest else upload.kind == "raw"
            if not raw:
                path = await self._store.blob(sha256)
                assert path is not None
                await trio.to_thread.run_sync(_check_image, path, size, hardware)
            existing = await self._store.firmware(app_name, version)
            if existing is not None:
                if existing.sha256 == sha256:
                    return existing
                raise ConflictError(f"firmware {version} of app {app_name} exists already, with another image")
            sequence = manifest.sequence if manifest else await self._sequence(app_name, upload.sequence)
            envelope = upload.envelope or unsigned(
                Manifest(app_name, version, hardware, sequence, size, bytes.fromhex(sha256), FLAG_RAW if raw else 0)
            )
            firmware = Firmware(
                app_name,
                version,
                hardware,
                sequence,
                size,
                sha256,
                envelope,
                "raw" if raw else "esp-image",
                signed,
                timestamp(self._now()),
                by,
                upload.notes[:4096],
            )
            entry = audit.entry(self._now(), by, "publish", f"{app_name}/{version}", sha256)
            await self._store.commit([PutFirmware(firmware), entry])
        finally:
            await writer.aclose()  # only now: it holds the image until the record does
        self._bus.publish(FirmwareChanged(firmware))
        return firmware

    async def adopt(
        self,
        app: str,
        body: AsyncIterable[bytes],
        by: str,
        *,
        version: str,
        hardware: str,
        sequence: int | None = None,
        kind: str = "esp-image",
        sha256: str = "",
        notes: str = "",
        envelope: bytes = b"",
    ) -> Firmware:
        """Publish what was found in a store's own system, judged as a user's upload is; for plugins."""
        if kind not in KINDS:
            raise PeerError(f"kind {kind[:40]!r}: expected one of {', '.join(KINDS)}")
        said = Upload(version, hardware, sequence, kind, sha256, notes, envelope)  # type: ignore[arg-type]  # checked above
        return await self.publish(app, said, body, by)

    async def list(self, app: str) -> list[Firmware]:
        await self._app(app)
        return await self._store.firmwares(app)

    async def get(self, app: str, version: str) -> Firmware:
        found = await self._store.firmware(app, version)
        if found is None:
            raise NotFoundError(f"no firmware {version} in app {app}")
        return found

    async def image(self, app: str, version: str) -> Path:
        path = await self._store.blob((await self.get(app, version)).sha256)
        if path is None:
            raise NotFoundError(f"the image of firmware {version} is missing from the store")
        return path

    async def delete(self, app_name: str, version: str, by: str) -> None:
        """Delete a firmware that nobody wants. Raises RefusedError that names who does.

        In a store without Capability.DELETE_FIRMWARE the version's name stays taken for ever.
        """
        firmware = await self.get(app_name, version)
        app = await self._app(app_name)
        users = [f"device {name}" for name in await self._store.users_of(app_name, version)]
        if desired_of(app.spec, {}).version == version:
            users.insert(0, f"app {app_name}")
        if users:
            raise RefusedError(
                f"firmware {version} is wanted by {', '.join(users[:5])}{' and others' if len(users) > 5 else ''}"
            )
        entry = audit.entry(self._now(), by, "delete-firmware", f"{app_name}/{version}", firmware.sha256)
        await self._store.commit([DeleteFirmware(app_name, version), entry])
        self._bus.publish(FirmwareChanged(firmware, deleted=True))

    async def _app(self, name: str) -> App:
        app = await self._store.app(name)
        if app is None:
            raise NotFoundError(f"no app {name}")
        return app

    async def _sequence(self, app: str, given: int | None) -> int:
        if given is not None:
            return given
        highest = await self._store.firmwares(app)
        return highest[0].sequence + 1 if highest else 1


def _check_image(path: Path, size: int, hardware: str) -> None:
    with path.open("rb") as file:
        check_esp_image_untrusted(file, size, hardware)


def signing_of(app: App) -> tuple[bool, list[bytes]]:
    """Return whether the app insists on signatures, and its public keys: spec.signing {"mode", "keys"}."""
    section: Any = app.spec.get("signing")
    section = section if isinstance(section, dict) else {}
    keys: list[bytes] = []
    for text in section.get("keys", []) if isinstance(section.get("keys"), list) else []:
        try:
            key = msgspec.convert(text, bytes)  # base64
        except msgspec.ValidationError:
            continue
        if len(key) == 32:
            keys.append(key)
    return section.get("mode") != "optional", keys


def _signed(app: App, envelope: bytes) -> bool:
    required, keys = signing_of(app)
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


def _manifest_of(app: App, upload: Upload) -> Manifest | None:
    if not upload.envelope:
        return None
    _, manifest = decode_envelope_untrusted(upload.envelope)
    if manifest.app != app.name:
        raise PeerError(f"the manifest is for app {manifest.app}, not for {app.name}")
    for what, said, stated in (
        ("version", upload.version, manifest.version),
        ("hardware", upload.hardware, manifest.hardware),
    ):
        if said and said != stated:
            raise PeerError(f"{what} {said!r} was given, the manifest says {stated!r}")
    return manifest
