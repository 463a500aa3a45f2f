"""The registry's rules, without HTTP: apps and devices, and which firmware they should run.

Every change is committed together with its audit entry, then told on the bus. `by` is the name of the user.
"""

from __future__ import annotations

import base64
import secrets
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dfud.api import (
    App,
    AppChanged,
    Bus,
    Change,
    ConflictError,
    DeleteApp,
    DeleteDevice,
    Device,
    DeviceChanged,
    DeviceView,
    Metadata,
    NotFoundError,
    PeerError,
    PutApp,
    PutDevice,
    RefusedError,
    Selector,
    Store,
)
from dfud.model.anchors import subjects_of
from dfud.model.credentials import PSK_BYTES, new_secret, protect
from dfud.model.desired import desired_of
from dfud.model.names import check_app_name, check_device_name, check_labels
from dfud.registry import audit
from dfud.registry.status import firmware_status, timestamp

SPEC_MAX_BYTES = 1 << 18
DEVICES_PER_COMMIT = 200


class Precondition(msgspec.Struct, frozen=True):
    """What a user read before he asked for a change; empty: anything."""

    uid: str = ""
    resource_version: str = ""


class Registry:
    """All writing of apps and devices. `credential_key`: under which device passwords are hashed."""

    def __init__(self, store: Store, bus: Bus, credential_key: bytes, now: Callable[[], float]) -> None:
        self._store = store
        self._bus = bus
        self._key = credential_key
        self._now = now

    # Reading

    async def app(self, name: str) -> App:
        found = await self._store.app(name)
        if found is None:
            raise NotFoundError(f"no app {name}")
        return found

    async def apps(self, selector: Selector, limit: int, offset: int) -> list[App]:
        return await self._store.apps(selector, limit=limit, offset=offset)

    async def device(self, app: str, name: str) -> Device:
        """Return a device with its status filled in."""
        parent = await self.app(app)
        view = await self._store.device(app, name)
        if view is None:
            raise NotFoundError(f"no device {name} in app {app}")
        return await self.with_status(parent, view)

    async def devices(self, app: str, selector: Selector, limit: int, offset: int) -> list[Device]:
        parent = await self.app(app)
        views = await self._store.devices(app, selector, limit=limit, offset=offset)
        return [await self.with_status(parent, view) for view in views]

    async def with_status(self, app: App, view: DeviceView) -> Device:
        version = desired_of(app.spec, view.device.spec).version
        target = await self._store.firmware(app.name, version) if version else None
        return msgspec.structs.replace(view.device, status={"firmware": firmware_status(app, view, target)})

    # Apps

    async def create_app(self, given: App, by: str) -> App:
        check_app_name(given.name)
        app = App(self._new_metadata(given.metadata, ""), _checked_spec(given.spec))
        await self._check_anchors(app)
        await self._commit([PutApp(app, expect="")], by, "create", app.name)
        self._bus.publish(AppChanged(app.name))
        return app

    async def update_app(self, name: str, given: App, by: str) -> None:
        if given.name != name:
            raise PeerError(f"the body names app {given.name!r}, the path {name!r}")
        old = await self.app(name)
        metadata = self._next_metadata(old.metadata, given.metadata, given.spec != old.spec)
        app = App(metadata, _checked_spec(given.spec))
        if _same(old.metadata, given.metadata) and app.spec == old.spec:
            return
        if metadata.deletion_timestamp and not metadata.finalizers:
            await self._commit([DeleteApp(name, old.metadata.resource_version)], by, "delete", name)
            self._bus.publish(AppChanged(name, deleted=True))
            return
        if app.spec.get("trustAnchors") != old.spec.get("trustAnchors"):
            await self._check_anchors(app)
        await self._commit(
            [PutApp(app, old.metadata.resource_version)], by, "update", name, _what_changed(old.spec, app.spec)
        )
        self._bus.publish(AppChanged(name))

    async def _check_anchors(self, app: App) -> None:
        """Raise ConflictError if another app has an anchor of the same name: its devices would be taken for this app's."""
        wanted = subjects_of(app.spec)
        offset = 0
        while wanted and (apps := await self._store.apps(limit=500, offset=offset)):
            offset += len(apps)
            for other in apps:
                taken = wanted & subjects_of(other.spec) if other.name != app.name else ()
                if taken:
                    raise ConflictError(f"spec.trustAnchors: {min(taken)} is the anchor of another app already")

    async def delete_app(self, name: str, condition: Precondition, by: str) -> None:
        old = await self.app(name)
        _check(old.metadata, condition, f"app {name}")
        if old.metadata.deletion_timestamp:
            raise NotFoundError(f"no app {name}")
        if old.metadata.finalizers:
            app = App(self._deleting(old.metadata), old.spec)
            await self._commit([PutApp(app, old.metadata.resource_version)], by, "delete", name, "waits for finalizers")
            self._bus.publish(AppChanged(name))
            return
        await self._commit([DeleteApp(name, old.metadata.resource_version)], by, "delete", name)
        self._bus.publish(AppChanged(name, deleted=True))

    # Devices

    async def create_device(
        self, app: str, given: Device, by: str, *, also: Sequence[Change] = (), what: str = "create"
    ) -> Device:
        """Make a device. `also` is committed with it or not at all; `what` is the audit's word for it."""
        check_device_name(given.name)
        if given.app not in ("", app):
            raise PeerError(f"the body names app {given.app!r}, the path {app!r}")
        await self.app(app)
        await self._names_are_free(app, given.name, {given.name, *_aliases(given.spec)})
        device = Device(self._new_metadata(given.metadata, app), protect(_checked_spec(given.spec), self._key))
        await self._commit([PutDevice(device, expect=""), *also], by, what, f"{app}/{device.name}")
        self._bus.publish(DeviceChanged(app, device.name))
        return device

    async def update_device(self, app: str, name: str, given: Device, by: str) -> None:
        if given.name != name or given.app not in ("", app):
            raise PeerError("the body names another device than the path")
        view = await self._store.device(app, name)
        if view is None:
            raise NotFoundError(f"no device {name} in app {app}")
        old = view.device
        await self._names_are_free(app, name, _aliases(given.spec) - _aliases(old.spec))
        spec = protect(_checked_spec(given.spec), self._key)
        metadata = self._next_metadata(old.metadata, given.metadata, spec != old.spec)
        if _same(old.metadata, given.metadata) and spec == old.spec:
            return
        target = f"{app}/{name}"
        version = old.metadata.resource_version
        if metadata.deletion_timestamp and not metadata.finalizers:
            await self._commit([DeleteDevice(app, name, version)], by, "delete", target)
            self._bus.publish(DeviceChanged(app, name, deleted=True))
            return
        await self._commit(
            [PutDevice(Device(metadata, spec), version)], by, "update", target, _what_changed(old.spec, spec)
        )
        self._bus.publish(DeviceChanged(app, name))

    async def _names_are_free(self, app: str, device: str, names: set[str]) -> None:
        """Raise ConflictError if another device of the app is known by one of these names already."""
        for name in sorted(names):
            other = await self._store.find_alias(app, name)
            if other not in (None, device):
                raise ConflictError(f"{name!r} is the name or an alias of device {other} of app {app} already")

    async def delete_device(self, app: str, name: str, condition: Precondition, by: str) -> None:
        view = await self._store.device(app, name)
        if view is None or view.device.metadata.deletion_timestamp:
            raise NotFoundError(f"no device {name} in app {app}")
        old = view.device
        _check(old.metadata, condition, f"device {name}")
        if old.metadata.finalizers:
            device = Device(self._deleting(old.metadata), old.spec)
            await self._commit([PutDevice(device, old.metadata.resource_version)], by, "delete", f"{app}/{name}")
            self._bus.publish(DeviceChanged(app, name))
            return
        await self._commit([DeleteDevice(app, name, old.metadata.resource_version)], by, "delete", f"{app}/{name}")
        self._bus.publish(DeviceChanged(app, name, deleted=True))

    async def new_secret(self, app: str, name: str, by: str, *, keep: int = 1) -> str:
        """Give a device a fresh secret beside the `keep` newest it has; return it, the only time that it is shown.

        The old one goes on working until the next rotation, so that a device that misses the news is not lost.
        """
        view = await self._store.device(app, name)
        if view is None:
            raise NotFoundError(f"no device {name} in app {app}")
        secret = new_secret()
        section = view.device.spec.get("authentication")
        held = section.get("credentials", []) if isinstance(section, dict) else []
        others = [c for c in held if not (isinstance(c, dict) and "pass" in c)]
        mine = [c for c in held if isinstance(c, dict) and "pass" in c]
        kept = mine[-keep:] if keep else []
        spec = {**view.device.spec, "authentication": {"credentials": [*others, *kept, {"pass": secret}]}}
        spec = protect(spec, self._key)
        metadata = self._next_metadata(view.device.metadata, view.device.metadata, True)
        put = PutDevice(Device(metadata, spec), view.device.metadata.resource_version)
        await self._commit([put], by, "rotate-secret", f"{app}/{name}")
        self._bus.publish(DeviceChanged(app, name))
        return secret

    async def new_psk(self, app: str, name: str, by: str) -> bytes:
        """Give a device a fresh pre-shared key in place of all it has; return it, the only time that it is shown.

        The old ones end at once: a security context has one key, so there is no going over from one to another.
        """
        view = await self._store.device(app, name)
        if view is None:
            raise NotFoundError(f"no device {name} in app {app}")
        psk = secrets.token_bytes(PSK_BYTES)
        section = view.device.spec.get("authentication")
        held = section.get("credentials", []) if isinstance(section, dict) else []
        others = [c for c in held if not (isinstance(c, dict) and "psk" in c)]
        fresh = {"psk": {"key": base64.b64encode(psk).decode()}}
        spec = protect({**view.device.spec, "authentication": {"credentials": [*others, fresh]}}, self._key)
        metadata = self._next_metadata(view.device.metadata, view.device.metadata, True)
        put = PutDevice(Device(metadata, spec), view.device.metadata.resource_version)
        await self._commit([put], by, "rotate-psk", f"{app}/{name}")
        self._bus.publish(DeviceChanged(app, name))
        return psk

    # Desired firmware

    async def set_firmware(self, app: str, device: str | None, firmware: dict[str, Any] | None, by: str) -> None:
        """Set spec.firmware of an app (device None) or a device; None removes it."""
        if device is None:
            parent = await self.app(app)
            await self.update_app(app, App(parent.metadata, _with_firmware(parent.spec, firmware)), by)
            return
        view = await self._store.device(app, device)
        if view is None:
            raise NotFoundError(f"no device {device} in app {app}")
        await self.update_device(
            app, device, Device(view.device.metadata, _with_firmware(view.device.spec, firmware)), by
        )

    async def update_group(self, app: str, selector: Selector, firmware: dict[str, Any] | None, by: str) -> list[str]:
        """Set spec.firmware of every device that the selector matches; return their names.

        Committed in pieces of DEVICES_PER_COMMIT; a device that somebody changes meanwhile is tried once more.
        """
        await self._published(app, firmware)
        changed: list[str] = []
        after = ""
        while views := await self._store.devices(app, selector, limit=DEVICES_PER_COMMIT, after=after):
            after = views[-1].device.name
            devices = [v.device for v in views if _with_firmware(v.device.spec, firmware) != v.device.spec]
            puts: list[Change] = [self._put_firmware(device, firmware) for device in devices]
            if not puts:
                continue
            try:
                await self._commit(puts, by, "update-group", app, f"{len(puts)} devices")
            except (ConflictError, NotFoundError):
                for device in devices:
                    await self.set_firmware(app, device.name, firmware, by)
            for device in devices:
                self._bus.publish(DeviceChanged(app, device.name))
            changed += [device.name for device in devices]
        return changed

    def _put_firmware(self, device: Device, firmware: dict[str, Any] | None) -> PutDevice:
        metadata = self._next_metadata(device.metadata, device.metadata, True)
        return PutDevice(Device(metadata, _with_firmware(device.spec, firmware)), device.metadata.resource_version)

    async def _published(self, app: str, firmware: dict[str, Any] | None) -> None:
        version = (firmware or {}).get("version")
        if isinstance(version, str) and await self._store.firmware(app, version) is None:
            raise RefusedError(f"firmware {version} is not published in app {app}")

    # Metadata

    def _new_metadata(self, given: Metadata, app: str) -> Metadata:
        check_labels(given.labels)
        return Metadata(
            given.name,
            app,
            str(uuid.uuid4()),
            timestamp(self._now()),
            1,
            str(uuid.uuid4()),
            "",
            given.finalizers,
            given.labels,
            given.annotations,
        )

    def _next_metadata(self, old: Metadata, given: Metadata, spec_changed: bool) -> Metadata:
        _check(old, Precondition(given.uid, given.resource_version), old.name)
        check_labels(given.labels, old.labels)
        return msgspec.structs.replace(
            old,
            generation=old.generation + spec_changed,
            resource_version=str(uuid.uuid4()),
            finalizers=given.finalizers,
            labels=given.labels,
            annotations=given.annotations,
        )

    def _deleting(self, old: Metadata) -> Metadata:
        return msgspec.structs.replace(
            old, deletion_timestamp=timestamp(self._now()), resource_version=str(uuid.uuid4())
        )

    async def _commit(self, changes: list[Change], by: str, what: str, target: str, detail: str = "") -> None:
        await self._store.commit([*changes, audit.entry(self._now(), by, what, target, detail)])


