"""Packages: made once in a worker process, kept on disk by name, handed out from memory.

What is made is a pure function of (image, base, kinds, payload, dfud's encoder): one package or several, of which each device gets
the one that is best for it (dfud.model.quickest). So the directory is a cache: it may be emptied at any time, and what is torn there
is made anew. Where the store has a place that several processes share, packages are made once for all of them, and the directory is
this machine's copy of what it needs (shared_packages.py).
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import OrderedDict
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path

import trio

from dfud.api import BugError, Cache, PeerError, Store, StoreError, contained, forever
from dfud.controller.budget import Budget
from dfud.controller.fair import FairLimiter
from dfud.controller.sending import Order
from dfud.controller.shared_packages import Record, SharedPackages
from dfud.model.quickest import Candidate, Choice, choose
from dfud.package.file import ENCODER, PackageFile, read_package_untrusted
from dfud.package.made import read_made_untrusted, write_made
from dfud.package.worker import DAMAGED

LEFT_S = 3600.0  # nothing takes so long to be written
TOUCHED_S = 600.0  # how exact "used last" is on disk


class Busy(StoreError):
    """It is not the package's turn yet; nothing is wrong with it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=True)


class Making:
    """A package that is being made, for all who wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: StoreError | None = None
        self.devices: set[tuple[str, str]] = set()


@lru_cache(maxsize=4096)
def _key(target: str, base: str, kinds: int, payload: int) -> str:
    return hashlib.sha256(f"{ENCODER} {target} {base} {kinds} {payload}".encode()).hexdigest()


def _is_of(package: PackageFile, order: Order) -> bool:
    """Say whether a package can be that of an order: to its image, from its base or none, of a kind that the device decodes."""
    base = package.base_sha256.hex() if package.base_sha256 else ""
    right = base in ("", order.base.sha256 if order.base is not None else "")
    return right and package.sha256.hex() == order.target.sha256 and bool(order.kinds >> package.kind & 1)


def _may_go_on(package: PackageFile, order: Order) -> bool:
    """Say whether a package can be the one that the device of an order has begun with: from which base is not known of all."""
    base = order.base.sha256 if order.base is not None and package.base_sha256 else None
    right = base is None or package.base_sha256 == bytes.fromhex(base)
    return right and package.sha256.hex() == order.target.sha256


class Packages:
    """Owns the directory `path` and the memory of recently used packages.

    waiting_max: packages that may wait for a worker. One device has at most one in the making, so that its changing statuses
    cannot fill that; apps take turns. per_hour: packages that are made for one device; known_max: names in memory.
    """

    def __init__(
        self,
        store: Store,
        path: Path,
        *,
        disk_bytes: int,
        memory_bytes: int,
        workers: int,
        waiting_max: int = 256,
        per_hour: int = 24,
        known_max: int = 10_000,
        devices_max: int = 100_000,
    ) -> None:
        self._store = store
        self._path = path
        self._disk_bytes = disk_bytes
        self._memory_bytes = memory_bytes
        self._waiting_max = waiting_max
        self._memory: OrderedDict[str, PackageFile] = OrderedDict()
        self._touched: dict[str, float] = {}
        self._used = 0
        self._names: Cache[str, tuple[Candidate, ...]] = Cache(known_max)
        self.budget = Budget(per_hour, devices_max, "packages_per_hour")
        self._making: dict[str, Making] = {}
        self._nursery: trio.Nursery | None = None
        place = store.place()
        self.shared = SharedPackages(store, place, disk_bytes) if place is not None else None
        self._workers = FairLimiter(workers or max(1, (os.cpu_count() or 2) - 1))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give packages a place to be made in, until cancelled."""
        with contained("packages.trim"):
            await trio.to_thread.run_sync(self._sweep)
        async with trio.open_nursery() as self._nursery:
            if self.shared is not None:
                self._nursery.start_soon(forever, "packages.shared", self.shared.run)
            task_status.started()
            await trio.sleep_forever()

    def memory(self, package: str) -> PackageFile | None:
        """Return a package by its hexadecimal name if it is in memory."""
        found = self._memory.get(package)
        if found is not None:
            self._memory.move_to_end(package)
        return found

    async def load(self, package: str) -> PackageFile | None:
        """Return a package by its hexadecimal name, or None if it was never made or is no longer kept. Raises StoreError."""
        if (found := self.memory(package) or await self._on_disk(package)) is not None:
            return found
        if self.shared is not None and (record := await self.shared.by_name(package)) is not None:
            return await self._copied(record)
        return None

    async def _copied(self, record: Record) -> PackageFile | None:
        """Bring a package that another process has made onto this machine."""
        assert self.shared is not None
        data = await self.shared.fetch(record)
        if data is None:
            return None

        def write() -> None:
            self._path.mkdir(parents=True, exist_ok=True)
            files = [(f"{record.package}.dfup", data)]
            if record.made:
                files.append((f"{record.key}.key", write_made([part.candidate for part in record.made])))
            for name, content in files:
                temporary = self._path / f".new-{os.getpid()}-{name}"
                temporary.write_bytes(content)
                temporary.rename(self._path / name)
            self._trim()

        try:
            await trio.to_thread.run_sync(write)
        except OSError as error:
            raise StoreError(f"[controller] packages_path {self._path}: {error.strerror}", retryable=True) from error
        return await self._on_disk(record.package)

    async def _on_disk(self, package: str) -> PackageFile | None:
        path = self._path / f"{package}.dfup"

        def read() -> bytes:
            data = path.read_bytes()
            os.utime(path)
            return data

        try:
            found = read_package_untrusted(await trio.to_thread.run_sync(read))
        except (OSError, PeerError):
            return None
        if found.id.hex() != package:
            return None
        self._remember(found)
        return found

    def _remember(self, package: PackageFile) -> None:
        name = package.id.hex()
        if name not in self._memory:
            self._used += package.total_bytes
        self._memory[name] = package
        self._touched[name] = trio.current_time()
        while self._used > self._memory_bytes and len(self._memory) > 1:
            self._forget(next(iter(self._memory)))

    def _forget(self, name: str) -> None:
        gone = self._memory.pop(name, None)
        if gone is not None:
            self._touched.pop(name, None)
            self._used -= gone.total_bytes

    def _touch(self, name: str) -> None:
        """Note on disk that a package is in use, now and then: what is handed out from memory must not look old there."""
        now = trio.current_time()
        if now - self._touched.get(name, now) >= TOUCHED_S:
            self._touched[name] = now
            try:
                os.utime(self._path / f"{name}.dfup")
            except OSError:
                return  # it was emptied; it is made again once it leaves the memory

    def key(self, order: Order) -> str:
        base = order.base.sha256 if order.base is not None else ""
        return _key(order.target.sha256, base, order.kinds, order.payload)

    def ready(self, order: Order) -> PackageFile | None:
        """Return the package of an order if it is in memory. Never blocks."""
        held = self._memory.get(order.held)
        goes_on = held is not None and _may_go_on(held, order)
        name = order.held if goes_on else self._chosen(order)
        found = self.memory(name) if name else None
        if found is None or not (goes_on or _is_of(found, order)):
            return None
        self._touch(found.id.hex())
        return found

    def _chosen(self, order: Order) -> str | None:
        made = self._names.get(self.key(order))
        return choose(made, order.pace).package if made is not None else None

    def choice(self, order: Order, package: PackageFile) -> Choice | None:
        """Return why this package is the one of an order, None if that is not known: it was chosen some other time."""
        made = self._names.get(self.key(order))
        found = choose(made, order.pace) if made is not None else None
        return found if found is not None and found.package == package.id.hex() else None

    async def find(self, order: Order) -> PackageFile | None:
        """Return the package of an order if it is made, from memory or from disk."""
        return self.ready(order) or await self._kept(order)

    async def get(self, order: Order, device: tuple[str, str]) -> PackageFile:
        """Return the package of an order for (app, device); make it if need be.

        Everybody who wants the same one waits for one making. Raises StoreError if an image is missing or damaged, the disk is
        full, too many packages wait, another one is being made for this device, or it has had too many.
        Cancelling one waiter does not stop the making.
        """
        begun = await self.begin(order, device)
        return begun if isinstance(begun, PackageFile) else await self.made(begun, order)

    async def begin(self, order: Order, device: tuple[str, str]) -> PackageFile | Making:
        """As get(), without waiting for a package that is not there: it is being made when this returns; give it to made()."""
        if order.held:
            found = await self.load(order.held)
            if found is not None and _may_go_on(found, order):
                return found
        key = self.key(order)
        if (found := await self._kept(order)) is not None:
            return found
        making = self._making.get(key)
        if making is None:
            if any(device in other.devices for other in self._making.values()):
                raise Busy("another package is being made for this device")
            if len(self._making) >= self._waiting_max:
                raise Busy(f"{len(self._making)} packages are being made already")
            if self._nursery is None:
                raise BugError("packages are asked for before they run")
            self.budget.spend(*device, 1)
            making = self._making[key] = Making()
            self._nursery.start_soon(self._make_for_all, making, key, order)
        making.devices.add(device)
        return making

    async def soon(self, order: Order, device: tuple[str, str]) -> PackageFile:
        """As get(), for a device that waits for its answer: where others are made first, it is not kept waiting for them.

        Raises Busy then; the package is made all the same.
        """
        if not self._workers.waiting:
            return await self.get(order, device)
        begun = await self.begin(order, device)
        if isinstance(begun, PackageFile):
            return begun
        raise Busy(f"{self._workers.waiting} packages are made first")

    async def quiet(self) -> None:
        """Wait until a worker is free and no device waits for one."""
        await self._workers.free()

    async def made(self, making: Making, order: Order) -> PackageFile:
        """Wait for a package that was begun. Raises StoreError."""
        await making.done.wait()
        if making.error is not None:
            raise making.error
        found = await self._kept(order)
        if found is None:
            raise StoreError("the package was made, but cannot be read back", retryable=True)
        return found

    async def _make_for_all(self, making: Making, key: str, order: Order) -> None:
        what = f"package of {order.target.version} not made"
        making.error = StoreError(f"{what}: an unforeseen fault, see the log", retryable=True)
        try:
            with contained("packages.make", app=order.target.app, firmware=order.target.version):
                try:
                    await self._make(key, order)
                    making.error = None
                except StoreError as error:
                    making.error = error
                except OSError as error:
                    making.error = StoreError(f"{what}: {error}", retryable=True)
        finally:
            del self._making[key]
            making.done.set()

    async def _kept(self, order: Order) -> PackageFile | None:
        key = self.key(order)
        made = self._names.get(key) or await self._made(key)
        if made is None:
            record = await self.shared.by_key(key) if self.shared is not None else None
            if record is None:
                return None
            made = tuple(part.candidate for part in record.parts)
        name = choose(made, order.pace).package
        found = await self.load(name)
        if found is not None and not _is_of(found, order):
            self._forget(name)  # a namesake, whose file made room for that of the order
            found = await self.load(name)
        if found is None or not _is_of(found, order):
            self._names.forget(key)
            return None  # it went, or a damaged key names another one: it is made anew
        self._names.put(key, made)
        self._touch(name)
        return found

    async def _made(self, key: str) -> tuple[Candidate, ...] | None:
        """Return what this machine has made of a key."""
        try:
            text = await trio.to_thread.run_sync((self._path / f"{key}.key").read_text)
            return read_made_untrusted(text)
        except (OSError, UnicodeDecodeError, PeerError):
            return None

    async def _make(self, key: str, order: Order) -> None:
        if self.shared is None:
            await self._work(key, order)
            return
        made = False
        async with self.shared.making(key):
            if await self._kept(order) is None:  # else another process has made it while this one waited
                await self._work(key, order)
                if (found := await self._made(key)) is None:
                    raise StoreError("the package was made, but cannot be read back", retryable=True)
                await self.shared.publish(key, found, self._path)
            made = True
        if not made:
            raise StoreError("another process makes packages now", retryable=True)

    async def _work(self, key: str, order: Order) -> None:
        target, base = order.target, order.base
        # A process of its own: it may take seconds of CPU and much memory, and gives both back.
        async with (
            self._workers.turn(target.app),
            self._store.blob(target.sha256) as image,
            self._store.blob(base.sha256) if base is not None else nullcontext() as base_path,
        ):
            if image is None:
                raise StoreError(f"the image of {target.app} {target.version} is missing from the store")
            self._path.mkdir(parents=True, exist_ok=True)
            base_given = [str(base_path), base.sha256] if base is not None and base_path is not None else ["", ""]
            given = [str(image), target.sha256, *base_given, str(order.kinds), str(order.payload), str(self._path), key]
            run = await trio.run_process(
                [sys.executable, "-m", "dfud.package.worker", *given],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        if run.returncode != 0:
            told = run.stderr.decode("utf-8", "replace").strip().splitlines()
            raise StoreError(
                f"package of {target.version} not made: {told[-1] if told else 'no reason given'}",
                retryable=run.returncode != DAMAGED,
            )
        await trio.to_thread.run_sync(self._trim)

    def _trim(self) -> None:
        """Delete the packages that were not used for the longest time, down to the limit, and the keys that name them."""
        files = []
        for path in self._path.glob("*.dfup"):
            try:
                found = path.stat()
            except OSError:
                continue
            files.append((found.st_mtime, found.st_size, path))
        files.sort(key=lambda f: f[0], reverse=True)
        total, trimmed = 0, False
        for number, (_, size, path) in enumerate(files):
            total += size
            if total > self._disk_bytes and number:
                path.unlink(missing_ok=True)
                trimmed = True
        if trimmed:
            self._drop_keys()

    def _drop_keys(self) -> None:
        held = {path.stem for path in self._path.glob("*.dfup")}
        for path in self._path.glob("*.key"):
            try:
                if not any(one.package in held for one in read_made_untrusted(path.read_text())):
                    path.unlink(missing_ok=True)
            except (OSError, UnicodeDecodeError, PeerError):
                path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """At start: what is half written and old is left over. Another dfud may make packages in the same directory."""
        for path in self._path.glob(".new-*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFT_S:
                    path.unlink()
        self._trim()
        self._drop_keys()
