"""What a device may fetch, and whether it may have the next part of a chunk with nothing to note of that. From memory alone."""

from __future__ import annotations

from dfud.api import State
from dfud.controller.memory import Memory
from dfud.controller.packages import Packages
from dfud.package.file import PackageFile


class Fetches:
    """progress_s: how often progress is stored."""

    def __init__(self, memory: Memory, packages: Packages, progress_s: float) -> None:
        self._memory = memory
        self._packages = packages
        self._progress_s = progress_s

    def package_of(self, app: str, device: str) -> str | None:
        """Return the package that the device may fetch, from memory; None if the device is not in memory."""
        known = self._memory.peek(app, device)
        if known is None or known.deployment is None:
            return None if known is None else ""
        recalled = self._memory.recalled(app, known.deployment.version)
        return None if recalled is None else "" if recalled else known.deployment.package

    def package(self, name: str) -> PackageFile | None:
        """Return a package by its hexadecimal name if it is in memory."""
        return self._packages.memory(name)

    def chunk(self, app: str, device: str, package: str, number: int, now_s: float) -> bytes | None:
        """Return the chunk that a device asked for last, if it may have it still; None: it has to be asked for and noted as ever.

        now_s: trio's time.
        """
        known = self._memory.peek(app, device)
        if known is None or number != known.fetched or now_s - known.progress_at >= self._progress_s:
            return None
        deployment = known.deployment
        if deployment is None or deployment.package != package or deployment.state is not State.FETCHING:
            return None
        if self._memory.recalled(app, deployment.version) is not False:
            return None
        found = self._packages.memory(package)
        return found.chunks[number] if found is not None else None
