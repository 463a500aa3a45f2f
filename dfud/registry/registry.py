"""The registry's rules, without HTTP: apps and devices, and which firmware they should run.

Every change is committed together with its audit entry, then told on the bus. `by` is the name of the user. What is read and
written back is written only if it did not change meanwhile; where the user named no version it is read again.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

import msgspec

from dfud.api import (
    Actual,
    App,
    AppChanged,
    Bus,
    Change,
    DeleteApp,
    DeleteCounts,
    DeleteDevice,
    Deployment,
    Desired,
    Device,
    DeviceChanged,
    DeviceView,
    Firmware,
    NotFoundError,
    PeerError,
    PutApp,
    PutDevice,
    Store,
    UnreadableError,
)
from dfud.model.credentials import PSK_BYTES, new_secret, protect
from dfud.model.desired import desired_of
from dfud.model.names import check_app_name, check_device_name
from dfud.model.resources import same_access
from dfud.model.steps import image_for
from dfud.model.tally import fleet_scope
from dfud.registry.batch import Batches, DeviceResult
from dfud.registry.device_secrets import with_psk, with_secret
from dfud.registry.groups import GroupJobs, published_now, with_firmware
from dfud.registry.naming import Naming, aliases_of
from dfud.registry.rules import (
    RecordLimits,
    check_spec_untrusted,
    what_changed,
)
from dfud.registry.status import firmware_status
from dfud.registry.users import Forbidden
from dfud.registry.writing import (
    Precondition,
    Writer,
    check_condition,
    detail_of,
    no_condition,
    retried,
    same_metadata,
)

Wants = Callable[[App, Device, Actual | None, Deployment | None, float], Desired]


def by_specs(app: App, device: Device, actual: Actual | None, deployment: Deployment | None, now_s: float) -> Desired:
    """What the specs alone say: where nothing leads rollouts."""
    return desired_of(app.spec, device.spec)


Leaving = Callable[[str, str], AbstractAsyncContextManager[Sequence[Change]]]


@asynccontextmanager
async def nobody_leads(app: str, device: str) -> AsyncIterator[Sequence[Change]]:
    """What a device's end means for others: nothing, where nothing leads rollouts."""
    yield ()


async def _nothing_else() -> Sequence[Change]:
    return ()


