"""Firmware of an app: taking uploads, judging them, reading and deleting."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal
from weakref import WeakValueDictionary

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
    Rollout,
    Store,
    StoreError,
    UnreadableError,
)
from dfud.model.desired import desired_of
from dfud.model.espimage import check_application_untrusted, hardware_name
from dfud.model.layout import too_large
from dfud.model.names import check_name
from dfud.model.policy import rules_for
from dfud.model.rollout_states import FINAL
from dfud.model.untrusted import check_json_untrusted
from dfud.registry import audit, guards
from dfud.registry.status import timestamp
from dfud.wire.manifest import (
    FLAG_DOWNGRADE,
    FLAG_RAW,
    Manifest,
    decode_envelope_untrusted,
    key_id,
    unsigned,
    verify,
)
from dfud.wire.trust import Trust, signing_of, trust_of

NOTES_MAX_BYTES = 4096
TRIES = 8
KINDS = ("esp-image", "raw")


class Upload(msgspec.Struct, frozen=True):
    """What the publisher says of an image. envelope: the signed manifest; then version, hardware and sequence are its.

    hardware: of a chip in any spelling that espimage.hardware_name knows; the canonical one is stored.
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
        self._recording: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()  # by app

    async def publish(self, app_name: str, upload: Upload, body: AsyncIterable[bytes], by: str) -> Firmware:
        """Store one image and its record. On any error nothing remains.

        The same image again, under the same version: a manifest that says something else (signature, sequence, floor, keys)
        replaces the one there is, which keeps its place in time; the same again gives the record there is.

        Raises PeerError for an image that is not what it should be, RefusedError for one that may not be published,
        ConflictError for a version that exists with another image.
        """
        app = await self._app(app_name)
        upload = msgspec.structs.replace(upload, hardware=hardware_name(upload.hardware))
        manifest = _manifest_of(app, upload)
        check_name("version", manifest.version if manifest else upload.version)
        check_name("hardware", manifest.hardware if manifest else upload.hardware)
        if len(upload.notes.encode("utf-8", "surrogatepass")) > NOTES_MAX_BYTES:
            raise PeerError(f"notes: expected at most {NOTES_MAX_BYTES} bytes")
        check_json_untrusted(upload.notes, "notes", max_bytes=6 * NOTES_MAX_BYTES + 2)
        _check_signature(app, upload.envelope)
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
                hardware = manifest.hardware if manifest else upload.hardware
                async with self._store.blob(sha256) as path:
                    if path is None:
                        raise StoreError(f"the image {sha256} is gone from the store", retryable=True)
                    await trio.to_thread.run_sync(_check_image, path, size, hardware)
            # One after the other, so that however many publish at once, each needs one try. The guard is for everybody else.
            turn = self._recording.setdefault(app_name, trio.Lock())
            async with turn:
                return await self._record(app_name, upload, manifest, size, sha256, raw, by)
        finally:
            await writer.aclose()  # only now: it holds the image until the record does

    async def _record(
        self, app_name: str, upload: Upload, manifest: Manifest | None, size: int, sha256: str, raw: bool, by: str
    ) -> Firmware:
        """Make or replace the record of an image that is stored; read again whenever somebody else was in between."""
        version = manifest.version if manifest else upload.version
        target = f"{app_name}/{version}"
        why = ""
        for _ in range(TRIES):
            # The keys of the app may have changed while the image came in, and the number of a firmware be given away.
            guarded = await guards.take(self._store, f"firmware {app_name}")
            app = await self._app(app_name)
            signed = _check_signature(app, upload.envelope)
            if problem := too_large(app.spec, manifest.hardware if manifest else upload.hardware, size):
                raise RefusedError(f"app {app_name}: {problem}")
            existing = await self._existing(app_name, version)
            if existing is not None and existing.sha256 != sha256:
                raise ConflictError(f"firmware {version} of app {app_name} exists already, with another image")
            if existing is not None and not _replaces(existing, upload, manifest, raw):
                return existing
            firmware = Firmware(
                app=app_name,
                version=version,
                hardware=manifest.hardware if manifest else upload.hardware,
                sequence=manifest.sequence if manifest else await self._sequence(app_name, upload.sequence),
                size_bytes=size,
                sha256=sha256,
                manifest=upload.envelope,
                kind="raw" if raw else "esp-image",
                signed=signed,
                created=existing.created if existing is not None else timestamp(self._now()),
                uploaded_by=by,
                notes=upload.notes or (existing.notes if existing is not None else ""),
            )
            if not firmware.manifest:
                firmware = msgspec.structs.replace(firmware, manifest=_unsigned(firmware))
            if existing is None:
                entry = audit.entry(self._now(), by, "publish", target, f"{sha256}, {_told(firmware)}")
            else:
                changed = f"{sha256}: {_told(existing)} -> {_told(firmware)}"
                entry = audit.entry(self._now(), by, "replace-manifest", target, changed)
            try:
                await self._store.commit([PutFirmware(firmware, create=existing is None), *guarded, entry])
            except (ConflictError, NotFoundError) as error:
                why = str(error)
                continue
            self._bus.publish(FirmwareChanged(firmware))
            return firmware
        raise ConflictError(
            f"firmware {version} of app {app_name} was not published in {TRIES} tries; the last one: {why}"
        )

    async def _existing(self, app: str, version: str) -> Firmware | None:
        """Return the record of a version, or None. Raises RefusedError for one that cannot be read."""
        try:
            return await self._store.firmware(app, version)
        except UnreadableError:
            raise RefusedError(
                f"the record of firmware {version} cannot be read: delete it, then publish it again"
            ) from None

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

    async def list(self, app_name: str) -> list[Firmware]:
        """Return all firmware of an app, newest sequence first, `signed` as the app's keys make of it now."""
        app = await self._app(app_name)
        return [_as_now(app, firmware) for firmware in await self._store.firmwares(app_name)]

    async def get(self, app_name: str, version: str) -> Firmware:
        """Return one firmware as list() does. Raises NotFoundError, UnreadableError."""
        found = await self._store.firmware(app_name, version)
        if found is None:
            raise NotFoundError(f"no firmware {version} in app {app_name}")
        return _as_now(await self._app(app_name), found)

    @asynccontextmanager
    async def image(self, app: str, version: str) -> AsyncIterator[Path]:
        """Lend the file with a firmware's image. Raises NotFoundError."""
        async with self._store.blob((await self.get(app, version)).sha256) as path:
            if path is None:
                raise NotFoundError(f"the image of firmware {version} is missing from the store")
            yield path

    async def delete(self, app_name: str, version: str, by: str, rollouts: Sequence[Rollout] = ()) -> None:
        """Delete a firmware that nobody wants. Raises RefusedError that names who does. rollouts: those of the app.

        In a store without Capability.DELETE_FIRMWARE the version's name stays taken for ever.
        """
        app = await self._app(app_name)
        try:
            firmware = await self.get(app_name, version)
        except UnreadableError:
            # Nobody can be sent it; whoever wants it is told that it is not published.
            entry = audit.entry(
                self._now(), by, "delete-firmware", f"{app_name}/{version}", "the record could not be read"
            )
            await self._store.commit([DeleteFirmware(app_name, version), entry])
            return
        users = [
            *([f"app {app_name}"] if desired_of(app.spec, {}).version == version else []),
            *rules_for(app.spec, version),
            *(
                f"rollout {r.name}"
                for r in rollouts
                if r.status.state not in FINAL and r.spec.get("firmware") == version
            ),
            *(f"device {name}" for name in await self._store.users_of(app_name, version)),
        ]
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
        check_application_untrusted(file, size, hardware)


