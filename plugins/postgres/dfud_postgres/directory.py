"""Images as files named by their SHA-256 in a directory that all processes share: one machine's, or a shared file system's."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import trio

from dfud.api import BlobPlace, StoreError


class DirectoryPlace(BlobPlace):
    name = "directory"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256

    async def check(self) -> None:
        found = self._directory
        while not found.exists() and found != found.parent:
            found = found.parent
        if not found.is_dir() or not os.access(found, os.W_OK | os.X_OK):
            raise StoreError(
                f"[store.postgres] blobs_path {self._directory}: {found} is no directory that user {os.getuid()} may write"
            )

    async def put(self, sha256: str, file: IO[bytes], size: int) -> None:
        target = self._path(sha256)
        temporary = target.with_name(f".new-{secrets.token_hex(8)}")

        def write() -> None:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            try:
                with temporary.open("xb") as out:
                    shutil.copyfileobj(file, out, 1 << 18)
                    out.flush()
                    os.fsync(out.fileno())
                os.rename(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            for directory in (target.parent, self._directory):
                fd = os.open(directory, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

        try:
            await trio.to_thread.run_sync(write)
        except OSError as error:
            raise StoreError(f"the image could not be stored: {error.strerror}", retryable=True) from error

    @asynccontextmanager
    async def get(self, sha256: str) -> AsyncIterator[Path | None]:
        path = self._path(sha256)
        yield path if await trio.to_thread.run_sync(path.exists) else None

    async def remove(self, sha256: str) -> None:
        try:
            await trio.to_thread.run_sync(lambda: self._path(sha256).unlink(missing_ok=True))
        except OSError as error:
            raise StoreError(f"an image was not removed: {error.strerror}", retryable=True) from error
