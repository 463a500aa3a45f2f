"""Images as they are, for devices that take no packages. Nothing is handed out of an image that is not what its name says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from dfud.api import Cache, Firmware, Store, StoreError

# What tells whether a file is the one that was checked.
Identity = tuple[str, int, int, int]


class Images:
    def __init__(self, store: Store, checked_max: int) -> None:
        self._store = store
        self._checked: Cache[Identity, bool] = Cache(checked_max)

    @asynccontextmanager
    async def _whole(self, firmware: Firmware) -> AsyncIterator[Path]:
        """Lend the file of a whole image; raise StoreError if it is missing or damaged."""
        async with self._store.blob(firmware.sha256) as path:
            await self._check(firmware, path)
            assert path is not None
            yield path

    async def _check(self, firmware: Firmware, path: Path | None) -> None:
        what = f"the image of {firmware.version}"
        if path is None:
            raise StoreError(f"{what} is missing from the store; publish it again")
        try:
            found = os.stat(path)
            key = (firmware.sha256, found.st_ino, found.st_size, found.st_mtime_ns)
            if self._checked.get(key) is None:
                self._checked.put(key, await trio.to_thread.run_sync(_matches, path, firmware.sha256))
        except OSError as error:
            raise StoreError(f"{what} cannot be read: {error.strerror}", retryable=True) from error
        if not self._checked.get(key):
            raise StoreError(f"{what} is damaged: it has another SHA-256 than {firmware.sha256}; publish it again")

    async def problem(self, firmware: Firmware) -> str:
        """Say why nothing of an image can be sent until it is published again, or "". Raises StoreError where that may pass."""
        try:
            async with self._whole(firmware):
                return ""
        except StoreError as error:
            if error.retryable:
                raise
            return str(error)

    async def read(self, firmware: Firmware, offset: int, size: int) -> bytes:
        """Return a piece of an image. Raises StoreError."""

        def read(path: Path) -> bytes:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)

        try:
            async with self._whole(firmware) as path:
                return await trio.to_thread.run_sync(read, path)
        except OSError as error:
            raise StoreError(f"the image cannot be read: {error.strerror}", retryable=True) from error


def _matches(path: Path, sha256: str) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
