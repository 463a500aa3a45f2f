"""Packages: made once in a worker process, kept on disk by name, handed out from memory.

A package is a pure function of (image, base, kinds, payload, dfud's encoder), so the directory is a cache: it may be emptied
at any time, and what is torn there is made anew.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import OrderedDict
from pathlib import Path

import trio

from dfud.api import BugError, Firmware, PeerError, Store, StoreError
from dfud.package.file import ENCODER, PackageFile, read_package_untrusted


class _Making:
    """A package that is being made, for all who wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: StoreError | None = None


class Packages:
    """Owns the directory `path` and the memory of recently used packages."""

    def __init__(self, store: Store, path: Path, *, disk_bytes: int, memory_bytes: int, workers: int) -> None:
        self._store = store
        self._path = path
        self._disk_bytes = disk_bytes
        self._memory_bytes = memory_bytes
        self._memory: OrderedDict[str, PackageFile] = OrderedDict()
        self._used = 0
        self._names: dict[str, str] = {}
        self._making: dict[str, _Making] = {}
        self._nursery: trio.Nursery | None = None
        self._workers = trio.CapacityLimiter(workers or max(1, (os.cpu_count() or 2) - 1))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give packages a place to be made in, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def memory(self, package: str) -> PackageFile | None:
        """Return a package by its hexadecimal name if it is in memory."""
        found = self._memory.get(package)
        if found is not None:
            self._memory.move_to_end(package)
        return found

    async def load(self, package: str) -> PackageFile | None:
        """Return a package by its hexadecimal name, or None if it was never made or is no longer kept."""
        if (found := self.memory(package)) is not None:
            return found
        try:
            data = await trio.to_thread.run_sync((self._path / f"{package}.dfup").read_bytes)
            found = read_package_untrusted(data)
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
        while self._used > self._memory_bytes and len(self._memory) > 1:
            _, gone = self._memory.popitem(last=False)
            self._used -= gone.total_bytes

    def key(self, firmware: Firmware, base: str, kinds: int, payload: int) -> str:
        text = f"{ENCODER} {firmware.sha256} {base} {kinds} {payload}"
        return hashlib.sha256(text.encode()).hexdigest()

    async def get(self, firmware: Firmware, base: Firmware | None, kinds: int, payload: int) -> PackageFile:
        """Return the package that takes a device from `base` (None: from anything) to `firmware`; make it if need be.

        Everybody who wants the same one waits for one making. Raises StoreError if an image is missing or the disk is full.
        Cancelling one waiter does not stop the making while another waits.
        """
        key = self.key(firmware, base.sha256 if base else "", kinds, payload)
        if (found := await self._kept(key)) is not None:
            return found
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = _Making()
            if self._nursery is None:
                raise BugError("packages are asked for before they run")
            self._nursery.start_soon(self._make_for_all, making, key, firmware, base, kinds, payload)
        await making.done.wait()
        if making.error is not None:
            raise making.error
        found = await self._kept(key)
        if found is None:
            raise StoreError("the package was made, but cannot be read back", retryable=True)
        return found

    async def _make_for_all(
        self, making: _Making, key: str, firmware: Firmware, base: Firmware | None, kinds: int, payload: int
    ) -> None:
        try:
            await self._make(key, firmware, base, kinds, payload)
        except StoreError as error:
            making.error = error
        except OSError as error:
            making.error = StoreError(f"package of {firmware.version} not made: {error}", retryable=True)
        finally:
            del self._making[key]
            making.done.set()

    async def _kept(self, key: str) -> PackageFile | None:
        name = self._names.get(key)
        if name is None:
            try:
                name = (await trio.to_thread.run_sync((self._path / f"{key}.key").read_text)).strip()
            except (OSError, UnicodeDecodeError):
                return None
        found = await self.load(name)
        if found is not None:
            self._names[key] = name
        return found

    async def _make(self, key: str, firmware: Firmware, base: Firmware | None, kinds: int, payload: int) -> None:
        image = await self._store.blob(firmware.sha256)
        if image is None:
            raise StoreError(f"the image of {firmware.app} {firmware.version} is missing from the store")
        base_path = await self._store.blob(base.sha256) if base is not None else None
        self._path.mkdir(parents=True, exist_ok=True)
        arguments = [str(image), str(base_path or ""), str(kinds), str(payload), str(self._path), key]
        # A process of its own: it may take seconds of CPU and much memory, and gives both back.
        async with self._workers:
            run = await trio.run_process(
                [sys.executable, "-m", "dfud.package.worker", *arguments],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        if run.returncode != 0:
            told = run.stderr.decode("utf-8", "replace").strip().splitlines()
            raise StoreError(
                f"package of {firmware.version} not made: {told[-1] if told else 'no reason given'}", retryable=True
            )
        await trio.to_thread.run_sync(self._trim)

    def _trim(self) -> None:
        """Delete the packages that were not used for the longest time, down to the limit."""
        files = sorted(
            ((p.stat().st_mtime, p.stat().st_size, p) for p in self._path.glob("*.dfup")),
            key=lambda f: f[0],
            reverse=True,
        )
        total = 0
        for number, (_, size, path) in enumerate(files):
            total += size
            if total > self._disk_bytes and number:
                path.unlink(missing_ok=True)