class Registry:
    """All writing of apps and devices. credential_key: under which device passwords are hashed; wants: what should run on a
    device, for its status; leaving: entered while a device is deleted, gives what is committed with that.

    groups: updates of many devices; they go on while groups.run() runs.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        credential_key: bytes,
        now: Callable[[], float],
        limits: RecordLimits | None = None,
        wants: Wants = by_specs,
        leaving: Leaving = nobody_leads,
    ) -> None:
        self._store = store
        self._bus = bus
        self._key = credential_key
        self._now = now
        self._wants = wants
        self._leaving = leaving
        self._limits = limits or RecordLimits()
        self._writer = Writer(store, now, self._limits)
        self._naming = Naming(store)
        self.groups = GroupJobs(store, bus, now, self._limits)
        self._batches = Batches(store, bus, credential_key, now, self._naming, fresh=self._fresh)

    # Reading

    async def app(self, name: str) -> App:
        found = await self._store.app(name)
        if found is None:
            raise NotFoundError(f"no app {name}")
        return found

    async def device(self, app: str, name: str) -> Device:
        """Return a device with its status filled in."""
        parent = await self.app(app)
        return await self.with_status(parent, await self._view(app, name))

    async def _view(self, app: str, name: str) -> DeviceView:
        view = await self._store.device(app, name)
        if view is None:
            raise NotFoundError(f"no device {name} in app {app}")
        return view

    async def with_status(self, app: App, view: DeviceView) -> Device:
        desired = self._wants(app, view.device, view.actual, view.deployment, self._now())
        target = await self._target(app.name, view.actual, desired)
        other = await self._target(app.name, view.actual, desired.other) if desired.other is not None else None
        status = {"firmware": firmware_status(app, view, target, desired, other)}
        return msgspec.structs.replace(view.device, status=status)

    async def _target(self, app: str, actual: Actual | None, desired: Desired) -> Firmware | None:
        """Return the firmware that is desired of a device, with its image for that device, if it is published."""
        record = await self._store.firmware(app, desired.version) if desired.version else None
        if record is None or record.of_kind != desired.kind:
            return None
        return image_for(record, (actual.of(desired.kind) or actual) if actual is not None else None)

    # Apps

    async def create_app(self, given: App, by: str) -> App:
        check_app_name(given.name)
        check_spec_untrusted(given.spec, self._limits)
        app = App(self._writer.new_metadata(given.metadata, ""), given.spec)
        async with self._naming.anchors(app):
            await self._writer.commit([PutApp(app, expect="")], by, "create", app.name, what_changed({}, app.spec))
        self._bus.publish(AppChanged(app.name))
        return app

    async def update_app(self, name: str, given: App, by: str, *, may_sign: bool = True) -> None:
        """Replace what users say of an app. may_sign: `by` may change who signs; else that raises Forbidden."""
        if given.name != name:
            raise PeerError(f"the body names app {given.name!r}, the path {name!r}")
        await retried(lambda: self._update_app(name, given, by, may_sign), f"app {name}")

    async def _update_app(self, name: str, given: App, by: str, may_sign: bool, also: Sequence[Change] = ()) -> None:
        try:
            old = await self.app(name)
        except UnreadableError:
            await self._replace_app(name, given, by, may_sign)
            return
        _may_sign(may_sign, given.spec.get("signing") == old.spec.get("signing"))
        check_spec_untrusted(given.spec, self._limits, old.spec)
        metadata = self._writer.next_metadata(old.metadata, given.metadata, given.spec != old.spec)
        app = App(metadata, given.spec)
        if same_metadata(old.metadata, given.metadata) and app.spec == old.spec:
            return
        version = old.metadata.resource_version
        if metadata.deletion_timestamp and not metadata.finalizers:
            await self._writer.write([DeleteApp(name, version), DeleteCounts(fleet_scope(name))], by, "delete", name)
            self._bus.publish(AppChanged(name, deleted=True))
            return
        same_anchors = app.spec.get("trustAnchors") == old.spec.get("trustAnchors")
        async with nullcontext() if same_anchors else self._naming.anchors(app):
            await self._writer.write([PutApp(app, version), *also], by, "update", name, detail_of(old, app))
        self._bus.publish(AppChanged(name))

    async def _replace_app(self, name: str, given: App, by: str, may_sign: bool) -> None:
        """Put an app in place of a record that cannot be read; its devices and firmware stay."""
        _may_sign(may_sign, False)
        no_condition(Precondition(given.metadata.uid, given.metadata.resource_version), f"app {name}")
        check_spec_untrusted(given.spec, self._limits)
        app = App(self._writer.new_metadata(given.metadata, ""), given.spec)
        async with self._naming.anchors(app):
            await self._writer.commit([PutApp(app)], by, "replace", name, "the record could not be read")
        self._bus.publish(AppChanged(name))

    async def delete_app(self, name: str, condition: Precondition, by: str) -> None:
        await retried(lambda: self._delete_app(name, condition, by), f"app {name}")

    async def _delete_app(self, name: str, condition: Precondition, by: str) -> None:
        version: str | None = None
        try:
            old = await self.app(name)
        except UnreadableError:
            no_condition(condition, f"app {name}")
        else:
            check_condition(old.metadata, condition, f"app {name}")
            if old.metadata.deletion_timestamp:
                raise NotFoundError(f"no app {name}")
            version = old.metadata.resource_version
            if old.metadata.finalizers:
                put = PutApp(App(self._writer.deleting(old.metadata), old.spec), version)
                await self._writer.write([put], by, "delete", name, "waits for finalizers")
                self._bus.publish(AppChanged(name))
                return
        await self._writer.write([DeleteApp(name, version), DeleteCounts(fleet_scope(name))], by, "delete", name)
        self._bus.publish(AppChanged(name, deleted=True))

    # Devices

    async def create_device(
        self, app: str, given: Device, by: str, *, also: Sequence[Change] = (), what: str = "create"
    ) -> Device:
        """Make a device. `also` is committed with it or not at all; `what` is the audit's word for it."""
        device = self._fresh(app, given)
        await self.app(app)
        async with self._naming.names(app, given.name, {given.name, *aliases_of(given.spec)}):
            told = what_changed({}, device.spec)
            await self._writer.commit([PutDevice(device, expect=""), *also], by, what, f"{app}/{device.name}", told)
        self._bus.publish(DeviceChanged(app, device.name))
        return device

    def _fresh(self, app: str, given: Device) -> Device:
        """Return the device that a user asks for. Raises PeerError: here is every rule that needs no look at other devices."""
        check_device_name(given.name)
        if given.app not in ("", app):
            raise PeerError(f"the body names app {given.app!r}, the path {app!r}")
        check_spec_untrusted(given.spec, self._limits)
        return Device(self._writer.new_metadata(given.metadata, app), protect(given.spec, self._key))

    async def create_devices(
        self, app: str, given: Sequence[msgspec.Raw], by: str, *, secrets: bool = False, dry_run: bool = False
    ) -> list[DeviceResult]:
        """Make many devices, each of them JSON, with one commit and one audit entry; return what became of each, in order.

        secrets: make one for each device that brings no credentials. dry_run: judge only, change nothing.
        """
        await self.app(app)
        return await self._batches.create(app, given, by, secrets=secrets, dry_run=dry_run)

    async def update_device(self, app: str, name: str, given: Device, by: str) -> None:
        if given.name != name or given.app not in ("", app):
            raise PeerError("the body names another device than the path")
        await retried(lambda: self._update_device(app, name, given, by), f"device {name} of app {app}")

    async def _update_device(self, app: str, name: str, given: Device, by: str) -> None:
        try:
            old = (await self._view(app, name)).device
        except UnreadableError:
            await self._replace_device(app, name, given, by)
            return
        check_spec_untrusted(given.spec, self._limits, old.spec)
        spec = protect(given.spec, self._key)
        metadata = self._writer.next_metadata(old.metadata, given.metadata, spec != old.spec)
        if same_metadata(old.metadata, given.metadata) and spec == old.spec:
            return
        version = old.metadata.resource_version
        if metadata.deletion_timestamp and not metadata.finalizers:
            await self._drop(app, name, version, by)
            return
        await self._put_device(Device(metadata, spec), old, by, "update")

    async def _put_device(self, device: Device, old: Device, by: str, what: str, also: Sequence[Change] = ()) -> None:
        """Write a device that was made from `old`. Raises Overtaken."""
        app, name = device.app, device.name
        async with self._naming.names(app, name, aliases_of(device.spec) - aliases_of(old.spec)):
            put = PutDevice(device, old.metadata.resource_version)
            await self._writer.write([put, *also], by, what, f"{app}/{name}", detail_of(old, device))
        self._bus.publish(DeviceChanged(app, name, access=not same_access(old, device)))

    async def _replace_device(self, app: str, name: str, given: Device, by: str) -> None:
        """Put a device in place of a record that cannot be read."""
        no_condition(Precondition(given.metadata.uid, given.metadata.resource_version), f"device {name}")
        check_spec_untrusted(given.spec, self._limits)
        device = Device(self._writer.new_metadata(given.metadata, app), protect(given.spec, self._key))
        async with self._naming.names(app, name, aliases_of(device.spec)):
            await self._writer.commit(
                [PutDevice(device)], by, "replace", f"{app}/{name}", "the record could not be read"
            )
        self._bus.publish(DeviceChanged(app, name))

    async def delete_device(self, app: str, name: str, condition: Precondition, by: str) -> None:
        await retried(lambda: self._delete_device(app, name, condition, by), f"device {name} of app {app}")

    async def _delete_device(self, app: str, name: str, condition: Precondition, by: str) -> None:
        version: str | None = None
        try:
            old = (await self._view(app, name)).device
        except UnreadableError:
            no_condition(condition, f"device {name}")
        else:
            if old.metadata.deletion_timestamp:
                raise NotFoundError(f"no device {name} in app {app}")
            check_condition(old.metadata, condition, f"device {name}")
            version = old.metadata.resource_version
            if old.metadata.finalizers:
                put = PutDevice(Device(self._writer.deleting(old.metadata), old.spec), version)
                await self._writer.write([put], by, "delete", f"{app}/{name}", "waits for finalizers")
                self._bus.publish(DeviceChanged(app, name))
                return
        await self._drop(app, name, version, by)

    async def _drop(self, app: str, name: str, version: str | None, by: str) -> None:
        """Delete a device. version: as it was read; None: its record cannot be read, so nothing can be said of its rollouts."""
        async with self._leaving(app, name) if version is not None else nobody_leads(app, name) as also:
            await self._writer.write([DeleteDevice(app, name, version), *also], by, "delete", f"{app}/{name}")
        self._bus.publish(DeviceChanged(app, name, deleted=True))

    async def new_secret(self, app: str, name: str, by: str, *, keep: int = 1) -> str:
        """Give a device a fresh secret beside the `keep` newest it has; return it, which is shown once.

        The old one goes on working until the next rotation, so that a device that misses the news is not lost.
        """
        secret = new_secret()
        await self._change_spec(app, name, lambda spec: with_secret(spec, secret, keep), by, "rotate-secret")
        return secret

    async def new_psk(self, app: str, name: str, by: str) -> bytes:
        """Give a device a fresh pre-shared key in place of all it has; return it, which is shown once.

        The old ones end at once: a security context has one key, so there is no going over from one to another.
        """
        psk = secrets.token_bytes(PSK_BYTES)
        await self._change_spec(app, name, lambda spec: with_psk(spec, psk), by, "rotate-psk")
        return psk

    async def _change_spec(
        self,
        app: str,
        name: str,
        change: Callable[[dict[str, Any]], dict[str, Any]],
        by: str,
        what: str,
        judged: Callable[[], Awaitable[Sequence[Change]]] = _nothing_else,
    ) -> bool:
        """Change one part of a device's spec; whoever else changes it meanwhile keeps their change. Return whether it changed.

        judged: what else has to be so, judged anew at each try; it gives what is committed with the change.
        """
        changed = True

        async def once() -> None:
            nonlocal changed
            also = await judged()
            old = (await self._view(app, name)).device
            spec = protect(change(old.spec), self._key)
            changed = spec != old.spec
            if not changed:
                return
            check_spec_untrusted(spec, self._limits, old.spec)
            device = Device(self._writer.next_metadata(old.metadata, old.metadata, True), spec)
            await self._put_device(device, old, by, what, also)

        await retried(once, f"device {name} of app {app}")
        return changed

    # Desired firmware

    async def set_firmware(
        self, app: str, device: str | None, firmware: dict[str, Any] | None, by: str, *, published: bool = False
    ) -> bool:
        """Set spec.firmware of an app (device None) or a device; None removes it. Return whether the device changed.

        published: its version has to be, also if somebody deletes it at this moment; else that raises NotFoundError.
        """

        async def judged() -> Sequence[Change]:
            return await published_now(self._store, app, firmware) if published else ()

        if device is not None:
            return await self._change_spec(
                app, device, lambda spec: with_firmware(spec, firmware), by, "update", judged
            )

        async def once() -> None:
            also = await judged()
            old = await self.app(app)
            await self._update_app(app, App(old.metadata, with_firmware(old.spec, firmware)), by, True, also)

        await retried(once, f"app {app}")
        return False


def _may_sign(may_sign: bool, same: bool) -> None:
    if not (may_sign or same):
        raise Forbidden("spec.signing: this needs the role admin of the app")