def _check(old: Metadata, condition: Precondition, what: str) -> None:
    if condition.uid not in ("", old.uid) or condition.resource_version not in ("", old.resource_version):
        raise ConflictError(f"{what} has changed since it was read")


def _same(old: Metadata, given: Metadata) -> bool:
    return (old.labels, old.annotations, old.finalizers) == (given.labels, given.annotations, given.finalizers)


def _checked_spec(spec: dict[str, Any]) -> dict[str, Any]:
    if len(msgspec.json.encode(spec)) > SPEC_MAX_BYTES:
        raise PeerError(f"spec: more than {SPEC_MAX_BYTES} bytes")
    firmware = spec.get("firmware")
    problem = desired_of({}, spec).problem if isinstance(firmware, dict) and "version" in firmware else ""
    if problem:
        raise PeerError(problem)
    return spec


def _aliases(spec: dict[str, Any]) -> set[str]:
    found = spec.get("alias")
    return {alias for alias in found if isinstance(alias, str)} if isinstance(found, list) else set()


def _with_firmware(spec: dict[str, Any], firmware: dict[str, Any] | None) -> dict[str, Any]:
    rest = {key: value for key, value in spec.items() if key != "firmware"}
    return rest if firmware is None else {**rest, "firmware": firmware}


def _what_changed(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name the changed keys of a spec, never their values: they may be secrets."""
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return "spec." + ", spec.".join(keys) if keys else ""
