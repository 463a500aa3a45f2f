"""Making many devices at once: each judged by every rule of one, committed together, with what became of each told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec
import trio

from dfud.api import (
    Bus,
    ConflictError,
    Device,
    DeviceChanged,
    PeerError,
    PutDevice,
    RefusedError,
    Store,
    StoreError,
    UnreadableError,
    decode_untrusted,
)
from dfud.errors import RequestError
from dfud.model.credentials import credentials_of, new_secret
from dfud.registry import audit
from dfud.registry.device_secrets import is_secret_of, own_secret, with_secret
from dfud.registry.naming import Naming, aliases_of

TRIES = 8
SLICE = 16  # devices that are judged before the others of this thread have their turn: a millisecond or two


class DeviceResult(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What became of one device of a batch. error: why it was refused. secret: the one that was made for it, shown once.

    same_secret: it exists, and the password that the batch gives it is one of its own: it was made so before, and the answer
    was lost.
    """

    name: str
    result: Literal["created", "exists", "refused"]
    error: str = ""
    secret: str = ""
    same_secret: bool = False


class _Made(msgspec.Struct, frozen=True):
    """A device that may be made. at: its place in the batch; names: those that it takes; plain: its password, or ""."""

    at: int
    device: Device
    names: set[str]
    plain: str
    shown: str


class Batches:
    """fresh: the device that a user asks for, judged by every rule that needs no look at other devices; raises PeerError."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        key: bytes,
        now: Callable[[], float],
        naming: Naming,
        *,
        fresh: Callable[[str, Device], Device],
    ) -> None:
        self._store = store
        self._bus = bus
        self._key = key
        self._now = now
        self._naming = naming
        self._fresh = fresh
        self._turn = trio.Lock()  # two batches at once are no faster, and refuse each other's names

    async def create(
        self, app: str, given: Sequence[msgspec.Raw], by: str, *, secrets: bool, dry_run: bool
    ) -> list[DeviceResult]:
        """Make the devices of `app`, which exists; return what became of each, in the order of `given`.

        secrets: make one for each device that brings no credentials. dry_run: judge only. Raises NotFoundError if the app has
        gone, StoreError; then no device was made, unless the store had to be asked for each one by itself.
        """
        async with self._turn:
            results: dict[int, DeviceResult] = {}
            made = await self._judged(app, given, secrets and not dry_run, results)
            with self._naming.held_by_others(app, {m.device.name: m.names for m in made}) as held:
                for m in [m for m in made if m.device.name in held]:
                    results[m.at] = DeviceResult(m.device.name, "refused", held[m.device.name])
                made = [m for m in made if m.at not in results]
                await self._commit(app, made, by, results, dry_run)
        return [results[at] for at in range(len(given))]

    async def _judged(
        self, app: str, given: Sequence[msgspec.Raw], secrets: bool, results: dict[int, DeviceResult]
    ) -> list[_Made]:
        """Return what may be made as far as the batch itself shows; put the others into `results`."""
        made: list[_Made] = []
        taken: dict[str, str] = {}  # each name and alias, and whose it is
        for at, raw in enumerate(given):
            if at % SLICE == SLICE - 1:
                await trio.lowlevel.checkpoint()
            name = ""
            try:
                asked = decode_untrusted("this is no device", raw, Device)
                name = asked.name
                found = self._one(app, at, asked, secrets)
                if twice := sorted(found.names & taken.keys()):
                    raise PeerError(
                        f"{twice[0]!r} is the name or an alias of device {taken[twice[0]]} of this batch already"
                    )
            except PeerError as error:
                results[at] = DeviceResult(name, "refused", str(error))
            else:
                taken |= dict.fromkeys(found.names, name)
                made.append(found)
        return made

    def _one(self, app: str, at: int, asked: Device, secrets: bool) -> _Made:
        shown = ""
        if secrets and not credentials_of(asked.spec):
            shown = new_secret()
            asked = msgspec.structs.replace(asked, spec=with_secret(asked.spec, shown, 0))
        device = self._fresh(app, asked)
        return _Made(at, device, {device.name, *aliases_of(device.spec)}, shown or own_secret(asked.spec), shown)

    async def _commit(
        self, app: str, made: Sequence[_Made], by: str, results: dict[int, DeviceResult], dry_run: bool
    ) -> None:
        """Make what may be made beside the devices that there are, whoever makes some of them meanwhile."""
        for _ in range(TRIES):
            made = await self._new(app, made, results)
            if not made:
                return
            if dry_run:
                break
            detail = f"{len(made)} devices: {', '.join(m.device.name for m in made)}"
            try:
                await self._put(app, made, by, "create-devices", app, detail)
            except ConflictError:
                continue
            except (RefusedError, StoreError) as error:
                if isinstance(error, StoreError) and error.retryable:
                    raise
                await self._put_each(app, made, by, results)
                return
            break
        else:
            await self._put_each(app, made, by, results)
            return
        for m in made:
            results[m.at] = DeviceResult(m.device.name, "created", secret=m.shown)

    async def _new(self, app: str, made: Sequence[_Made], results: dict[int, DeviceResult]) -> list[_Made]:
        """Return those whose names nobody has."""
        taken = await self._naming.taken(app, [name for m in made for name in m.names])
        new: list[_Made] = []
        for count, m in enumerate(made):
            if count % SLICE == SLICE - 1:
                await trio.lowlevel.checkpoint()
            name = m.device.name
            if taken.get(name) == name:
                results[m.at] = DeviceResult(name, "exists", same_secret=await self._same(app, m))
            elif others := sorted(m.names & taken.keys()):
                results[m.at] = DeviceResult(name, "refused", Naming.problem(app, others[0], taken[others[0]]))
            else:
                new.append(m)
        return new

    async def _same(self, app: str, m: _Made) -> bool:
        if not m.plain or m.shown:
            return False
        try:
            view = await self._store.device(app, m.device.name)
        except UnreadableError:
            return False
        return view is not None and is_secret_of(view.device.spec, m.plain, self._key)

    async def _put_each(self, app: str, made: Iterable[_Made], by: str, results: dict[int, DeviceResult]) -> None:
        """Make each by itself: the store does not take them together, and says of each why.

        Raises nothing for one of them: what was made before it is told, with its secret.
        """
        for m in made:
            name = m.device.name
            try:
                await self._put(app, [m], by, "create", f"{app}/{name}", "")
            except (RequestError, StoreError) as error:
                results[m.at] = DeviceResult(name, "refused", str(error))
            else:
                results[m.at] = DeviceResult(name, "created", secret=m.shown)

    async def _put(self, app: str, made: Sequence[_Made], by: str, what: str, target: str, detail: str) -> None:
        entry = audit.entry(self._now(), by, what, target, detail)
        try:
            await self._store.commit([*(PutDevice(m.device, expect="") for m in made), entry])
        finally:  # also where nobody waits for the answer any longer: what was remembered of these names is no longer true
            for m in made:
                self._bus.publish(DeviceChanged(app, m.device.name))
