"""Firmware of an app: taking uploads, judging them, reading and deleting."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
import trio

from dfud.api import (
    App,
    Bus,
    Capability,
    Change,
    ConflictError,
    DeleteFirmware,
    Firmware,
    FirmwareChanged,
    Image,
    NotFoundError,
    PeerError,
    PutApp,
    PutFirmware,
    Recall,
    RefusedError,
    Store,
    StoreError,
    UnreadableError,
)
from dfud.model.espimage import hardware_name
from dfud.model.firmware import Kind
from dfud.model.layout import too_large
from dfud.model.names import check_name
from dfud.model.untrusted import check_json_untrusted
from dfud.registry import audit, guards
from dfud.registry.images import Bound, added, chosen, read_requires, replaced
from dfud.registry.status import timestamp
from dfud.registry.uploads import (
    Upload,
    check_image_untrusted,
    check_signature,
    kind_of,
    manifest_of,
    replaces,
    told_of,
    unsigned_manifest,
    ways_of,
)
from dfud.registry.wanted import check_unwanted
from dfud.wire.manifest import Manifest, beside_of
from dfud.wire.trust import Trust, trust_of

__all__ = ["KINDS", "NOTES_MAX_BYTES", "FirmwareRegistry", "Upload", "trust_shown"]

NOTES_MAX_BYTES = 4096
TRIES = 8
KINDS = ("esp-image", "raw", "app")


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
        manifest = manifest_of(app, upload)
        check_name("version", manifest.version if manifest else upload.version)
        check_name("hardware", manifest.hardware if manifest else upload.hardware)
        if len(upload.notes.encode("utf-8", "surrogatepass")) > NOTES_MAX_BYTES:
            raise PeerError(f"notes: expected at most {NOTES_MAX_BYTES} bytes")
        check_json_untrusted(upload.notes, "notes", max_bytes=6 * NOTES_MAX_BYTES + 2)
        check_signature(app, upload.envelope)
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
            kind = kind_of(upload, manifest)
            if kind == "esp-image":
                hardware = manifest.hardware if manifest else upload.hardware
                async with self._store.blob(sha256) as path:
                    if path is None:
                        raise StoreError(f"the image {sha256} is gone from the store", retryable=True)
                    await trio.to_thread.run_sync(check_image_untrusted, path, size, hardware)
            # One after the other, so that however many publish at once, each needs one try. The guard is for everybody else.
            turn = self._recording.setdefault(app_name, trio.Lock())
            async with turn:
                return await self._record(app_name, upload, manifest, size, sha256, kind, by)
        finally:
            await writer.aclose()  # only now: it holds the image until the record does

    async def _record(
        self, app_name: str, upload: Upload, manifest: Manifest | None, size: int, sha256: str, kind: Kind, by: str
    ) -> Firmware:
        """Make or replace the record of an image that is stored; read again whenever somebody else was in between."""
        version = manifest.version if manifest else upload.version
        target = f"{app_name}/{version}"
        why = ""
        for _ in range(TRIES):
            # The keys of the app may have changed while the image came in, and the number of a firmware be given away.
            guarded = await guards.take(self._store, f"firmware {app_name}")
            app = await self._app(app_name)
            signed = check_signature(app, upload.envelope)
            hardware = manifest.hardware if manifest else upload.hardware
            if kind != "app" and (problem := too_large(app.spec, hardware, size)):
                raise RefusedError(f"app {app_name}: {problem}")
            existing = await self._existing(app_name, version)
            held = existing.of_digest(sha256) if existing is not None else None
            if held is not None and not replaces(held, upload, manifest, kind) and existing is not None:
                await self._same_ways(existing, upload)
                return existing
            if held is None and existing is not None and Capability.SEVERAL_IMAGES not in self._store.capabilities:
                raise ConflictError(
                    f"firmware {version} of app {app_name} exists already, with another image; the store {self._store.name} "
                    "holds one image for each version: publish this one under a version of its own"
                )
            if existing is not None and (existing.kind == "app") != (kind == "app"):
                raise ConflictError(
                    f"firmware {version} of app {app_name} exists already as {existing.of_kind} firmware: a version is of one kind, "
                    "publish this one under another"
                )
            default = existing.sequence if existing is not None else None
            firmware = Firmware(
                app=app_name,
                version=version,
                hardware=manifest.hardware if manifest else upload.hardware,
                sequence=manifest.sequence
                if manifest
                else await self._sequence(app_name, upload.sequence, default, kind),
                size_bytes=size,
                sha256=sha256,
                manifest=upload.envelope,
                kind=kind,
                signed=signed,
                created=timestamp(self._now()),
                uploaded_by=by,
                notes=upload.notes,
                attributes=upload.attributes,
            )
            if not firmware.manifest:
                firmware = msgspec.structs.replace(
                    firmware, manifest=unsigned_manifest(firmware, _beside(held, upload))
                )
            about = f"{sha256} for {firmware.first.meant_for}, {told_of(firmware)}"
            if existing is None:
                firmware = await self._with_ways(firmware, upload)
                entry = audit.entry(self._now(), by, "publish", target, about)
            elif held is None:
                firmware = _updated(added(existing, firmware.first), firmware)
                await self._same_ways(firmware, upload)
                entry = audit.entry(self._now(), by, "publish-image", target, about)
            else:
                changed = f"{sha256}: {told_of(held)} -> {told_of(firmware)}"
                entry = audit.entry(self._now(), by, "replace-manifest", target, changed)
                firmware = _updated(replaced(existing, firmware.first), firmware)
                await self._same_ways(firmware, upload)
            try:
                put = PutFirmware(firmware, create=existing is None, expect=existing)
                await self._store.commit([put, *guarded, entry])
            except (ConflictError, NotFoundError) as error:
                why = str(error)
                continue
            self._bus.publish(FirmwareChanged(firmware))
            return firmware
        raise ConflictError(
            f"firmware {version} of app {app_name} was not published in {TRIES} tries; the last one: {why}"
        )

    async def _with_ways(self, firmware: Firmware, upload: Upload) -> Firmware:
        """Return the record with what the publisher says of the ways to it. Raises PeerError that names the field."""
        requires = None
        if upload.requires is not None:
            published = [f for f in await self._store.firmwares(firmware.app) if f.of_kind == firmware.of_kind]
            requires = read_requires(upload.requires, published, firmware.version, firmware.sequence)
        return msgspec.structs.replace(firmware, requires=requires, stop=upload.stop)

    async def _same_ways(self, firmware: Firmware, upload: Upload) -> None:
        """Raise ConflictError where the upload says something else of the ways to a version that exists."""
        given = await self._with_ways(firmware, upload)
        if (upload.requires is not None and given.requires != firmware.requires) or (upload.stop and not firmware.stop):
            raise ConflictError(
                f"firmware {firmware.version} exists already, with other ways to it: change them for all its images "
                f"(`dfuctl firmware ways {firmware.version}`)"
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
        said = Upload(
            version=version,
            hardware=hardware,
            sequence=sequence,
            kind=kind,  # type: ignore[arg-type]  # checked above
            sha256=sha256,
            notes=notes,
            envelope=envelope,
        )
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
    async def image(
        self, app: str, version: str, hardware: str = "", attributes: Mapping[str, str] | None = None
    ) -> AsyncIterator[tuple[Path, Image]]:
        """Lend the file with an image of a version, and say what is known of it; the only one needs no name.

        Raises NotFoundError, RefusedError.
        """
        found = chosen(await self.get(app, version), hardware_name(hardware), attributes or {})
        async with self._store.blob(found.sha256) as path:
            if path is None:
                raise NotFoundError(f"the image of firmware {version} is missing from the store")
            yield path, found

    # Ways and recalls

    async def set_ways(self, app: str, version: str, requires: Bound | None, stop: bool, by: str) -> Firmware:
        """Say which versions may go to one directly (None: all), and whether it may be skipped. Raises PeerError, NotFoundError."""

        async def changed(old: Firmware) -> tuple[Firmware, str]:
            asked = Upload(requires=requires, stop=stop)
            new = await self._with_ways(old, asked)
            return new, f"{ways_of(old)} -> {ways_of(new)}"

        return await self._change(app, version, by, "firmware-ways", changed)

    async def recall(self, app: str, version: str, reason: str, by: str) -> Firmware:
        """Have nobody get a version any longer. Raises PeerError without a reason, NotFoundError."""
        if not reason.strip():
            raise PeerError("reason: empty, expected why the firmware is recalled")

        async def changed(old: Firmware) -> tuple[Firmware, str]:
            return msgspec.structs.replace(old, recalled=Recall(reason, by, timestamp(self._now()))), reason

        return await self._change(app, version, by, "recall", changed)

    async def unrecall(self, app: str, version: str, by: str) -> Firmware:
        """Take a recall back. Raises RefusedError where there is none."""

        async def changed(old: Firmware) -> tuple[Firmware, str]:
            if old.recalled is None:
                raise RefusedError(f"firmware {version} is not recalled")
            return msgspec.structs.replace(old, recalled=None), old.recalled.reason

        return await self._change(app, version, by, "unrecall", changed)

    async def _change(
        self, app: str, version: str, by: str, what: str, changed: Callable[[Firmware], Awaitable[tuple[Firmware, str]]]
    ) -> Firmware:
        """Replace a record by what `changed` makes of it and tells the audit log; again whenever somebody was in between."""
        why = ""
        for _ in range(TRIES):
            guarded = await guards.take(self._store, f"firmware {app}")
            old = await self._existing(app, version)  # as it is stored, not as its keys make of it now
            if old is None:
                raise NotFoundError(f"no firmware {version} in app {app}")
            new, detail = await changed(old)
            entry = audit.entry(self._now(), by, what, f"{app}/{version}", detail)
            try:
                await self._store.commit([PutFirmware(new, expect=old), *guarded, entry])
            except ConflictError as error:
                why = str(error)
                continue
            self._bus.publish(FirmwareChanged(new))
            return new
        raise ConflictError(f"firmware {version} of app {app} was not changed in {TRIES} tries; the last one: {why}")

    async def delete_image(self, app: str, version: str, hardware: str, attributes: Mapping[str, str], by: str) -> None:
        """Delete one image of a version that nobody wants; with the last one the version goes. Raises RefusedError."""
        gone = chosen(await self.get(app, version), hardware_name(hardware), attributes)
        await self._delete(app, version, by, gone)

    async def delete(self, app_name: str, version: str, by: str) -> None:
        """Delete a firmware that nobody wants. Raises RefusedError that names who does.

        Who wants it at the same time has it kept, or is too late. In a store without Capability.DELETE_FIRMWARE the version's name
        stays taken for ever.
        """
        await self._delete(app_name, version, by)

    async def _delete(self, app_name: str, version: str, by: str, gone: Image | None = None) -> None:
        """Delete a version, or one image of it: the last one takes the version along."""
        target = f"{app_name}/{version}"
        for _ in range(TRIES):
            guarded = await guards.take(self._store, guards.wishes_of(app_name))
            guarded += await guards.take(self._store, f"firmware {app_name}")
            app = await self._app(app_name)
            try:
                firmware = await self.get(app_name, version)
            except UnreadableError:
                # Nobody can be sent it; whoever wants it is told that it is not published.
                entry = audit.entry(self._now(), by, "delete-firmware", target, "the record could not be read")
                gone_now = guards.touch(guards.deletions_in(app_name))
                await self._store.commit([DeleteFirmware(app_name, version), gone_now, entry])
                return
            others = [] if gone is None else [image for image in firmware.images if image.meant_for != gone.meant_for]
            if gone is not None and len(others) == len(firmware.images):
                raise NotFoundError(f"firmware {version} has no image for {gone.meant_for} any longer")
            left = firmware.with_images(others) if others else None
            await check_unwanted(self._store, app, version)
            what = "delete-firmware" if left is None else "delete-image"
            told = ", ".join(image.sha256 for image in firmware.images)
            if left is not None and gone is not None:
                told = f"{gone.sha256} for {gone.meant_for}"
            entry = audit.entry(self._now(), by, what, target, told)
            # What was judged is judged again by the store: the app as it was read, no rollout made since, no device.
            changes: list[Change] = [PutApp(app, expect=app.metadata.resource_version or None)]
            changes += [
                DeleteFirmware(app_name, version, unused=True),
                guards.touch(guards.deletions_in(app_name)),
                *([PutFirmware(left)] if left is not None else ()),
            ]
            try:
                await self._store.commit([*changes, *guarded, entry])
            except ConflictError:
                continue
            self._bus.publish(FirmwareChanged(firmware if left is None else left, deleted=left is None))
            return
        raise ConflictError(f"what devices of app {app_name} should run is being changed by others; try again")

    async def _app(self, name: str) -> App:
        app = await self._store.app(name)
        if app is None:
            raise NotFoundError(f"no app {name}")
        return app

    async def _sequence(self, app: str, given: int | None, default: int | None, kind: Kind) -> int:
        """Return the sequence of an image: one more than the highest of its kind, where nothing else says it."""
        if given is not None:
            return given
        if default is not None:
            return default
        same = [f.sequence for f in await self._store.firmwares(app) if (f.kind == "app") == (kind == "app")]
        return max(same, default=0) + 1


def _beside(held: Firmware | None, upload: Upload) -> tuple[int, int] | None:
    """Return which sequences of the other kind an unsigned image runs with: as is said, else as was said of it before."""
    if upload.beside is not None or held is None:
        return upload.beside
    return beside_of(held.manifest)


def trust_shown(firmware: Firmware | Image) -> Trust:
    """Return what users read of the trust in a firmware that list() or get() gave."""
    # Without keys nothing is signed; so this tells one that has no signature from one whose key the app does not have.
    return Trust.SIGNED if firmware.signed else trust_of({}, firmware.manifest)


def _as_now(app: App, firmware: Firmware) -> Firmware:
    return firmware.with_images(
        msgspec.structs.replace(image, signed=trust_of(app.spec, image.manifest) is Trust.SIGNED)
        for image in firmware.images
    )


def _updated(record: Firmware, given: Firmware) -> Firmware:
    """Return a record that has got an image, with what else the upload says of the version."""
    return msgspec.structs.replace(record, uploaded_by=given.uploaded_by, notes=given.notes or record.notes)
