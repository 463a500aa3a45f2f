"""Images as files named by their SHA-256: written under a temporary name, synced, renamed, the directory synced."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import trio

from dfud.api import BlobWriter, StoreError


class Blobs:
    """A directory of blobs, two letters of the digest to a subdirectory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def open(self) -> None:
        """Make the directory; forget what an earlier process left half-written."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        for stray in self.directory.glob(".new-*"):
            stray.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        return self.directory / sha256[:2] / sha256

    async def new(self) -> BlobWriter:
        try:
            fd, name = await trio.to_thread.run_sync(lambda: tempfile.mkstemp(prefix=".new-", dir=self.directory))
        except OSError as error:
            raise _error(error) from error
        return _FileWriter(self, fd, Path(name))


class _FileWriter(BlobWriter):
    def __init__(self, blobs: Blobs, fd: int, temporary: Path) -> None:
        self._blobs = blobs
        self._fd = fd
        self._temporary: Path | None = temporary
        self._digest = hashlib.sha256()

    async def write(self, data: bytes) -> None:
        try:
            await trio.to_thread.run_sync(self._write, data)
        except OSError as error:
            await self.aclose()
            raise _error(error) from error

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    async def commit(self) -> str:
        try:
            with trio.CancelScope(shield=True):
                sha256 = await trio.to_thread.run_sync(self._commit)
            return sha256
        except OSError as error:
            await self.aclose()
            raise _error(error) from error

    def _commit(self) -> str:
        if self._temporary is None:
            raise StoreError("the blob was given up or committed before")
        sha256 = self._digest.hexdigest()
        target = self._blobs.path(sha256)
        os.fsync(self._fd)
        target.parent.mkdir(exist_ok=True, mode=0o750)
        os.rename(self._temporary, target)
        self._temporary = None
        os.close(self._fd)
        for directory in (target.parent, self._blobs.directory):
            fd = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        return sha256

    async def aclose(self) -> None:
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            temporary.unlink(missing_ok=True)


def _error(error: OSError) -> StoreError:
    return StoreError(f"the image could not be stored: {error.strerror}", retryable=True)
