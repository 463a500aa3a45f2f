"""Setting the firmware of many devices: in pages, each committed whole, with what became of each device told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec
import trio

from dfud.api import (
    Bus,
    ConflictError,
    Device,
    DeviceChanged,
    DeviceView,
    NotFoundError,
    PeerError,
    PutDevice,
    RefusedError,
    Selector,
    Store,
    StoreError,
)
from dfud.registry import audit
from dfud.registry.paging import Paging
from dfud.registry.rules import RecordLimits, check_spec_untrusted, firmware_changed, size_of

GROUP_PAGE_BYTES = 1 << 20  # specs of a group that are in memory at one time; as objects they are many times as large
GROUPS_AT_ONCE = 2


class GroupUpdate(msgspec.Struct, frozen=True):
    """Which devices were changed, and why others that were meant were not."""

    changed: list[str]
    left_out: dict[str, str]


class Groups:
    """put: makes the change of one device. one: changes one device by itself, whoever else does so."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        now: Callable[[], float],
        limits: RecordLimits,
        *,
        put: Callable[[Device, dict[str, Any]], PutDevice],
        one: Callable[[str, str, dict[str, Any] | None, str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._bus = bus
        self._now = now
        self._limits = limits
        self._put = put
        self._one = one
        self._turns = trio.CapacityLimiter(GROUPS_AT_ONCE)

    async def update(self, app: str, selector: Selector, firmware: dict[str, Any] | None, by: str) -> GroupUpdate:
        """Set spec.firmware of every device that the selector matches; tell what became of them.

        Committed in pieces; a device that somebody changes meanwhile is changed by itself. A StoreError says how many were
        changed before it; the same update again changes the others.
        """
        await self._published(app, firmware)
        done = GroupUpdate([], {})
        try:
            await self._update(app, selector, firmware, by, done)
        except StoreError as error:
            count = (
                f"{len(done.changed)} {'device was' if len(done.changed) == 1 else 'devices were'} changed before that"
            )
            raise StoreError(
                f"{error}; {count}: repeat the update to change the others", retryable=error.retryable
            ) from error
        return done

    async def _update(
        self, app: str, selector: Selector, firmware: dict[str, Any] | None, by: str, done: GroupUpdate
    ) -> None:
        after = ""
        paging = Paging(GROUP_PAGE_BYTES)
        while True:
            async with self._turns:
                views = await self._store.devices(app, selector, limit=paging.rows, after=after)
                if not views:
                    return
                after = views[-1].device.name
                paging.read(len(views), sum(size_of(view.device.spec) for view in views))
                await self._update_page(app, views, firmware, by, done)

    async def _update_page(
        self,
        app: str,
        views: Sequence[DeviceView],
        firmware: dict[str, Any] | None,
        by: str,
        done: GroupUpdate,
    ) -> None:
        """Change those of a page that are to be changed."""
        puts: dict[str, PutDevice] = {}
        told: set[str] = set()
        for old in (view.device for view in views):
            spec = with_firmware(old.spec, firmware)
            if spec == old.spec:
                continue
            try:
                check_spec_untrusted(spec, self._limits, old.spec)
                puts[old.name] = self._put(old, spec)
            except PeerError as error:
                done.left_out[old.name] = str(error)
                continue
            told.add(firmware_changed(old.spec, spec))
        if puts:
            await self._put_group(app, puts, told, firmware, by, done)

    async def _put_group(
        self,
        app: str,
        puts: dict[str, PutDevice],
        told: Iterable[str],
        firmware: dict[str, Any] | None,
        by: str,
        done: GroupUpdate,
    ) -> None:
        """Commit one piece of a group update."""
        detail = f"spec.firmware{', '.join(sorted(told))[:400]} of {len(puts)} devices: {', '.join(puts)}"
        try:
            entry = audit.entry(self._now(), by, "update-group", app, detail)
            await self._store.commit([*puts.values(), entry])
        except (ConflictError, NotFoundError):
            for name in puts:
                try:
                    await self._one(app, name, firmware, by)
                except (ConflictError, NotFoundError, PeerError) as error:
                    done.left_out[name] = str(error)
                else:
                    done.changed.append(name)
            return
        for name in puts:
            self._bus.publish(DeviceChanged(app, name))
        done.changed.extend(puts)

    async def _published(self, app: str, firmware: dict[str, Any] | None) -> None:
        version = (firmware or {}).get("version")
        if isinstance(version, str) and await self._store.firmware(app, version) is None:
            raise RefusedError(f"firmware {version} is not published in app {app}")


def with_firmware(spec: dict[str, Any], firmware: dict[str, Any] | None) -> dict[str, Any]:
    """Return the spec with this spec.firmware, None: without any."""
    rest = {key: value for key, value in spec.items() if key != "firmware"}
    return rest if firmware is None else {**rest, "firmware": firmware}