def trust_shown(firmware: Firmware) -> Trust:
    """Return what users read of the trust in a firmware that list() or get() gave."""
    # Without keys nothing is signed; so this tells one that has no signature from one whose key the app does not have.
    return Trust.SIGNED if firmware.signed else trust_of({}, firmware.manifest)


def _as_now(app: App, firmware: Firmware) -> Firmware:
    return msgspec.structs.replace(firmware, signed=trust_of(app.spec, firmware.manifest) is Trust.SIGNED)


def _check_signature(app: App, envelope: bytes) -> bool:
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


def _replaces(existing: Firmware, upload: Upload, manifest: Manifest | None, raw: bool) -> bool:
    """Say whether what is given for an image that is published says something new, which then replaces the record.

    Raises ConflictError for what would make it another firmware, RefusedError where its signature would be lost.
    """
    hardware = manifest.hardware if manifest else upload.hardware
    kind = "raw" if raw else "esp-image"
    for what, given, held in (("hardware", hardware, existing.hardware), ("kind", kind, existing.kind)):
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
        return upload.sequence not in (None, existing.sequence)
    return True


def _told(firmware: Firmware) -> str:
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
    told += [f"adds key {key_id(key).hex()}" for key in manifest.add]
    told += [f"revokes key {key.hex()}" for key in manifest.revoke]
    return " ".join(told)


def _unsigned(f: Firmware) -> bytes:
    flags = FLAG_RAW if f.kind == "raw" else 0
    manifest = Manifest(
        app=f.app,
        version=f.version,
        hardware=f.hardware,
        sequence=f.sequence,
        size=f.size_bytes,
        sha256=bytes.fromhex(f.sha256),
        flags=flags,
    )
    return unsigned(manifest)


def _manifest_of(app: App, upload: Upload) -> Manifest | None:
    if not upload.envelope:
        return None
    _, manifest = decode_envelope_untrusted(upload.envelope)
    if manifest.app != app.name:
        raise PeerError(f"the manifest is for app {manifest.app}, not for {app.name}")
    canonical = hardware_name(manifest.hardware)
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
