"""Copies of images on this machine: lent while they are used, kept up to a limit, the ones that were used longest ago go."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path


class Copies:
    """Files named by their digest in `directory`. Called from the trio thread only, except where it says otherwise."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        self._lent: Counter[str] = Counter()

    def open(self) -> None:
        """Make the directory, and forget what an earlier process left half-written."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        for stray in self.directory.glob(".new-*"):
            stray.unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        return self.directory / sha256

    def lend(self, sha256: str) -> None:
        self._lent[sha256] += 1

    def give_back(self, sha256: str) -> None:
        self._lent[sha256] -= 1
        if not self._lent[sha256]:
            del self._lent[sha256]

    def used(self, sha256: str) -> None:
        """Note that a copy was used now. From any thread."""
        try:
            os.utime(self.path(sha256))
        except OSError:
            return

    def trim(self) -> None:
        """Remove what is beyond the limit and not lent. From any thread."""
        found = []
        for path in self.directory.glob("[0-9a-f]*"):
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        total = 0
        for _, size, path in sorted(found, reverse=True):
            total += size
            if total > self._max_bytes and not self._lent[path.name]:
                path.unlink(missing_ok=True)
                total -= size
