"""Images as files named by their SHA-256: written under a temporary name, synced, renamed, the directory synced.

Who needs an image is known in two places: the database's firmware records, and the writers here that are still open.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import trio

from dfud.api import BlobWriter, StoreError

log = logging.getLogger("dfud.store")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """A directory of blobs, two letters of the digest to a subdirectory.

    release: called with a digest when its last open writer has closed; it has to look whether a record names the image, and
    to call `remove()` if none does.
    """

    def __init__(self, directory: Path, release: Callable[[str], Awaitable[None]]) -> None:
        self.directory = directory
        self.release = release
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()  # an image comes into its place, or goes, with this

    def open(self) -> None:
        """Make the directory; forget what an earlier process left half-written."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        for stray in self.directory.glob(".new-*"):
            stray.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        return self.directory / sha256[:2] / sha256

    def find(self, sha256: str) -> Path | None:
        path = self.path(sha256)
        return path if _DIGEST.fullmatch(sha256) and path.exists() else None

    def collect(self, needed: Callable[[str], bool]) -> int:
        """Remove the images that nobody needs: those of a process that was killed before it could. Return how many."""
        strays = [p.name for p in self.directory.glob("??/*") if _DIGEST.fullmatch(p.name) and not needed(p.name)]
        self.remove(strays)
        return len(strays)

    def remove(self, digests: Iterable[str]) -> None:
        """Remove images that no record names, unless a writer holds them. What cannot be removed is left for the next start."""
        for sha256 in digests:
            if not _DIGEST.fullmatch(sha256):
                continue
            with self._lock:
                if self._held[sha256] > 0:
                    continue
                try:
                    self.path(sha256).unlink(missing_ok=True)
                except OSError as error:
                    log.warning("an image was not removed", extra={"sha256": sha256, "error": str(error)})

    def place(self, temporary: Path, sha256: str) -> None:
        """Put a whole file into its place, and hold it."""
        target = self.path(sha256)
        target.parent.mkdir(exist_ok=True, mode=0o750)
        with self._lock:
            os.rename(temporary, target)
            self._held[sha256] += 1
        for directory in (target.parent, self.directory):
            fd = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def let_go(self, sha256: str) -> bool:
        """End one hold; return whether it was the last."""
        with self._lock:
            self._held[sha256] -= 1
            if self._held[sha256] > 0:
                return False
            del self._held[sha256]
            return True

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
        self._held = ""

    async def write(self, data: bytes) -> None:
        try:
            await trio.to_thread.run_sync(self._write, data)
        except OSError as error:
            await self.aclose()
            raise _error(error) from error

    def _write(self, data: bytes) -> None:
        if self._temporary is None:
            raise StoreError("the blob was given up or committed before")
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
        os.fsync(self._fd)
        temporary = self._temporary
        try:
            self._blobs.place(temporary, sha256)
            self._held = sha256
        finally:
            if not temporary.exists():
                self._temporary = None
                self._held = sha256
                os.close(self._fd)
        return sha256

    async def aclose(self) -> None:
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            temporary.unlink(missing_ok=True)
        held, self._held = self._held, ""
        if held and self._blobs.let_go(held):
            with trio.CancelScope(shield=True):
                await self._blobs.release(held)


def _error(error: OSError) -> StoreError:
    return StoreError(f"the image could not be stored: {error.strerror}", retryable=True)
